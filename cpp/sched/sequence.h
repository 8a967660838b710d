// The engine's state of a request: a group of sequences that were sampled from one prompt.
#pragma once

#include <cstdint>
#include <span>
#include <tuple>
#include <vector>

#include "kv/block_manager.h"
#include "sched/request.h"
#include "sched/scheduled_batch.h"

namespace octavo {

// kPreempted is waiting for the second time: tokens so far are kept, their keys and values are not.
enum class SequenceState : uint8_t { kWaiting, kRunning, kPreempted, kFinished };

// The one order of service: admission takes the least rank, preemption the greatest.
struct Rank {
  int64_t turn = 0;      // arrival, moved by priority
  uint64_t arrival = 0;  // of the request, unique
  int32_t index = 0;     // of the sequence

  friend bool operator==(const Rank&, const Rank&) = default;
  friend bool operator<(const Rank& a, const Rank& b) {
    return std::tie(a.turn, a.arrival, a.index) < std::tie(b.turn, b.arrival, b.index);
  }
};

struct SequenceGroup;

// Owned by its group; changed by Scheduler only. A sequence that is not RUNNING has no slot and an
// empty block table.
struct Sequence {
  SequenceGroup* group = nullptr;
  Rank rank;
  uint64_t seed = 0;
  SequenceState state = SequenceState::kWaiting;
  bool is_new_in_slot = false;  // until a step has drawn for it in its slot
  int32_t slot = -1;
  int64_t queue_position = -1;  // in WaitingQueue, which keeps it up to date; -1 outside

  // Prompt and output; filled when first admitted. The last is kPendingToken from the schedule of
  // the step that draws it to its update.
  std::vector<int32_t> token_ids;
  int64_t num_computed_tokens = 0;  // steps in flight included
  int64_t num_cached_tokens = 0;    // of num_computed_tokens, found ready at the first admission
  int64_t num_reported_prompt_positions = 0;  // whose prompt log-probabilities were emitted
  BlockTable blocks;

  bool was_admitted() const { return !token_ids.empty(); }
  bool has_pending_token() const { return was_admitted() && token_ids.back() == kPendingToken; }
};

// A request inside the scheduler. Lives until its last sequence has finished.
struct SequenceGroup {
  Request request;
  int64_t max_tokens = 0;                 // of the output, no more than the context has room for
  std::vector<int32_t> banned_token_ids;  // end and stop ids, if min_tokens bans them at first
  std::vector<Sequence> sequences;        // [n]
  int32_t num_unfinished = 0;
  bool is_waiting = true;        // none of the sequences was admitted so far
  bool holds_siblings = false;   // sequences 1.. wait until sequence 0 has computed the prompt
  bool needs_token_ids = false;  // on the host, to sample the next one
  int64_t last_step = 0;         // in which one of the sequences was scheduled
  int64_t queue_time_ns = 0;     // until the first sequence was admitted

  // What a sequence asks of the sampler once its prompt log-probabilities are out (or if they are
  // another's to report). Only set apart from request.sampling when prompt_logprobs is asked for.
  SamplingParams sampling_after_prompt;

  bool wants_prompt_logprobs() const { return request.sampling.prompt_logprobs >= 0; }
  bool has_grammar() const { return !request.token_mask.empty(); }
  int64_t num_prompt_tokens() const { return std::ssize(request.token_ids); }
};

// All tokens that are known of a sequence, admitted or not.
inline std::span<const int32_t> known_tokens(const Sequence& sequence) {
  return sequence.was_admitted() ? sequence.token_ids : sequence.group->request.token_ids;
}

inline int64_t num_uncomputed_tokens(const Sequence& sequence) {
  return std::ssize(known_tokens(sequence)) - sequence.num_computed_tokens;
}

inline int64_t num_output_tokens(const Sequence& sequence) {
  return std::ssize(known_tokens(sequence)) - sequence.group->num_prompt_tokens();
}

}  // namespace octavo
