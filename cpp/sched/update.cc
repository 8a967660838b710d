// The second half of Scheduler: what a step's result means for its sequences.
#include <algorithm>
#include <limits>

#include "base/check.h"
#include "sched/scheduler.h"

namespace octavo {
namespace {

constexpr const char* kInvalidOutputError =
    "The model produced an invalid result for this request.";

std::span<const LogprobEntry> row_of(const std::vector<LogprobEntry>& entries,
                                     const std::vector<int32_t>& offsets, int64_t row) {
  if (offsets.empty()) return {};
  return std::span(entries).subspan(offsets[row], offsets[row + 1] - offsets[row]);
}

void check_offsets(const std::vector<int32_t>& offsets, size_t num_rows, size_t num_entries) {
  if (offsets.empty()) return;
  check(offsets.size() == num_rows + 1 && offsets.front() >= 0, "log-probability offsets missing");
  check(std::ranges::is_sorted(offsets), "log-probability offsets decrease");
  check(static_cast<size_t>(offsets.back()) <= num_entries, "log-probability offsets too large");
}

SequenceOutput describe(const Sequence& sequence) {
  SequenceOutput output;
  output.request_id = sequence.group->request.id;
  output.sequence_index = sequence.rank.index;
  output.num_prompt_tokens = sequence.group->num_prompt_tokens();
  output.num_cached_tokens = sequence.num_cached_tokens;
  output.has_grammar = sequence.group->has_grammar();
  output.queue_time_us = static_cast<uint32_t>(std::clamp<int64_t>(
      sequence.group->queue_time_ns / 1000, 0, std::numeric_limits<uint32_t>::max()));
  return output;
}

}  // namespace

void check_step_result(const ScheduledBatch& batch, const StepResult& result) {
  const size_t num_rows = batch.sequences.size();
  check(result.token_ids.size() == num_rows, "the step's result has another number of rows");
  check(result.is_invalid.size() == num_rows, "the step's result has another number of flags");
  check_offsets(result.logprob_offsets, num_rows, result.logprobs.size());
  check_offsets(result.prompt_logprob_offsets, num_rows, result.prompt_logprobs.size());
}

void Scheduler::update(const ScheduledBatch& batch, const StepResult& result) {
  check(batch.sequences.size() == scheduled_.size(), "not the batch that was scheduled");
  check_step_result(batch, result);
  for (size_t row = 0; row < scheduled_.size(); ++row) {
    update_sequence(*scheduled_[row], row, batch, result);
  }
  scheduled_.clear();
  collect_finished();
}

void Scheduler::fail(const char* error) {
  for (Sequence* sequence : scheduled_) end(*sequence, FinishReason::kError, error);
  scheduled_.clear();
  collect_finished();
}

void Scheduler::update_sequence(Sequence& sequence, int64_t row, const ScheduledBatch& batch,
                                const StepResult& result) {
  const ScheduledSequence& scheduled = batch.sequences[row];
  const int32_t token_id = result.token_ids[row];
  const bool is_token = token_id >= 0 && token_id < options_.vocab_size;
  const bool samples = scheduled.samples && !scheduled.is_deferred;
  if ((result.is_invalid[row] != 0 && !scheduled.is_deferred) || (samples && !is_token)) {
    end(sequence, FinishReason::kError, kInvalidOutputError);
    return;
  }
  // The last position of a deferred row is computed again, when its mask has come.
  advance(sequence, scheduled.num_scheduled_tokens - (scheduled.is_deferred ? 1 : 0));
  SequenceOutput output = describe(sequence);
  output.prompt_logprobs = new_prompt_logprobs(
      sequence, scheduled, row_of(result.prompt_logprobs, result.prompt_logprob_offsets, row));
  if (samples) {
    output.token_id = token_id;
    output.logprobs = row_of(result.logprobs, result.logprob_offsets, row);
    output.finish_reason = append_token(sequence, token_id);
    if (output.finish_reason == FinishReason::kStop) output.stop_token_id = token_id;
  }
  if (samples || !output.prompt_logprobs.empty()) sink_.emit(output);
  if (output.finish_reason != FinishReason::kNone) finish(sequence, output.finish_reason);
}

// The one place where tokens become computed. A scheduler that runs ahead of the device would call
// it when it schedules.
void Scheduler::advance(Sequence& sequence, int64_t num_tokens) {
  sequence.num_computed_tokens += num_tokens;
  blocks_.publish(sequence.blocks, sequence.token_ids, sequence.num_computed_tokens);
  const bool is_prompt_done = sequence.num_computed_tokens >= sequence.group->num_prompt_tokens();
  if (is_prompt_done && sequence.rank.index == 0) release_siblings(*sequence.group);
}

// Leaves out the positions that were reported before a preemption.
std::span<const LogprobEntry> Scheduler::new_prompt_logprobs(
    Sequence& sequence, const ScheduledSequence& row, std::span<const LogprobEntry> entries) const {
  if (row.sampling->prompt_logprobs < 0) return {};
  const int64_t begin = row.num_computed_tokens;
  const int64_t end = std::min(begin + row.num_scheduled_tokens, row.num_prompt_tokens - 1);
  if (begin >= end) return {};
  const int64_t num_old = std::clamp(sequence.num_reported_prompt_positions, begin, end) - begin;
  const int64_t entries_per_position = std::ssize(entries) / (end - begin);
  sequence.num_reported_prompt_positions = std::max(sequence.num_reported_prompt_positions, end);
  return entries.subspan(num_old * entries_per_position);
}

FinishReason Scheduler::append_token(Sequence& sequence, int32_t token_id) {
  sequence.token_ids.push_back(token_id);
  ++stats_.num_generation_tokens;
  if (is_end(sequence, token_id)) return FinishReason::kStop;
  const bool is_full = num_output_tokens(sequence) >= sequence.group->max_tokens;
  return is_full ? FinishReason::kLength : FinishReason::kNone;
}

// Whether the token just appended ends the sequence.
bool Scheduler::is_end(const Sequence& sequence, int32_t token_id) const {
  const SamplingParams& sampling = sequence.group->request.sampling;
  if (num_output_tokens(sequence) <= sampling.min_tokens) return false;
  const auto holds = [token_id](const std::vector<int32_t>& ids) {
    return std::ranges::find(ids, token_id) != ids.end();
  };
  return holds(sampling.stop_token_ids) || (!sampling.ignore_eos && holds(options_.eos_token_ids));
}

void Scheduler::abort(uint64_t request_id, int32_t sequence_index) {
  check(scheduled_.empty(), "abort in the middle of a step");
  const auto entry = groups_.find(request_id);
  if (entry == groups_.end()) return;
  for (Sequence& sequence : entry->second->sequences) {
    if (sequence_index != kEverySequence && sequence_index != sequence.rank.index) continue;
    end(sequence, FinishReason::kAbort, nullptr);
  }
  collect_finished();
}

void Scheduler::finish_all(FinishReason reason, const char* error) {
  scheduled_.clear();
  for (const auto& [id, group] : groups_) {
    for (Sequence& sequence : group->sequences) end(sequence, reason, error);
  }
  collect_finished();
}

// Ends a sequence for a reason other than its own tokens. After an error the content of its blocks
// is in doubt, so nobody else may find it.
void Scheduler::end(Sequence& sequence, FinishReason reason, const char* error) {
  if (sequence.state == SequenceState::kFinished) return;
  SequenceOutput output = describe(sequence);
  output.finish_reason = reason;
  output.error = error;
  sink_.emit(output);
  if (reason == FinishReason::kError) blocks_.discard(sequence.blocks);
  finish(sequence, reason);
}

void Scheduler::finish(Sequence& sequence, FinishReason reason) {
  SequenceGroup& group = *sequence.group;
  if (sequence.state == SequenceState::kRunning) {
    blocks_.release(sequence.blocks);
    free_slots_.push_back(sequence.slot);
    sequence.slot = -1;
  } else if (sequence.queue_position >= 0) {
    waiting_.remove(&sequence);
  } else {
    --num_held_siblings_;
  }
  sequence.state = SequenceState::kFinished;
  --num_live_sequences_;
  ++stats_.num_finished[static_cast<int>(reason)];
  if (sequence.rank.index == 0) release_siblings(group);
  if (--group.num_unfinished == 0) retired_.push_back(&group);
}

// From now on the siblings find the prompt's blocks, or will not by waiting any longer.
void Scheduler::release_siblings(SequenceGroup& group) {
  if (!group.holds_siblings) return;
  group.holds_siblings = false;
  for (Sequence& sibling : std::span(group.sequences).subspan(1)) {
    if (sibling.state != SequenceState::kWaiting) continue;
    waiting_.push(&sibling);
    --num_held_siblings_;
  }
}

void Scheduler::collect_finished() {
  if (retired_.empty() && std::ranges::all_of(running_, [](const Sequence* sequence) {
        return sequence->state == SequenceState::kRunning;
      })) {
    return;
  }
  std::erase_if(running_, [](const Sequence* sequence) {
    return sequence->state == SequenceState::kFinished;
  });
  for (const SequenceGroup* group : retired_) {
    const uint64_t id = group->request.id;
    if (group->is_waiting) {
      --stats_.num_waiting_requests;
      stats_.num_waiting_tokens -= group->num_prompt_tokens();
    }
    finished_ids_.push_back(id);
    groups_.erase(id);
  }
  retired_.clear();
}

}  // namespace octavo
