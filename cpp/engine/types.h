// All that crosses to Python besides SamplingParams and ModelConfig. Plain data.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "sched/request.h"

namespace octavo {

struct EngineConfig {
  BackendOptions backend;

  int64_t max_model_len = 0;             // tokens of prompt and output together
  int64_t block_size = 16;               // tokens of a KV block
  int64_t num_blocks = 0;                // 0 = from kv_cache_memory_bytes
  int64_t kv_cache_memory_bytes = 0;     // 0 = from the device's free memory
  double gpu_memory_utilization = 0.92;  // CUDA, when kv_cache_memory_bytes is 0
  std::string kv_cache_dtype = "auto";   // auto, float32, float16, bfloat16, fp8, int8

  int32_t max_num_seqs = 64;
  int64_t max_num_batched_tokens = 2048;
  int64_t max_num_mixed_prefill_tokens = 320;  // of prompts, in a step that decodes too
  int32_t max_loras = 0;      // adapters that the device holds at the same time; 0 = none
  int64_t max_lora_rank = 0;  // of an adapter
  bool enable_chunked_prefill = true;
  bool enable_prefix_caching = true;
  SchedulingPolicy scheduling_policy = SchedulingPolicy::kFcfs;
  int64_t max_num_queued_reqs = 4096;
  int64_t max_num_queued_tokens = 16 << 20;
  int64_t max_pending_output_bytes = 256 << 20;  // not taken; beyond it requests are aborted

  uint64_t seed = 0;
  uint64_t prefix_cache_secret[2] = {0, 0};  // key of the block hashes, fresh each boot
  std::vector<int32_t> eos_token_ids;
};

// Tokens of one sequence produced in one step: the id that ends it is among them. A batch may hold
// several records of a sequence, in order. Prompt log-probabilities are the request's: the records
// of sequence 0 carry them. Fixed layout: Python unpacks an array of these as little-endian
// "<QIIIIiIIIIB3x" (48 bytes).
struct OutputRecord {
  uint64_t request_id;
  uint32_t sequence_index;  // 0 .. n - 1
  uint32_t num_tokens;      // of OutputBatch::token_ids, in record order
  uint32_t num_prompt_tokens;
  uint32_t num_cached_tokens;    // prompt tokens served from the prefix cache
  int32_t stop_token_id;         // the id that ended the sequence, else -1
  uint32_t num_logprobs;         // entries of OutputBatch::logprobs
  uint32_t num_prompt_logprobs;  // entries of OutputBatch::prompt_logprobs
  uint32_t queue_time_us;        // from submit() to the request's first step
  uint32_t num_pooled;           // entries of OutputBatch::pooled
  uint8_t finish_reason;         // FinishReason
  uint8_t padding[3];
};
static_assert(sizeof(OutputRecord) == 48);

// The records of one connection. Columns are flat so that they cross the boundary as bytes.
struct OutputBatch {
  uint16_t connection = 0;
  std::vector<OutputRecord> records;
  std::vector<int32_t> token_ids;
  std::vector<LogprobEntry> logprobs;                    // "<ifi" each
  std::vector<LogprobEntry> prompt_logprobs;             // "<ifi" each
  std::vector<float> pooled;                             // parts of a sum, to be added
  std::vector<std::pair<uint64_t, std::string>> errors;  // request id, message of the catalogue
};

// Counters and gauges; a consistent snapshot of the last step.
struct EngineStats {
  int64_t num_waiting = 0;  // sequences, preempted ones and the inbox included
  int64_t num_running = 0;  // sequences
  int64_t num_blocks = 0;
  int64_t num_free_blocks = 0;  // including cached blocks nobody holds
  int64_t num_cached_blocks = 0;
  int64_t num_steps = 0;
  int64_t num_prompt_tokens = 0;
  int64_t num_generation_tokens = 0;
  int64_t num_prefix_query_tokens = 0;
  int64_t num_prefix_hit_tokens = 0;
  int64_t num_preemptions = 0;
  int64_t num_deferred = 0;                   // tokens that waited a step for their grammar's mask
  int64_t num_self_checks = 0;                // that found everything consistent
  int64_t num_wake_ups = 0;                   // that ended a sleep, or found none
  int64_t num_failed_wake_ups = 0;            // for want of memory: the engine sleeps on
  int64_t num_finished[5] = {0, 0, 0, 0, 0};  // by FinishReason
  int64_t max_model_len = 0;
  int64_t kv_cache_bytes = 0;
  int64_t weight_bytes = 0;
  double step_seconds = 0;    // total time inside steps
  double device_seconds = 0;  // of it inside the StepRunner
  double wait_seconds = 0;    // of that waiting for a step to end; the rest keeps the host busy
  int64_t heartbeat_ns = 0;   // CLOCK_MONOTONIC of the last step or idle tick
  bool is_asleep = false;     // the KV cache was given back
  bool is_healthy = true;     // false: the device is lost, nothing will be computed any more
};

}  // namespace octavo
