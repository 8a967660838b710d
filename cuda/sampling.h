// Sampling on the device: the arrays that cross, and the two kernels.
//
// sample_statistics reads every row once: it applies the request's rules in place and leaves, for
// each run of 128 logits, their maximum and the sum of their exponentials. sample_draw, one block a
// row, works on these runs and reads again only the few that can hold what it looks for.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "sched/sampling_params.h"

namespace octavo::cuda {

inline constexpr int kRunLength = 128;
inline int num_runs(int vocab) { return (vocab + kRunLength - 1) / kRunLength; }

// One row of logits. Offsets count words of SampleArrays::lists.
struct SampleRowParams {
  uint64_t seed = 0;
  uint64_t position = 0;
  int32_t* counts = nullptr;         // [vocab], see kPromptFlag; null without penalties
  int32_t* drawn_id = nullptr;       // the token goes there too; null for rows with a target
  float inverse_temperature = 0.0f;  // 0: greedy
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  int32_t top_k = 0;  // 0: all
  int32_t target_id = -1;
  int32_t first_entry = 0;
  int32_t num_entries = 0;  // log-probabilities wanted
  int32_t raw_row = -1;     // among the rows that want entries
  int32_t copy_row = -1;    // where the raw logits go that the rules would overwrite
  int32_t mask_at = 0;
  int32_t mask_words = 0;  // 0: none
  int32_t bias_at = 0;
  int32_t num_biases = 0;  // ids, then as many floats
  int32_t ban_at = 0;
  int32_t num_bans = 0;
  int32_t has_rules = 0;
  int32_t padding = 0;
};

// In SampleRowParams::counts: the token occurs in the prompt; the bits below count the output.
inline constexpr int32_t kPromptFlag = 1 << 30;

struct SampledToken {
  int32_t token_id;    // -1: none
  int32_t is_invalid;  // the logits hold a NaN or an infinity, or the rules leave no token
};

struct SampleArrays {
  float* logits = nullptr;  // [num_rows, stride], overwritten where a row has rules
  int64_t stride = 0;
  int vocab = 0;
  int num_rows = 0;
  int num_raw_rows = 0;
  const SampleRowParams* rows = nullptr;  // [num_rows]
  const int32_t* lists = nullptr;
  float* copies = nullptr;     // [rows that need one, vocab]
  float2* runs = nullptr;      // [num_rows, num_runs]: maximum, sum of exponentials
  float2* raw_runs = nullptr;  // [num_raw_rows, num_runs], at temperature 1
  // Host memory that the device writes to: results cross as they are made.
  SampledToken* tokens = nullptr;  // [num_rows]
  LogprobEntry* entries = nullptr;
};

void sample_statistics(const SampleArrays& arrays, cudaStream_t stream);
void sample_draw(const SampleArrays& arrays, cudaStream_t stream);

// Sets counts [vocab] from a history whose first num_prompt_tokens are the prompt. `history` is
// device memory. Ids outside [0, vocab) are ignored.
struct HistoryArgs {
  int32_t* counts = nullptr;
  const int32_t* history = nullptr;
  int num_tokens = 0;
  int num_prompt_tokens = 0;
  int vocab = 0;
};
void count_history(const HistoryArgs& args, cudaStream_t stream);

}  // namespace octavo::cuda
