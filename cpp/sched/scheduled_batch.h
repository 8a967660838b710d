// What the scheduler asks the runner to compute in one step, and what comes back. Plain data: the
// spans point into the sequences. They may be read while the step is launched; after that a
// sequence may move on, and only what is plain here, and `sampling`, stays as it is until the
// step's update.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "sched/sampling_params.h"

namespace octavo {

// Stands for a token that a step in flight still draws. The device knows it by the slot.
inline constexpr int32_t kPendingToken = -1;

struct ScheduledSequence {
  uint64_t request_id = 0;
  int32_t sequence_index = 0;
  int32_t slot = 0;             // stable row in [0, max_num_seqs) while the sequence is RUNNING
  bool is_new_in_slot = false;  // nothing was drawn in the slot for this sequence so far: state
                                // that is kept by slot is another's

  std::span<const int32_t> token_ids;  // prompt and output so far; the last may be kPendingToken
  int64_t num_prompt_tokens = 0;
  int64_t num_computed_tokens = 0;   // their keys and values are in the cache
  int32_t num_scheduled_tokens = 0;  // positions [num_computed, num_computed + num_scheduled)

  std::span<const int32_t> block_table;  // block ids covering every scheduled position
  int32_t lora_slot = -1;                // of the adapter; -1: none

  int64_t num_pooled_tokens = 0;  // under Pooling::kSum: positions whose states were reported
  bool samples = false;           // the last known token is scheduled: a next token comes back
  const SamplingParams* sampling = nullptr;
  uint64_t seed = 0;                          // resolved; the draw's counter is token_ids.size()
  std::span<const int32_t> banned_token_ids;  // end and stop ids while under min_tokens
  // [ceil(vocab / 32)], bit set = allowed; empty = all. What a grammar allows is settled only by
  // before_sampling(); until then this is some mask of the right size.
  std::span<const uint32_t> token_bitmask;
  bool is_deferred = false;  // the mask came too late: what is sampled here does not count
};

struct ScheduledBatch {
  std::vector<ScheduledSequence> sequences;
  int64_t num_tokens = 0;  // sum of num_scheduled_tokens

  // Where it is set, the runner calls it once when the forward pass has been computed and nothing
  // has been sampled: the masks are made while the device computes. It may block for a short time.
  std::function<void()> before_sampling;

  void clear() {
    sequences.clear();
    num_tokens = 0;
    before_sampling = nullptr;
  }
};

// Row i belongs to batch.sequences[i]. Reused from step to step: clear() keeps the capacity.
struct StepResult {
  std::vector<int32_t> token_ids;   // [num_sequences]; -1 where samples is false
  std::vector<uint8_t> is_invalid;  // [num_sequences]; 1: the logits hold a NaN, end with an error

  // Entries of the sampled token: 1 + sampling->logprobs of them (the chosen token first, then the
  // most likely in order), or none. Row i owns [logprob_offsets[i], logprob_offsets[i + 1]).
  std::vector<LogprobEntry> logprobs;
  std::vector<int32_t> logprob_offsets;  // [num_sequences + 1]

  // The same, 1 + sampling->prompt_logprobs entries for each scheduled position p whose successor
  // p + 1 is a prompt token; the "chosen" token is that successor.
  std::vector<LogprobEntry> prompt_logprobs;
  std::vector<int32_t> prompt_logprob_offsets;  // [num_sequences + 1]

  // Hidden states by Pooling, [hidden_size] for each sequence that has some of them in this step:
  // row i owns [pooled_offsets[i], pooled_offsets[i + 1]). Both empty when there are none.
  std::vector<float> pooled;
  std::vector<int32_t> pooled_offsets;  // [num_sequences + 1]

  void clear() {
    token_ids.clear();
    is_invalid.clear();
    logprobs.clear();
    logprob_offsets.clear();
    prompt_logprobs.clear();
    prompt_logprob_offsets.clear();
    pooled.clear();
    pooled_offsets.clear();
  }
};

}  // namespace octavo
