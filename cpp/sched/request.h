// A request as it is submitted, and the words that the scheduler and its users share. Plain data.
#pragma once

#include <cstdint>
#include <vector>

#include "sched/sampling_params.h"

namespace octavo {

enum class SchedulingPolicy : uint8_t { kFcfs, kPriority };

enum class FinishReason : uint8_t { kNone = 0, kStop = 1, kLength = 2, kAbort = 3, kError = 4 };

// In place of a sequence's index: all of a request's.
inline constexpr int32_t kEverySequence = -1;

// A request as Python submits it.
struct Request {
  uint64_t id = 0;  // unique among live requests; bits 48..63 name the connection outputs go to
  std::vector<int32_t> token_ids;
  SamplingParams sampling;
  int32_t priority = 0;     // lower runs first under SchedulingPolicy::kPriority
  uint64_t cache_salt = 0;  // separates tenants in the prefix cache
  uint64_t lora_id = 0;     // of the adapter, see Engine::begin_lora(); 0 = none
  int32_t lora_slot = -1;   // where that adapter lies; filled in when the request is accepted
  // Not empty: a grammar constrains the output. This mask, [ceil(vocab / 32)], is of the first
  // token; the later ones come through TokenMasks.
  std::vector<uint32_t> token_mask;
  int64_t arrival_ns = 0;  // CLOCK_MONOTONIC
};

}  // namespace octavo
