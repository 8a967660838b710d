#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <map>
#include <string>

#include "base/errors.h"
#include "bindings/bind.h"
#include "sched/sampling_params.h"

namespace octavo::bindings {
namespace {

namespace py = pybind11;

using Bias = std::map<int32_t, float>;

// None stands for "not asked for", which the engine writes as -1.
std::optional<int32_t> from_count(int32_t count) {
  return count < 0 ? std::nullopt : std::optional(count);
}
int32_t to_count(std::optional<int32_t> count) { return count.value_or(-1); }

constexpr std::array kPoolings = {"", "last", "sum"};

Pooling to_pooling(const std::string& name) {
  const auto found = std::ranges::find(kPoolings, name);
  if (found == kPoolings.end()) throw InvalidRequestError("pooling must be last or sum.");
  return static_cast<Pooling>(found - kPoolings.begin());
}

// Sets each keyword as an attribute, so that both ways check the same.
SamplingParams from_keywords(const py::kwargs& fields) {
  const py::object params = py::cast(SamplingParams{});
  for (const auto& [name, value] : fields) {
    if (!py::hasattr(params, name)) {
      throw py::type_error("SamplingParams has no field " + std::string(py::repr(name)));
    }
    try {
      py::setattr(params, name, value);
    } catch (const py::error_already_set& error) {
      if (!error.matches(PyExc_TypeError)) throw;
      throw InvalidRequestError(std::string(py::str(name)) +
                                " has a wrong type or is out of range");
    }
  }
  return params.cast<SamplingParams>();
}

}  // namespace

void bind_sampling(py::module_& module) {
  using P = SamplingParams;
  py::class_<P>(module, "SamplingParams")
      .def(py::init(&from_keywords))
      .def_readwrite("n", &P::n)
      .def_readwrite("temperature", &P::temperature)
      .def_readwrite("top_k", &P::top_k)
      .def_readwrite("top_p", &P::top_p)
      .def_readwrite("min_p", &P::min_p)
      .def_readwrite("repetition_penalty", &P::repetition_penalty)
      .def_readwrite("presence_penalty", &P::presence_penalty)
      .def_readwrite("frequency_penalty", &P::frequency_penalty)
      .def_property(
          "logit_bias", [](const P& p) { return Bias(p.logit_bias.begin(), p.logit_bias.end()); },
          [](P& p, const Bias& bias) { p.logit_bias.assign(bias.begin(), bias.end()); })
      .def_readwrite("allowed_token_ids", &P::allowed_token_ids)
      .def_readwrite("bad_words", &P::bad_words)
      .def_readwrite("seed", &P::seed)
      .def_readwrite("max_tokens", &P::max_tokens)
      .def_readwrite("min_tokens", &P::min_tokens)
      .def_readwrite("ignore_eos", &P::ignore_eos)
      .def_readwrite("stop_token_ids", &P::stop_token_ids)
      .def_property(
          "logprobs", [](const P& p) { return from_count(p.logprobs); },
          [](P& p, std::optional<int32_t> count) { p.logprobs = to_count(count); })
      .def_property(
          "prompt_logprobs", [](const P& p) { return from_count(p.prompt_logprobs); },
          [](P& p, std::optional<int32_t> count) { p.prompt_logprobs = to_count(count); })
      .def_property(
          "pooling", [](const P& p) { return kPoolings[static_cast<size_t>(p.pooling)]; },
          [](P& p, const std::string& name) { p.pooling = to_pooling(name); });
}

}  // namespace octavo::bindings
