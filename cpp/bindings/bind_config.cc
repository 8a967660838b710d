#include <pybind11/stl.h>

#include <array>
#include <string>
#include <utility>

#include "base/errors.h"
#include "bindings/bind.h"
#include "engine/types.h"
#include "model/model_config.h"
#include "model/registry.h"

namespace octavo::bindings {
namespace {

namespace py = pybind11;

template <typename Enum, size_t N>
using EnumNames = std::array<std::pair<std::string_view, Enum>, N>;

constexpr EnumNames<RopeScaling, 5> kRopeScalings = {{{"none", RopeScaling::kNone},
                                                      {"linear", RopeScaling::kLinear},
                                                      {"llama3", RopeScaling::kLlama3},
                                                      {"yarn", RopeScaling::kYarn},
                                                      {"longrope", RopeScaling::kLongRope}}};
constexpr EnumNames<SchedulingPolicy, 2> kPolicies = {
    {{"fcfs", SchedulingPolicy::kFcfs}, {"priority", SchedulingPolicy::kPriority}}};

template <typename Names>
auto value_of(const Names& names, std::string_view name, const char* what) {
  for (const auto& [known, value] : names) {
    if (known == name) return value;
  }
  throw ConfigError(std::string(what) + ": unknown value '" + std::string(name) + "'");
}

template <typename Names, typename Enum>
std::string name_of(const Names& names, Enum value) {
  for (const auto& [name, known] : names) {
    if (known == value) return std::string(name);
  }
  return "";
}

void bind_rope(py::module_& module) {
  using C = RopeConfig;
  py::class_<C>(module, "RopeConfig")
      .def(py::init<>())
      .def_readwrite("theta", &C::theta)
      .def_readwrite("rotary_dim", &C::rotary_dim)
      .def_readwrite("interleaved", &C::interleaved)
      .def_property(
          "scaling", [](const C& c) { return name_of(kRopeScalings, c.scaling); },
          [](C& c, const std::string& name) {
            c.scaling = value_of(kRopeScalings, name, "rope scaling");
          })
      .def_readwrite("factor", &C::factor)
      .def_readwrite("original_max_position_embeddings", &C::original_max_position_embeddings)
      .def_readwrite("low_freq_factor", &C::low_freq_factor)
      .def_readwrite("high_freq_factor", &C::high_freq_factor)
      .def_readwrite("beta_fast", &C::beta_fast)
      .def_readwrite("beta_slow", &C::beta_slow)
      .def_readwrite("attention_factor", &C::attention_factor)
      .def_readwrite("mscale", &C::mscale)
      .def_readwrite("mscale_all_dim", &C::mscale_all_dim)
      .def_readwrite("truncate", &C::truncate)
      .def_readwrite("short_factor", &C::short_factor)
      .def_readwrite("long_factor", &C::long_factor);
}

void bind_model(py::module_& module) {
  using C = ModelConfig;
  py::class_<C>(module, "ModelConfig")
      .def(py::init<>())
      .def_readwrite("architecture", &C::architecture)
      .def_readwrite("vocab_size", &C::vocab_size)
      .def_readwrite("hidden_size", &C::hidden_size)
      .def_readwrite("intermediate_size", &C::intermediate_size)
      .def_readwrite("num_layers", &C::num_layers)
      .def_readwrite("num_q_heads", &C::num_q_heads)
      .def_readwrite("num_kv_heads", &C::num_kv_heads)
      .def_readwrite("head_dim", &C::head_dim)
      .def_readwrite("rms_norm_eps", &C::rms_norm_eps)
      .def_readwrite("tie_word_embeddings", &C::tie_word_embeddings)
      .def_readwrite("qkv_bias", &C::qkv_bias)
      .def_readwrite("attention_output_bias", &C::attention_output_bias)
      .def_readwrite("mlp_bias", &C::mlp_bias)
      .def_readwrite("max_position_embeddings", &C::max_position_embeddings)
      .def_readwrite("rope", &C::rope)
      .def_readwrite("local_rope", &C::local_rope)
      .def_readwrite("sliding_windows", &C::sliding_windows)
      .def_readwrite("rope_layers", &C::rope_layers)
      .def_readwrite("expert_layers", &C::expert_layers)
      .def_readwrite("attention_scale", &C::attention_scale)
      .def_readwrite("attention_soft_cap", &C::attention_soft_cap)
      .def_readwrite("final_soft_cap", &C::final_soft_cap)
      .def_readwrite("embedding_multiplier", &C::embedding_multiplier)
      .def_readwrite("residual_multiplier", &C::residual_multiplier)
      .def_readwrite("logits_divisor", &C::logits_divisor)
      .def_readwrite("norm_offset", &C::norm_offset)
      .def_readwrite("num_experts", &C::num_experts)
      .def_readwrite("experts_per_token", &C::experts_per_token)
      .def_readwrite("expert_intermediate_size", &C::expert_intermediate_size)
      .def_readwrite("renormalize_experts", &C::renormalize_experts);
  module.def("architecture_names", &architecture_names);
}

// A property for a field of EngineConfig::backend.
template <typename T>
void def_backend(py::class_<EngineConfig>& binding, const char* name, T BackendOptions::*field) {
  binding.def_property(
      name, [field](const EngineConfig& c) { return c.backend.*field; },
      [field](EngineConfig& c, const T& value) { c.backend.*field = value; });
}

void bind_engine_config(py::module_& module) {
  using C = EngineConfig;
  py::class_<C> binding(module, "EngineConfig");
  binding.def(py::init<>());
  def_backend(binding, "device", &BackendOptions::device);
  def_backend(binding, "num_threads", &BackendOptions::num_threads);
  def_backend(binding, "cpu_isa", &BackendOptions::cpu_isa);
  def_backend(binding, "keep_quantized", &BackendOptions::keep_quantized);
  def_backend(binding, "quantization", &BackendOptions::quantization);
  def_backend(binding, "batch_invariant", &BackendOptions::batch_invariant);
  def_backend(binding, "enforce_eager", &BackendOptions::enforce_eager);
  def_backend(binding, "gemm_tuning_cache", &BackendOptions::gemm_tuning_cache);
  def_backend(binding, "tune_gemm", &BackendOptions::tune_gemm);
  binding
      .def_property(
          "weight_dtype",
          [](const C& c) { return std::string(dtype_info(c.backend.weight_dtype).name); },
          [](C& c, const std::string& name) { c.backend.weight_dtype = parse_dtype(name); })
      .def_readwrite("max_model_len", &C::max_model_len)
      .def_readwrite("block_size", &C::block_size)
      .def_readwrite("num_blocks", &C::num_blocks)
      .def_readwrite("kv_cache_memory_bytes", &C::kv_cache_memory_bytes)
      .def_readwrite("gpu_memory_utilization", &C::gpu_memory_utilization)
      .def_readwrite("kv_cache_dtype", &C::kv_cache_dtype)
      .def_readwrite("max_num_seqs", &C::max_num_seqs)
      .def_readwrite("max_num_batched_tokens", &C::max_num_batched_tokens)
      .def_readwrite("max_num_mixed_prefill_tokens", &C::max_num_mixed_prefill_tokens)
      .def_readwrite("max_loras", &C::max_loras)
      .def_readwrite("max_lora_rank", &C::max_lora_rank)
      .def_readwrite("enable_chunked_prefill", &C::enable_chunked_prefill)
      .def_readwrite("enable_prefix_caching", &C::enable_prefix_caching)
      .def_property(
          "scheduling_policy", [](const C& c) { return name_of(kPolicies, c.scheduling_policy); },
          [](C& c, const std::string& name) {
            c.scheduling_policy = value_of(kPolicies, name, "--scheduling-policy");
          })
      .def_readwrite("max_num_queued_reqs", &C::max_num_queued_reqs)
      .def_readwrite("max_num_queued_tokens", &C::max_num_queued_tokens)
      .def_readwrite("max_pending_output_bytes", &C::max_pending_output_bytes)
      .def_readwrite("seed", &C::seed)
      .def_property(
          "prefix_cache_secret",
          [](const C& c) { return std::pair(c.prefix_cache_secret[0], c.prefix_cache_secret[1]); },
          [](C& c, std::pair<uint64_t, uint64_t> secret) {
            c.prefix_cache_secret[0] = secret.first;
            c.prefix_cache_secret[1] = secret.second;
          })
      .def_readwrite("eos_token_ids", &C::eos_token_ids);
}

}  // namespace

DType parse_dtype(std::string_view name) {
  for (int i = 0; i <= static_cast<int>(DType::kFloat8Blocks); ++i) {
    const auto dtype = static_cast<DType>(i);
    if (dtype_info(dtype).name == name) return dtype;
  }
  throw ConfigError("unknown dtype '" + std::string(name) + "'");
}

void bind_config(py::module_& module) {
  bind_rope(module);
  bind_model(module);
  bind_engine_config(module);
  bind_sampling(module);
}

}  // namespace octavo::bindings
