#include "model/model.h"

#include <algorithm>
#include <string>

#include "base/errors.h"

namespace octavo {
namespace {

void require(bool holds, const char* what) {
  if (!holds) throw UnsupportedModelError(std::string("model configuration: ") + what);
}

// What is given for each layer is given for all of them.
template <typename T>
bool is_per_layer(const std::vector<T>& values, const ModelConfig& config) {
  return values.empty() || std::ssize(values) == config.num_layers;
}

void validate_experts(const ModelConfig& config) {
  if (config.num_experts == 0) return;
  require(config.num_experts > 0 && config.num_experts <= kMaxExperts,
          "num_experts is out of range");
  require(config.experts_per_token > 0 && config.experts_per_token <= config.num_experts,
          "experts_per_token must be between 1 and num_experts");
  require(config.expert_intermediate_size > 0, "expert_intermediate_size must be positive");
}

}  // namespace

void validate(const ModelConfig& config) {
  require(config.vocab_size > 0 && config.vocab_size <= INT32_MAX, "vocab_size is out of range");
  require(config.hidden_size > 0, "hidden_size must be positive");
  require(config.intermediate_size > 0, "intermediate_size must be positive");
  require(config.num_layers > 0, "num_layers must be positive");
  require(config.num_q_heads > 0 && config.num_kv_heads > 0, "head counts must be positive");
  require(config.num_q_heads % config.num_kv_heads == 0,
          "num_q_heads must be a multiple of num_kv_heads");
  require(config.head_dim > 0, "head_dim must be positive");
  const int64_t rotary_dim = resolve_rotary_dim(config.rope, config.head_dim);
  require(rotary_dim % 2 == 0 && rotary_dim <= config.head_dim,
          "the rotary dimension must be even and at most head_dim");
  require(config.max_position_embeddings > 0, "max_position_embeddings must be positive");
  require(config.rms_norm_eps > 0.0, "rms_norm_eps must be positive");
  require(config.logits_divisor > 0.0, "logits_divisor must be positive");
  require(is_per_layer(config.sliding_windows, config) &&
              is_per_layer(config.rope_layers, config) &&
              is_per_layer(config.expert_layers, config),
          "lists of layers must be as long as there are layers");
  validate_experts(config);
}

Model::Model(const ModelConfig& config, Backend& backend)
    : config_(config), backend_(backend), weights_(backend) {
  validate(config);
}

void Model::allocate_loras() { loras_.emplace(backend_, weights_, lora_limits_); }

int64_t Model::lora_bytes() const {
  return lora_limits_.num_slots == 0 ? 0 : Loras::planned_bytes(backend_, weights_, lora_limits_);
}

KVCacheSpec Model::kv_cache_spec() const {
  KVCacheSpec spec;
  spec.num_layers = config_.num_layers;
  spec.num_kv_heads = config_.num_kv_heads;
  spec.head_dim = config_.head_dim;
  return spec;
}

int64_t Model::widest_window() const {
  const std::vector<int64_t>& windows = config_.sliding_windows;
  if (windows.empty() || std::ranges::min(windows) == 0) return 0;
  return std::ranges::max(windows);
}

int64_t Model::prepared_bytes(int64_t max_model_len) const {
  return RopeTableBuffer::size_bytes(config_.rope, config_.head_dim, max_model_len);
}

void Model::prepare(int64_t max_model_len) {
  rope_.emplace(backend_, config_.rope, config_.head_dim, max_model_len);
}

}  // namespace octavo
