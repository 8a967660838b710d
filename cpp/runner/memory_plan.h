// How much device memory goes where, and how many KV blocks the rest makes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "backend/backend.h"
#include "model/model.h"
#include "runner/forward_batch.h"

namespace octavo {

struct RunnerConfig {
  int64_t max_model_len = 0;  // 0 = the model's, lowered to what the KV cache holds
  int64_t block_size = 16;
  int64_t num_blocks = 0;             // 0 = from kv_cache_memory_bytes
  int64_t kv_cache_memory_bytes = 0;  // 0 = from what is free
  double gpu_memory_utilization = 0.92;
  std::string kv_cache_dtype = "auto";
  int64_t max_num_seqs = 64;
  int64_t max_num_batched_tokens = 2048;
  // The device's memory is the host's: without kv_cache_memory_bytes the cache takes a modest share
  // of it instead of all that gpu_memory_utilization leaves.
  bool shares_host_memory = true;
};

struct MemoryPlan {
  int64_t weight_bytes = 0;     // still to be loaded; 0 once they are
  int64_t workspace_bytes = 0;  // activations, logits, batch arrays, RoPE table
  int64_t block_bytes = 0;
  int64_t available_bytes = 0;  // free now and not beyond gpu_memory_utilization
  int64_t num_blocks = 0;
  int64_t max_model_len = 0;  // resolved
  DType kv_dtype = DType::kBFloat16;

  int64_t kv_cache_bytes() const { return num_blocks * block_bytes; }
};

// Throws: ConfigError naming the flag that is out of range.
void validate(const RunnerConfig& config);

// "auto" is the backend's choice. Throws: ConfigError.
DType parse_kv_cache_dtype(std::string_view name, const Backend& backend);

// Rows of logits that are computed and sampled at once.
int64_t max_logits_rows(const RunnerConfig& config);

BatchLimits batch_limits(const RunnerConfig& config, int64_t max_model_len);

// Plans with `weight_bytes` still to come on top of what the device holds now.
// Throws: ConfigError; OutOfMemoryError naming the sizes and the flags that help.
MemoryPlan plan_memory(const RunnerConfig& config, const Model& model, const Backend& backend,
                       int64_t weight_bytes);

}  // namespace octavo
