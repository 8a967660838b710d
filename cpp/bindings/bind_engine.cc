#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/errors.h"
#include "bindings/bind.h"
#include "engine/loaded_engine.h"

namespace octavo::bindings {
namespace {

namespace py = pybind11;
using ReleaseGil = py::call_guard<py::gil_scoped_release>;

// An OutputBatch whose columns are Python's.
struct OutputColumns {
  uint16_t connection;
  py::bytes records, token_ids, logprobs, prompt_logprobs, pooled;
  py::dict errors;
};

template <typename T>
py::bytes bytes_of(const std::vector<T>& column) {
  return {reinterpret_cast<const char*>(column.data()), column.size() * sizeof(T)};
}

OutputColumns columns_of(const OutputBatch& batch) {
  py::dict errors;
  for (const auto& [id, message] : batch.errors) errors[py::int_(id)] = message;
  return {batch.connection,         bytes_of(batch.records),         bytes_of(batch.token_ids),
          bytes_of(batch.logprobs), bytes_of(batch.prompt_logprobs), bytes_of(batch.pooled),
          std::move(errors)};
}

// LoadedEngine and what Python must keep alive for it.
struct Handle {
  Handle(const EngineConfig& config, const ModelConfig& model_config)
      : loaded(std::make_unique<LoadedEngine>(config, model_config)) {}
  // The engine goes first: it writes to the heartbeat's page, and its thread's end is waited for.
  ~Handle() {
    const py::gil_scoped_release release;
    loaded.reset();
  }
  std::unique_ptr<BufferBytes> heartbeat;
  std::vector<OutputBatch> batches;  // reused by every take_outputs()
  std::unique_ptr<LoadedEngine> loaded;
};

// The bytes of a tensor of that name as [rows, cols]. Throws: CheckpointError when they are another
// number.
WeightView view_of(const std::string& name, DType dtype, int64_t rows, int64_t cols,
                   const BufferBytes& bytes) {
  const bool is_sound = rows > 0 && cols > 0 && cols <= INT64_MAX / rows / 8;
  if (!is_sound || bytes.size_bytes() != dtype_bytes(dtype, rows * cols)) {
    throw CheckpointError("tensor '" + name + "' has " + std::to_string(bytes.size_bytes()) +
                          " bytes, which is not [" + std::to_string(rows) + ", " +
                          std::to_string(cols) + "] of " + std::string(dtype_info(dtype).name));
  }
  return {bytes.data(), dtype, rows, cols};
}

void load_weight(Handle& handle, const std::string& name, const std::string& dtype_name,
                 int64_t rows, int64_t cols, const py::object& data) {
  const BufferBytes bytes(data, false);
  const WeightView view = view_of(name, parse_dtype(dtype_name), rows, cols, bytes);
  const py::gil_scoped_release release;
  handle.loaded->load_weight(name, view);
}

// A matrix of an adapter as Python gives it: dtype, rows, cols, data.
using LoraMatrix = std::tuple<std::string, int64_t, int64_t, py::object>;

void load_lora(Handle& handle, uint64_t id, const std::string& target, float scale,
               const LoraMatrix& a, const LoraMatrix& b) {
  const BufferBytes a_bytes(std::get<3>(a), false), b_bytes(std::get<3>(b), false);
  const auto view = [&](const LoraMatrix& matrix, const BufferBytes& bytes) {
    return view_of(target, parse_dtype(std::get<0>(matrix)), std::get<1>(matrix),
                   std::get<2>(matrix), bytes);
  };
  const LoraView lora{scale, view(a, a_bytes), view(b, b_bytes)};
  const py::gil_scoped_release release;
  handle.loaded->load_lora(id, target, lora);
}

// The words of a buffer.
template <typename T>
std::vector<T> words_of(const py::object& buffer, const char* name) {
  const BufferBytes bytes(buffer, false);
  if (bytes.size_bytes() % static_cast<int64_t>(sizeof(T)) != 0) {
    throw InvalidRequestError(std::string(name) + " is not an array of words of 4 bytes");
  }
  std::vector<T> words(bytes.size_bytes() / sizeof(T));
  std::copy_n(bytes.data(), bytes.size_bytes(), reinterpret_cast<std::byte*>(words.data()));
  return words;
}

void submit(Handle& handle, uint64_t id, const py::object& token_ids,
            const SamplingParams& sampling, int32_t priority, uint64_t cache_salt,
            const py::object& token_mask, uint64_t lora_id) {
  Request request;
  request.id = id;
  request.token_ids = words_of<int32_t>(token_ids, "token_ids");
  request.sampling = sampling;
  request.priority = priority;
  request.cache_salt = cache_salt;
  request.lora_id = lora_id;
  if (!token_mask.is_none()) request.token_mask = words_of<uint32_t>(token_mask, "token_mask");
  const py::gil_scoped_release release;
  handle.loaded->engine().submit(std::move(request));
}

std::chrono::nanoseconds timeout_of(double seconds) {
  return std::chrono::nanoseconds(static_cast<int64_t>(std::clamp(seconds, 0.0, 3600.0) * 1e9));
}

std::optional<std::vector<OutputColumns>> take_outputs(Handle& handle, double timeout_s) {
  Engine& engine = handle.loaded->engine();
  bool is_open = false;
  {
    const py::gil_scoped_release release;
    is_open = engine.take_outputs(handle.batches, timeout_of(timeout_s));
  }
  if (!is_open) return std::nullopt;
  std::vector<OutputColumns> columns;
  columns.reserve(handle.batches.size());
  for (const OutputBatch& batch : handle.batches) columns.push_back(columns_of(batch));
  return columns;
}

using MaskWorkTuple = std::tuple<uint64_t, int32_t, int32_t>;

std::optional<std::vector<MaskWorkTuple>> take_mask_work(Handle& handle, double timeout_s) {
  std::vector<MaskWork> work;
  bool is_open = false;
  {
    const py::gil_scoped_release release;
    is_open = handle.loaded->engine().take_mask_work(work, timeout_of(timeout_s));
  }
  if (!is_open) return std::nullopt;
  std::vector<MaskWorkTuple> tuples;
  tuples.reserve(work.size());
  for (const MaskWork& each : work) {
    tuples.emplace_back(each.sequence.request_id, each.sequence.sequence_index, each.token_id);
  }
  return tuples;
}

void set_token_masks(Handle& handle, const std::vector<std::pair<uint64_t, int32_t>>& sequences,
                     const py::object& masks) {
  const std::vector<uint32_t> words = words_of<uint32_t>(masks, "masks");
  const py::gil_scoped_release release;
  std::vector<SequenceKey> keys;
  keys.reserve(sequences.size());
  for (const auto& [id, index] : sequences) keys.push_back({id, index});
  handle.loaded->engine().set_token_masks(keys, words);
}

void set_heartbeat(Handle& handle, const py::object& page, int64_t offset) {
  auto bytes = std::make_unique<BufferBytes>(page, true);
  constexpr auto kSize = static_cast<int64_t>(sizeof(std::atomic<int64_t>));
  std::byte* address = bytes->data() + offset;
  if (offset < 0 || offset > bytes->size_bytes() - kSize ||
      reinterpret_cast<uintptr_t>(address) % kSize != 0) {
    throw py::value_error("the heartbeat needs 8 aligned bytes inside the page");
  }
  handle.loaded->engine().set_heartbeat(reinterpret_cast<std::atomic<int64_t>*>(address));
  handle.heartbeat = std::move(bytes);
}

void bind_value_types(py::module_& module) {
  py::class_<WeightSpec>(module, "WeightSpec")
      .def_readonly("name", &WeightSpec::name)
      .def_readonly("rows", &WeightSpec::rows)
      .def_readonly("cols", &WeightSpec::cols);
  py::class_<OutputColumns>(module, "OutputBatch")
      .def_readonly("connection", &OutputColumns::connection)
      .def_readonly("records", &OutputColumns::records)
      .def_readonly("token_ids", &OutputColumns::token_ids)
      .def_readonly("logprobs", &OutputColumns::logprobs)
      .def_readonly("prompt_logprobs", &OutputColumns::prompt_logprobs)
      .def_readonly("pooled", &OutputColumns::pooled)
      .def_readonly("errors", &OutputColumns::errors);
}

}  // namespace

void bind_engine(py::module_& module) {
  bind_value_types(module);
  py::class_<Handle>(module, "Engine")
      .def(py::init<const EngineConfig&, const ModelConfig&>(), py::arg("engine_config"),
           py::arg("model_config"), ReleaseGil())
      .def("weight_specs", [](const Handle& h) { return h.loaded->weight_specs(); })
      .def("load_weight", &load_weight, py::arg("name"), py::arg("dtype"), py::arg("rows"),
           py::arg("cols"), py::arg("data"))
      .def(
          "load_dummy_weights",
          [](Handle& h, uint64_t seed) { h.loaded->load_dummy_weights(seed); }, py::arg("seed"),
          ReleaseGil())
      .def(
          "finish_loading", [](Handle& h) { h.loaded->finish_loading(); }, ReleaseGil())
      .def(
          "allocate_kv_cache", [](Handle& h) { return h.loaded->allocate_kv_cache(); },
          ReleaseGil())
      .def(
          "warm_up", [](Handle& h) { h.loaded->warm_up(); }, ReleaseGil())
      .def(
          "self_test", [](Handle& h) { h.loaded->self_test(); }, ReleaseGil())
      .def(
          "start", [](Handle& h) { h.loaded->start(); }, ReleaseGil())
      .def("progress", [](const Handle& h) { return h.loaded->progress(); })
      .def("submit", &submit, py::arg("request_id"), py::arg("token_ids"), py::arg("sampling"),
           py::arg("priority") = 0, py::arg("cache_salt") = 0, py::arg("token_mask") = py::none(),
           py::arg("lora_id") = 0)
      .def(
          "abort",
          [](Handle& h, uint64_t id, int32_t index) { h.loaded->engine().abort(id, index); },
          py::arg("request_id"), py::arg("sequence_index") = kEverySequence, ReleaseGil())
      .def(
          "reset_prefix_cache", [](Handle& h) { h.loaded->engine().reset_prefix_cache(); },
          ReleaseGil())
      .def(
          "begin_lora", [](Handle& h) { return h.loaded->begin_lora(); }, ReleaseGil())
      .def("load_lora", &load_lora, py::arg("lora_id"), py::arg("target"), py::arg("scale"),
           py::arg("a"), py::arg("b"))
      .def(
          "open_lora", [](Handle& h, uint64_t id) { h.loaded->engine().open_lora(id); },
          py::arg("lora_id"), ReleaseGil())
      .def(
          "close_lora", [](Handle& h, uint64_t id) { h.loaded->engine().close_lora(id); },
          py::arg("lora_id"), ReleaseGil())
      .def(
          "self_check", [](Handle& h) { h.loaded->engine().self_check(); }, ReleaseGil())
      .def(
          "sleep", [](Handle& h, bool aborts) { h.loaded->engine().sleep(aborts); },
          py::arg("aborts"), ReleaseGil())
      .def(
          "wake_up", [](Handle& h) { h.loaded->engine().wake_up(); }, ReleaseGil())
      .def("take_outputs", &take_outputs, py::arg("timeout_s"))
      .def("take_mask_work", &take_mask_work, py::arg("timeout_s"))
      .def("set_token_masks", &set_token_masks, py::arg("sequences"), py::arg("masks"))
      .def("output_fd", [](Handle& h) { return h.loaded->engine().output_fd(); })
      .def("is_healthy", [](Handle& h) { return h.loaded->engine().is_healthy(); })
      .def("last_error", [](Handle& h) { return h.loaded->engine().last_error(); })
      .def("stats", [](const Handle& h) { return stats_dict(h.loaded->stats()); })
      .def("set_heartbeat", &set_heartbeat, py::arg("page"), py::arg("offset"))
      .def("device_name", [](const Handle& h) { return h.loaded->device_name(); })
      .def("max_model_len", [](const Handle& h) { return h.loaded->max_model_len(); })
      .def(
          "shutdown", [](Handle& h) { h.loaded->shutdown(); }, ReleaseGil());
}

}  // namespace octavo::bindings
