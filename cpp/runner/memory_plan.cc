#include "runner/memory_plan.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <limits>

#include "base/errors.h"

namespace octavo {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr int64_t kMinHostCacheBytes = 512 * kMiB;
constexpr int64_t kMaxHostCacheBytes = 4096 * kMiB;

// More rows gain nothing in the head's matrix product, and a row of a large vocabulary is 1 MB.
constexpr int64_t kMinLogitsRows = 64;
constexpr int64_t kMaxLogitsRows = 256;

std::string size_text(int64_t bytes) {
  char text[32];
  const auto mib = static_cast<double>(bytes) / static_cast<double>(kMiB);
  if (mib < 1024.0) {
    std::snprintf(text, sizeof(text), "%.1f MiB", mib);
  } else {
    std::snprintf(text, sizeof(text), "%.2f GiB", mib / 1024.0);
  }
  return text;
}

int64_t blocks_for(int64_t num_tokens, int64_t block_size) {
  return (num_tokens + block_size - 1) / block_size;
}

int64_t available_bytes(const RunnerConfig& config, const Backend& backend) {
  const DeviceInfo device = backend.device_info();
  if (config.shares_host_memory) return device.free_bytes;
  const auto total = static_cast<double>(device.total_bytes);
  const auto reserved = static_cast<int64_t>(total * (1.0 - config.gpu_memory_utilization));
  return std::max<int64_t>(0, device.free_bytes - reserved);
}

int64_t workspace_bytes(const RunnerConfig& config, const Model& model, int64_t max_model_len) {
  const int64_t logits_bytes =
      max_logits_rows(config) * model.config().vocab_size * static_cast<int64_t>(sizeof(float));
  return model.workspace_bytes(config.max_num_batched_tokens) + logits_bytes +
         ForwardBatch::size_bytes(batch_limits(config, max_model_len)) +
         model.prepared_bytes(max_model_len);
}

// Bytes to spend on blocks when neither their number nor their memory is given.
int64_t default_cache_bytes(const RunnerConfig& config, int64_t spare_bytes,
                            int64_t one_sequence_bytes) {
  if (!config.shares_host_memory) return spare_bytes;
  const int64_t share = std::clamp(spare_bytes / 4, kMinHostCacheBytes, kMaxHostCacheBytes);
  return std::min(std::max(share, one_sequence_bytes), spare_bytes);
}

int64_t plan_blocks(const RunnerConfig& config, const MemoryPlan& plan, int64_t spare_bytes,
                    int64_t one_sequence_blocks) {
  int64_t num_blocks = config.num_blocks;
  if (num_blocks == 0) {
    const int64_t bytes =
        config.kv_cache_memory_bytes > 0
            ? config.kv_cache_memory_bytes
            : default_cache_bytes(config, spare_bytes, one_sequence_blocks * plan.block_bytes);
    num_blocks = bytes / plan.block_bytes;
  }
  return std::min<int64_t>(num_blocks, std::numeric_limits<int32_t>::max());
}

// The length asked for, or the model's own.
int64_t longest_length(const RunnerConfig& config, const ModelConfig& model) {
  const int64_t most = model.max_position_embeddings;
  if (config.max_model_len > most) {
    throw ConfigError("--max-model-len " + std::to_string(config.max_model_len) +
                      ": the model takes at most " + std::to_string(most) + " tokens");
  }
  return config.max_model_len > 0 ? config.max_model_len : most;
}

void check_base_fits(const MemoryPlan& plan) {
  const int64_t base_bytes = plan.weight_bytes + plan.workspace_bytes;
  if (base_bytes + plan.block_bytes <= plan.available_bytes) return;
  const std::string weights =
      plan.weight_bytes > 0 ? "weights " + size_text(plan.weight_bytes) + " and " : "";
  throw OutOfMemoryError(weights + "workspace " + size_text(plan.workspace_bytes) +
                         " leave nothing for the KV cache in the " +
                         size_text(plan.available_bytes) +
                         " that are free: lower --max-num-batched-tokens or --max-num-seqs, or "
                         "use a smaller or quantised model");
}

void check_cache_fits(const MemoryPlan& plan, int64_t spare_bytes) {
  if (plan.kv_cache_bytes() <= spare_bytes) return;
  throw OutOfMemoryError("the KV cache needs " + size_text(plan.kv_cache_bytes()) + " and " +
                         size_text(spare_bytes) +
                         " are free for it: lower --kv-cache-memory-bytes");
}

void check_holds_a_sequence(const RunnerConfig& config, const MemoryPlan& plan) {
  const int64_t needed = blocks_for(plan.max_model_len, config.block_size);
  if (plan.num_blocks >= needed) return;
  const std::string longest = std::to_string(plan.num_blocks * config.block_size);
  throw OutOfMemoryError("one sequence of " + std::to_string(plan.max_model_len) +
                         " tokens needs " + size_text(needed * plan.block_bytes) +
                         " of KV cache and there are " + size_text(plan.kv_cache_bytes()) +
                         ": lower --max-model-len to " + longest +
                         " or raise --kv-cache-memory-bytes");
}

void require(bool holds, const char* what) {
  if (!holds) throw ConfigError(what);
}

}  // namespace

void validate(const RunnerConfig& config) {
  constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
  require(config.max_model_len >= 0 && config.max_model_len <= kMaxInt32,
          "--max-model-len is out of range");
  require(config.block_size >= 1 && config.block_size <= 1024,
          "--block-size must be between 1 and 1024");
  require(config.num_blocks >= 0 && config.num_blocks <= kMaxInt32, "num_blocks is out of range");
  require(config.kv_cache_memory_bytes >= 0, "--kv-cache-memory-bytes must not be negative");
  require(config.gpu_memory_utilization > 0.0 && config.gpu_memory_utilization <= 1.0,
          "--gpu-memory-utilization must be above 0 and at most 1");
  require(config.max_num_seqs >= 1 && config.max_num_seqs <= 65536,
          "--max-num-seqs must be between 1 and 65536");
  require(config.max_num_batched_tokens >= 1 && config.max_num_batched_tokens <= kMaxInt32,
          "--max-num-batched-tokens is out of range");
  require(config.max_num_batched_tokens >= config.max_num_seqs,
          "--max-num-batched-tokens must be at least --max-num-seqs");
}

DType parse_kv_cache_dtype(std::string_view name, const Backend& backend) {
  if (name == "auto") return backend.default_kv_dtype();
  constexpr std::array<std::pair<std::string_view, DType>, 5> kNames = {{
      {"float32", DType::kFloat32},
      {"float16", DType::kFloat16},
      {"bfloat16", DType::kBFloat16},
      {"fp8", DType::kFloat8E4M3},
      {"int8", DType::kInt8},
  }};
  for (const auto& [known, dtype] : kNames) {
    if (known == name) return dtype;
  }
  throw ConfigError("--kv-cache-dtype must be auto, float32, float16, bfloat16, fp8 or int8, not " +
                    std::string(name));
}

int64_t max_logits_rows(const RunnerConfig& config) {
  return std::min(config.max_num_batched_tokens,
                  std::clamp(config.max_num_seqs, kMinLogitsRows, kMaxLogitsRows));
}

BatchLimits batch_limits(const RunnerConfig& config, int64_t max_model_len) {
  return {config.max_num_seqs, config.max_num_batched_tokens, max_model_len, config.block_size};
}

MemoryPlan plan_memory(const RunnerConfig& config, const Model& model, const Backend& backend,
                       int64_t weight_bytes) {
  validate(config);
  MemoryPlan plan;
  plan.weight_bytes = weight_bytes;
  plan.kv_dtype = parse_kv_cache_dtype(config.kv_cache_dtype, backend);
  KVCacheSpec spec = model.kv_cache_spec();
  spec.block_size = config.block_size;
  spec.dtype = plan.kv_dtype;
  plan.block_bytes = spec.block_bytes();
  plan.available_bytes = available_bytes(config, backend);

  const bool is_auto = config.max_model_len == 0;
  plan.max_model_len = longest_length(config, model.config());
  plan.workspace_bytes = workspace_bytes(config, model, plan.max_model_len);
  check_base_fits(plan);
  const int64_t spare_bytes = plan.available_bytes - plan.weight_bytes - plan.workspace_bytes;
  plan.num_blocks =
      plan_blocks(config, plan, spare_bytes, blocks_for(plan.max_model_len, config.block_size));
  check_cache_fits(plan, spare_bytes);
  if (is_auto) {
    plan.max_model_len = std::min(plan.max_model_len, plan.num_blocks * config.block_size);
  }
  check_holds_a_sequence(config, plan);
  return plan;
}

}  // namespace octavo
