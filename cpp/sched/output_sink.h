// Where the scheduler's results go.
#pragma once

#include <cstdint>
#include <span>

#include "sched/request.h"

namespace octavo {

// What one sequence produced in one step. The spans point into the step's result.
struct SequenceOutput {
  uint64_t request_id = 0;
  int32_t sequence_index = 0;
  int64_t num_prompt_tokens = 0;
  int64_t num_cached_tokens = 0;
  int32_t token_id = -1;  // -1: none, only log-probabilities of the prompt or an end
  int32_t stop_token_id = -1;
  bool has_grammar = false;    // the request came with a token mask
  uint32_t queue_time_us = 0;  // from arrival to the first step; at most 2^32 - 1
  FinishReason finish_reason = FinishReason::kNone;
  const char* error = nullptr;  // with kError: a message of the catalogue, fit for users
  std::span<const LogprobEntry> logprobs;
  std::span<const LogprobEntry> prompt_logprobs;
  std::span<const float> pooled;
};

class OutputSink {
 public:
  virtual void emit(const SequenceOutput& output) = 0;

 protected:
  ~OutputSink() = default;
};

}  // namespace octavo
