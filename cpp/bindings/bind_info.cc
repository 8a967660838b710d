#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "backend/cuda_backend.h"
#include "bindings/bind.h"
#include "cpu/cpu_features.h"
#include "engine/loaded_engine.h"

namespace octavo::bindings {
namespace {

namespace py = pybind11;

py::dict plan(const EngineConfig& config, const ModelConfig& model_config,
              const std::unordered_map<std::string, std::string>& weight_dtypes) {
  MemoryPlan plan;
  {
    const py::gil_scoped_release release;
    plan = plan_memory(config, model_config, [&](const WeightSpec& spec) {
      const auto it = weight_dtypes.find(spec.name);
      return it == weight_dtypes.end() ? config.backend.weight_dtype : parse_dtype(it->second);
    });
  }
  py::dict result;
  result["weights"] = plan.weight_bytes;
  result["workspace"] = plan.workspace_bytes;
  result["kv_block"] = plan.block_bytes;
  result["kv_cache"] = plan.kv_cache_bytes();
  result["available"] = plan.available_bytes;
  result["num_blocks"] = plan.num_blocks;
  result["max_model_len"] = plan.max_model_len;
  return result;
}

using TargetTuple = std::tuple<std::string, int64_t, int64_t>;

std::vector<TargetTuple> targets(const ModelConfig& model_config) {
  std::vector<TargetTuple> tuples;
  for (const LoraTarget& target : lora_targets(model_config)) {
    tuples.emplace_back(target.name, target.in_features, target.out_features);
  }
  return tuples;
}

bool has_cuda() {
#if defined(OCTAVO_WITH_CUDA)
  return true;
#else
  return false;
#endif
}

int count_cuda_devices() {
#if defined(OCTAVO_WITH_CUDA)
  return num_cuda_devices();
#else
  return 0;
#endif
}

}  // namespace

py::dict stats_dict(const EngineStats& s) {
  py::dict result;
  const auto set = [&](const char* name, auto value) { result[name] = static_cast<double>(value); };
  set("num_waiting", s.num_waiting);
  set("num_running", s.num_running);
  set("num_blocks", s.num_blocks);
  set("num_free_blocks", s.num_free_blocks);
  set("num_cached_blocks", s.num_cached_blocks);
  set("num_steps", s.num_steps);
  set("num_prompt_tokens", s.num_prompt_tokens);
  set("num_generation_tokens", s.num_generation_tokens);
  set("num_prefix_query_tokens", s.num_prefix_query_tokens);
  set("num_prefix_hit_tokens", s.num_prefix_hit_tokens);
  set("num_preemptions", s.num_preemptions);
  set("num_deferred", s.num_deferred);
  set("num_self_checks", s.num_self_checks);
  set("num_wake_ups", s.num_wake_ups);
  set("num_failed_wake_ups", s.num_failed_wake_ups);
  set("num_finished_stop", s.num_finished[static_cast<int>(FinishReason::kStop)]);
  set("num_finished_length", s.num_finished[static_cast<int>(FinishReason::kLength)]);
  set("num_finished_abort", s.num_finished[static_cast<int>(FinishReason::kAbort)]);
  set("num_finished_error", s.num_finished[static_cast<int>(FinishReason::kError)]);
  set("max_model_len", s.max_model_len);
  set("kv_cache_bytes", s.kv_cache_bytes);
  set("weight_bytes", s.weight_bytes);
  set("step_seconds", s.step_seconds);
  set("device_seconds", s.device_seconds);
  set("wait_seconds", s.wait_seconds);
  set("heartbeat_ns", s.heartbeat_ns);
  set("is_asleep", s.is_asleep);
  set("is_healthy", s.is_healthy);
  return result;
}

void bind_info(py::module_& module) {
  module.def("plan_memory", &plan, py::arg("engine_config"), py::arg("model_config"),
             py::arg("weight_dtypes"));
  module.def("lora_targets", &targets, py::arg("model_config"),
             py::call_guard<py::gil_scoped_release>());
  module.def("cpu_features", &cpu::cpu_features);
  module.def("has_cuda", &has_cuda);
  module.def("num_cuda_devices", &count_cuda_devices);
}

}  // namespace octavo::bindings
