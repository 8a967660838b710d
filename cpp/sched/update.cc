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

std::span<const float> row_of(const std::vector<float>& values, const std::vector<int32_t>& offsets,
                              int64_t row) {
  if (offsets.empty()) return {};
  return std::span(values).subspan(offsets[row], offsets[row + 1] - offsets[row]);
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
  check_offsets(result.pooled_offsets, num_rows, result.pooled.size());
}

void Scheduler::update(const ScheduledBatch& batch, const StepResult& result) {
  const std::vector<Sequence*>& rows = scheduled_.front();
  check(num_steps_in_flight() > 0 && batch.sequences.size() == rows.size(),
        "not the batch that was scheduled");
  check_step_result(batch, result);
  for (size_t row = 0; row < rows.size(); ++row) update_sequence(*rows[row], row, batch, result);
  end_step();
}

void Scheduler::fail(const char* error) {
  check(num_steps_in_flight() > 0, "no step is in flight");
  for (Sequence* sequence : scheduled_.front()) end(*sequence, FinishReason::kError, error);
  end_step();
}

void Scheduler::end_step() {
  ++num_ended_steps_;
  scheduled_.front().clear();
  std::ranges::rotate(scheduled_, scheduled_.begin() + 1);
  std::erase_if(lingering_,
                [this](const auto& group) { return group->last_step <= num_ended_steps_; });
  collect_finished();
}

void Scheduler::update_sequence(Sequence& sequence, int64_t row, const ScheduledBatch& batch,
                                const StepResult& result) {
  if (sequence.state == SequenceState::kFinished) return;  // it ended while this was in flight
  const ScheduledSequence& scheduled = batch.sequences[row];
  const int32_t token_id = result.token_ids[row];
  const bool is_token = token_id >= 0 && token_id < options_.vocab_size;
  const bool samples = scheduled.samples && !scheduled.is_deferred;
  if ((result.is_invalid[row] != 0 && !scheduled.is_deferred) || (samples && !is_token)) {
    end(sequence, FinishReason::kError, kInvalidOutputError);
    return;
  }
  const auto num_known = std::ssize(scheduled.token_ids);
  if (scheduled.is_deferred) take_back(sequence);
  const int64_t num_taken_back = scheduled.is_deferred ? 1 : 0;
  note_computed(sequence,
                scheduled.num_computed_tokens + scheduled.num_scheduled_tokens - num_taken_back);
  SequenceOutput output = describe(sequence);
  output.prompt_logprobs = new_prompt_logprobs(
      sequence, scheduled, row_of(result.prompt_logprobs, result.prompt_logprob_offsets, row));
  output.pooled = row_of(result.pooled, result.pooled_offsets, row);
  if (samples) {
    output.token_id = token_id;
    output.logprobs = row_of(result.logprobs, result.logprob_offsets, row);
    output.finish_reason = set_token(sequence, num_known, token_id);
    if (output.finish_reason == FinishReason::kStop) output.stop_token_id = token_id;
  }
  if (samples || !output.prompt_logprobs.empty()) sink_.emit(output);
  if (output.finish_reason != FinishReason::kNone) finish(sequence, output.finish_reason);
}

// The last position of a deferred row is computed again, when its mask has come. The slot has seen
// a token that does not count, so it is built anew. No later step was scheduled meanwhile, because
// the group's token ids are needed.
void Scheduler::take_back(Sequence& sequence) {
  check(sequence.token_ids.back() == kPendingToken, "a deferred sequence went on");
  sequence.token_ids.pop_back();
  --sequence.num_computed_tokens;
  sequence.is_new_in_slot = true;
}

// From here on the keys and values of the first positions are known to be right, and so are their
// tokens. A sequence that was preempted meanwhile has lost them again.
void Scheduler::note_computed(Sequence& sequence, int64_t num_tokens) {
  if (sequence.state == SequenceState::kRunning) {
    blocks_.publish(sequence.blocks, sequence.token_ids, num_tokens);
    release_unseen(sequence.blocks, num_tokens);
  }
  const bool is_prompt_done = num_tokens >= sequence.group->num_prompt_tokens();
  if (is_prompt_done && sequence.rank.index == 0) release_siblings(*sequence.group);
}

// Gives back what no later position sees. A step in flight starts at num_tokens or later.
void Scheduler::release_unseen(BlockTable& table, int64_t num_tokens) {
  // Attention reads keys in aligned tiles of at most this many and masks what the window hides.
  constexpr int64_t kKeyTile = 128;
  if (options_.sliding_window == 0) return;
  const int64_t first_key = num_tokens - options_.sliding_window + 1;
  if (first_key > 0) blocks_.release_leading(table, first_key / kKeyTile * kKeyTile);
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

FinishReason Scheduler::set_token(Sequence& sequence, int64_t position, int32_t token_id) {
  check(sequence.token_ids[position] == kPendingToken, "a token is drawn twice");
  sequence.token_ids[position] = token_id;
  ++stats_.num_generation_tokens;
  const int64_t num_output = position + 1 - sequence.group->num_prompt_tokens();
  if (is_end(sequence, token_id, num_output)) return FinishReason::kStop;
  return num_output >= sequence.group->max_tokens ? FinishReason::kLength : FinishReason::kNone;
}

// Whether `token_id`, as output token number `num_output`, ends the sequence.
bool Scheduler::is_end(const Sequence& sequence, int32_t token_id, int64_t num_output) const {
  const SamplingParams& sampling = sequence.group->request.sampling;
  if (num_output <= sampling.min_tokens) return false;
  const auto holds = [token_id](const std::vector<int32_t>& ids) {
    return std::ranges::find(ids, token_id) != ids.end();
  };
  return holds(sampling.stop_token_ids) || (!sampling.ignore_eos && holds(options_.eos_token_ids));
}

void Scheduler::abort(uint64_t request_id, int32_t sequence_index) {
  const auto entry = groups_.find(request_id);
  if (entry == groups_.end()) return;
  for (Sequence& sequence : entry->second->sequences) {
    if (sequence_index != kEverySequence && sequence_index != sequence.rank.index) continue;
    end(sequence, FinishReason::kAbort, nullptr);
  }
  collect_finished();
}

void Scheduler::finish_all(FinishReason reason, const char* error) {
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
    auto entry = groups_.extract(id);
    if (group->last_step > num_ended_steps_) lingering_.push_back(std::move(entry.mapped()));
  }
  retired_.clear();
}

}  // namespace octavo
