// Decides what each step computes, and what its results mean. Knows no device and no thread.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "kv/block_manager.h"
#include "sched/output_sink.h"
#include "sched/scheduled_batch.h"
#include "sched/sequence.h"
#include "sched/waiting_queue.h"

namespace octavo {

struct SchedulerOptions {
  BlockManagerOptions blocks;
  int64_t vocab_size = 0;
  int64_t max_model_len = 0;
  int32_t max_num_seqs = 64;
  int64_t max_num_batched_tokens = 2048;
  // Prompt tokens of a step that decodes too, so that streams wait little for other people's
  // prompts. More while many wait: a 16th of them. Of no effect without chunked prefill.
  int64_t max_num_mixed_prefill_tokens = std::numeric_limits<int32_t>::max();
  // Such a step is filled up to a multiple of so many tokens, which the device computes anyway.
  int64_t mixed_step_multiple = 1;
  bool enable_chunked_prefill = true;
  SchedulingPolicy policy = SchedulingPolicy::kFcfs;
  uint64_t seed = 0;
  std::vector<int32_t> eos_token_ids;
  int64_t sliding_window = 0;       // keys that the widest layer sees; 0 = all
  int32_t max_steps_in_flight = 1;  // 2: a step may be scheduled before the last one's update
};

// Gauges, and counters since construction.
struct SchedulerStats {
  int64_t num_waiting = 0;  // sequences, preempted ones included
  int64_t num_running = 0;
  int64_t num_waiting_requests = 0;  // requests of which no sequence was ever admitted
  int64_t num_waiting_tokens = 0;    // of their prompts
  int64_t num_prompt_tokens = 0;
  int64_t num_generation_tokens = 0;
  int64_t num_prefix_query_tokens = 0;
  int64_t num_prefix_hit_tokens = 0;
  int64_t num_preemptions = 0;
  int64_t num_finished[5] = {0, 0, 0, 0, 0};  // by FinishReason
};

// A step is schedule() and then, with its result, update() - or fail() when there is none. In
// between it is in flight. Steps end in the order in which they were scheduled. Every sequence that
// add() makes is emitted to the sink with a finish reason exactly once.
//
// A step that is scheduled while another is in flight counts on the other's tokens without knowing
// them: they are drawn, so they stand in token_ids as kPendingToken. What turns out to be drawn for
// nothing, because the token before ended the sequence, is left out by update().
class Scheduler {
 public:
  // Throws: ConfigError. `sink` must outlive the scheduler.
  Scheduler(const SchedulerOptions& options, OutputSink& sink);

  // Tokens that prompt and output may have together: the smaller of the option and what all blocks
  // together hold, so that one sequence alone always fits.
  int64_t max_model_len() const { return max_model_len_; }

  // Adds a request with its n sequences; if host memory is short they end at once with kError.
  // Requires: the id is not live, 1 <= prompt tokens < max_model_len(), parameters in range.
  void add(Request&& request);

  // Finishes what is left of a request, or only one of its sequences. Unknown ids and ended
  // sequences are ignored.
  void abort(uint64_t request_id, int32_t sequence_index = kEverySequence);

  // Finishes every sequence. `error` goes with kError.
  void finish_all(FinishReason reason, const char* error);

  void reset_prefix_cache() { blocks_.reset_prefix_cache(); }

  // Fills the next step's batch, decodes first; a batch with sequences is in flight from then on.
  // Empty only when nothing is live or all that is live awaits a step in flight.
  // `now_ns` is on the clock of Request::arrival_ns. Requires: num_steps_in_flight() <
  // max_steps_in_flight.
  void schedule(ScheduledBatch& batch, int64_t now_ns = 0);

  int64_t num_steps_in_flight() const { return num_scheduled_steps_ - num_ended_steps_; }

  // Whether a step in flight draws tokens that the host must know before it can ask for the next
  // ones. Sequences that need that lose a turn if schedule() is called all the same.
  bool needs_results() const { return num_ended_steps_ < last_needed_step_; }

  // Takes in the result of the oldest batch in flight. Throws: CheckError, without having changed
  // anything, when the result does not fit the batch.
  void update(const ScheduledBatch& batch, const StepResult& result);

  // Ends the sequences of the oldest batch in flight with kError and forgets what they computed.
  void fail(const char* error);

  // Whether a request that lives, or that a step in flight names, has the adapter in this slot.
  bool uses_lora(int32_t lora_slot) const;

  bool has_live() const { return !groups_.empty(); }
  SchedulerStats stats() const;
  const BlockManager& blocks() const { return blocks_; }

  // Swaps in the ids of the requests that ended since the last call. `ids` is emptied first.
  void take_finished(std::vector<uint64_t>& ids);

  // Throws CheckError if any count, state, slot or reference is inconsistent. For tests.
  void self_check() const;

 private:
  Rank rank_of(const Request& request, int32_t index);
  std::unique_ptr<SequenceGroup> make_group(const Request& request);
  SequenceGroup& adopt(Request&& request);
  void shed(const Request& request);

  void schedule_decodes(ScheduledBatch& batch);
  int64_t num_mixed_prefill_tokens(int64_t num_decodes) const;
  void schedule_prefills(ScheduledBatch& batch);
  void admit_waiting(ScheduledBatch& batch);
  bool try_admit(Sequence& sequence, ScheduledBatch& batch);
  void start(Sequence& sequence, const PrefixMatch& match);
  PrefixMatch find_prefix(Sequence& sequence);
  void reserve_memory(Sequence& sequence) const;
  bool make_room(Sequence& sequence);
  void preempt(Sequence& sequence);
  void push_scheduled(Sequence& sequence, int64_t num_tokens, ScheduledBatch& batch);
  void count_first_admission(Sequence& sequence, int64_t num_cached);

  void update_sequence(Sequence& sequence, int64_t row, const ScheduledBatch& batch,
                       const StepResult& result);
  void take_back(Sequence& sequence);
  void note_computed(Sequence& sequence, int64_t num_tokens);
  void release_unseen(BlockTable& table, int64_t num_tokens);
  std::span<const LogprobEntry> new_prompt_logprobs(Sequence& sequence,
                                                    const ScheduledSequence& row,
                                                    std::span<const LogprobEntry> entries) const;
  FinishReason set_token(Sequence& sequence, int64_t position, int32_t token_id);
  bool is_end(const Sequence& sequence, int32_t token_id, int64_t num_output) const;
  void end_step();
  void end(Sequence& sequence, FinishReason reason, const char* error);
  void finish(Sequence& sequence, FinishReason reason);
  void release_siblings(SequenceGroup& group);
  void collect_finished();

  const SchedulerOptions options_;
  OutputSink& sink_;
  BlockManager blocks_;
  const int64_t max_model_len_;

  std::unordered_map<uint64_t, std::unique_ptr<SequenceGroup>> groups_;  // by request id
  WaitingQueue waiting_;
  std::vector<Sequence*> running_;  // by rank
  std::vector<int32_t> free_slots_;
  std::vector<SequenceGroup*> retired_;  // without unfinished sequences, to be destroyed
  std::vector<uint64_t> finished_ids_;

  // Steps count from 1. Those in flight are (num_ended_steps_, num_scheduled_steps_].
  int64_t num_scheduled_steps_ = 0;
  int64_t num_ended_steps_ = 0;
  int64_t last_needed_step_ = 0;                   // that drew for a group with needs_token_ids
  std::vector<std::vector<Sequence*>> scheduled_;  // [max_steps_in_flight]: rows, oldest step first
  std::vector<std::unique_ptr<SequenceGroup>> lingering_;  // ended, but steps in flight name them

  int64_t now_ns_ = 0;             // at the last schedule()
  int64_t budget_ = 0;             // tokens that the batch being filled has left
  Rank blocked_rank_;              // the sequence that was last refused for want of blocks ...
  int64_t blocked_num_free_ = -1;  // ... while this many were free

  uint64_t num_arrivals_ = 0;
  int64_t num_live_sequences_ = 0;
  int64_t num_held_siblings_ = 0;  // waiting outside the queue for sequence 0 of their group
  SchedulerStats stats_;
};

// Throws CheckError unless `result` has a row for each of the batch's sequences.
void check_step_result(const ScheduledBatch& batch, const StepResult& result);

// The seed of sequence `index` of a request: two sequences, or two requests whose seeds are close,
// share no stream of random numbers.
uint64_t sequence_seed(uint64_t request_seed, int32_t index);

}  // namespace octavo
