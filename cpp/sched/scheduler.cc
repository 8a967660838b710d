#include "sched/scheduler.h"

#include <algorithm>
#include <limits>
#include <new>
#include <string>
#include <utility>

#include "base/check.h"
#include "base/errors.h"

namespace octavo {
namespace {

// Under kPriority a request takes its turn as if it had arrived this many requests later for each
// level of priority. Bounded, so that a stream of urgent requests cannot starve the others.
constexpr int64_t kArrivalsPerPriority = 1024;

// While others run, an admission leaves this share of the blocks free for them to grow into:
// without it a full pool admits and preempts the same sequence over and over.
constexpr int64_t kReserveDivisor = 64;

// In about so many steps all prompts that are known begin. With it the throughput of a full queue
// is that of steps without a limit, by the step times of an H200:
// bench/results/2026-11-29-mixed-steps.md.
constexpr int64_t kStepsOfBacklog = 16;

constexpr const char* kHostMemoryError = "The server ran out of memory for this request.";

// Source: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

int64_t capacity_in_tokens(const BlockManager& blocks) {
  return blocks.num_blocks() * blocks.block_size();
}

SchedulerOptions validated(SchedulerOptions options) {
  if (options.vocab_size < 1) throw ConfigError("vocab_size must be at least 1");
  if (options.max_model_len < 2) throw ConfigError("max_model_len must be at least 2");
  if (options.max_num_seqs < 1) throw ConfigError("max_num_seqs must be at least 1");
  if (options.max_num_batched_tokens < options.max_num_seqs) {
    throw ConfigError("max_num_batched_tokens must be at least max_num_seqs");
  }
  if (options.max_num_mixed_prefill_tokens < 1) {
    throw ConfigError("max_num_mixed_prefill_tokens must be at least 1");
  }
  if (options.mixed_step_multiple < 1) {
    throw ConfigError("mixed_step_multiple must be at least 1");
  }
  if (options.max_steps_in_flight < 1 || options.max_steps_in_flight > 2) {
    throw ConfigError("max_steps_in_flight must be 1 or 2");
  }
  if (options.max_num_batched_tokens > std::numeric_limits<int32_t>::max()) {
    throw ConfigError("max_num_batched_tokens must be below 2^31");
  }
  // More would have no effect, and could overflow.
  options.max_num_mixed_prefill_tokens =
      std::min(options.max_num_mixed_prefill_tokens, options.max_num_batched_tokens);
  options.mixed_step_multiple =
      std::min(options.mixed_step_multiple, options.max_num_batched_tokens);
  return options;
}

// Whether what the sampler is asked for the next token follows from the tokens before, beyond what
// the device keeps by slot.
bool needs_token_ids(const SamplingParams& sampling) {
  return std::ranges::any_of(sampling.bad_words, [](const auto& word) { return word.size() > 1; });
}

// Whether the token in flight is the last that max_tokens allows.
bool awaits_end(const Sequence& sequence) {
  return num_output_tokens(sequence) >= sequence.group->max_tokens;
}

// A token in flight can be built upon unless it is the last, or the host has to see it.
bool is_ready(const Sequence& sequence) {
  if (!sequence.has_pending_token()) return true;
  return !awaits_end(sequence) && !sequence.group->needs_token_ids;
}

bool reports_prompt_logprobs(const Sequence& sequence) {
  const SequenceGroup& group = *sequence.group;
  return group.wants_prompt_logprobs() && sequence.rank.index == 0 &&
         sequence.num_reported_prompt_positions < group.num_prompt_tokens() - 1;
}

}  // namespace

uint64_t sequence_seed(uint64_t request_seed, int32_t index) {
  return mix(mix(request_seed) + static_cast<uint64_t>(index));
}

Scheduler::Scheduler(const SchedulerOptions& options, OutputSink& sink)
    : options_(validated(options)),
      sink_(sink),
      blocks_(options.blocks),
      max_model_len_(std::min(options.max_model_len, capacity_in_tokens(blocks_))) {
  if (max_model_len_ < 2) throw ConfigError("the KV cache must hold at least 2 tokens");
  if (!options.enable_chunked_prefill && options.max_num_batched_tokens < max_model_len_) {
    throw ConfigError("without chunked prefill, max_num_batched_tokens must be at least " +
                      std::to_string(max_model_len_) + ", the longest prompt and output");
  }
  running_.reserve(options.max_num_seqs);
  scheduled_.resize(options.max_steps_in_flight);
  for (auto& rows : scheduled_) rows.reserve(options.max_num_seqs);
  for (int32_t slot = options.max_num_seqs; slot-- > 0;) free_slots_.push_back(slot);
}

Rank Scheduler::rank_of(const Request& request, int32_t index) {
  const int64_t levels = options_.policy == SchedulingPolicy::kPriority ? request.priority : 0;
  const int64_t turn = static_cast<int64_t>(num_arrivals_) + levels * kArrivalsPerPriority;
  return {turn, num_arrivals_, index};
}

std::unique_ptr<SequenceGroup> Scheduler::make_group(const Request& request) {
  const SamplingParams& sampling = request.sampling;
  auto group = std::make_unique<SequenceGroup>();
  group->max_tokens =
      std::min<int64_t>(sampling.max_tokens, max_model_len_ - std::ssize(request.token_ids));
  if (sampling.min_tokens > 0) {
    group->banned_token_ids = options_.eos_token_ids;
    group->banned_token_ids.insert(group->banned_token_ids.end(), sampling.stop_token_ids.begin(),
                                   sampling.stop_token_ids.end());
  }
  if (sampling.prompt_logprobs >= 0) {
    group->sampling_after_prompt = sampling;
    group->sampling_after_prompt.prompt_logprobs = -1;
  }
  const uint64_t seed = sampling.seed.value_or(mix(mix(options_.seed) ^ request.id));
  group->sequences.resize(sampling.n);
  for (int32_t index = 0; index < sampling.n; ++index) {
    Sequence& sequence = group->sequences[index];
    sequence.group = group.get();
    sequence.rank = rank_of(request, index);
    sequence.seed = sequence_seed(seed, index);
    sequence.blocks.cache_salt = request.cache_salt;
    sequence.blocks.lora_id = request.lora_id;
  }
  group->num_unfinished = sampling.n;
  group->holds_siblings = sampling.n > 1;
  group->needs_token_ids = needs_token_ids(sampling) || !request.token_mask.empty();
  return group;
}

void Scheduler::add(Request&& request) {
  const int64_t num_prompt_tokens = std::ssize(request.token_ids);
  check(num_prompt_tokens > 0 && num_prompt_tokens < max_model_len_, "prompt length out of range");
  check(request.sampling.n > 0, "a request without sequences");
  check(!groups_.contains(request.id), "a request with this id is live");
  try {
    SequenceGroup& group = adopt(std::move(request));
    waiting_.push(&group.sequences[0]);
    ++num_arrivals_;
    num_live_sequences_ += group.num_unfinished;
    num_held_siblings_ += group.num_unfinished - 1;
    ++stats_.num_waiting_requests;
    stats_.num_waiting_tokens += num_prompt_tokens;
  } catch (const std::bad_alloc&) {
    shed(request);
  }
}

// All of add() that can fail. Moves from `request` last, so that a failure leaves it whole.
SequenceGroup& Scheduler::adopt(Request&& request) {
  waiting_.reserve(num_live_sequences_ + request.sampling.n);
  SequenceGroup& group = *groups_.try_emplace(request.id, make_group(request)).first->second;
  group.request = std::move(request);
  return group;
}

void Scheduler::shed(const Request& request) {
  SequenceOutput output;
  output.request_id = request.id;
  output.num_prompt_tokens = std::ssize(request.token_ids);
  output.has_grammar = !request.token_mask.empty();
  output.finish_reason = FinishReason::kError;
  output.error = kHostMemoryError;
  for (; output.sequence_index < request.sampling.n; ++output.sequence_index) sink_.emit(output);
  stats_.num_finished[static_cast<int>(FinishReason::kError)] += request.sampling.n;
  finished_ids_.push_back(request.id);
}

void Scheduler::schedule(ScheduledBatch& batch, int64_t now_ns) {
  check(num_steps_in_flight() < options_.max_steps_in_flight, "too many steps are in flight");
  ++num_scheduled_steps_;
  batch.clear();
  now_ns_ = now_ns;
  batch.sequences.reserve(options_.max_num_seqs);
  budget_ = options_.max_num_batched_tokens;
  schedule_decodes(batch);
  if (!batch.sequences.empty() && options_.enable_chunked_prefill) {
    budget_ = std::min(budget_, num_mixed_prefill_tokens(batch.num_tokens));
  }
  schedule_prefills(batch);
  admit_waiting(batch);
  if (batch.sequences.empty()) --num_scheduled_steps_;
  collect_finished();
  check(num_steps_in_flight() > 0 || groups_.empty(), "live sequences, but none can be scheduled");
}

// Least rank first: a sequence can lose its blocks only to one that comes before it, so the first
// of all always advances and finishes. This is what rules out livelock.
void Scheduler::schedule_decodes(ScheduledBatch& batch) {
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence& sequence = *running_[i];
    if (num_uncomputed_tokens(sequence) != 1 || !is_ready(sequence)) continue;
    if (make_room(sequence)) push_scheduled(sequence, 1, batch);
  }
}

// Few tokens beside decodes keep the gaps of streams short; but each step reads all weights, so the
// more there is to compute, the larger the share of it that a step takes.
int64_t Scheduler::num_mixed_prefill_tokens(int64_t num_decodes) const {
  int64_t num_left = stats_.num_waiting_tokens;
  for (const Sequence* sequence : running_) num_left += num_uncomputed_tokens(*sequence);
  const int64_t multiple = options_.mixed_step_multiple;
  const int64_t most =
      num_decodes + std::max(options_.max_num_mixed_prefill_tokens, num_left / kStepsOfBacklog);
  return (most + multiple - 1) / multiple * multiple - num_decodes;
}

// Prompts in progress. Their blocks were taken at admission.
void Scheduler::schedule_prefills(ScheduledBatch& batch) {
  for (Sequence* sequence : running_) {
    if (budget_ == 0) break;
    const int64_t num_left = num_uncomputed_tokens(*sequence);
    if (num_left > 1) push_scheduled(*sequence, std::min(num_left, budget_), batch);
  }
}

// Strictly in order: nobody overtakes a sequence that does not fit yet.
void Scheduler::admit_waiting(ScheduledBatch& batch) {
  while (budget_ > 0 && !waiting_.empty() && !free_slots_.empty()) {
    if (!try_admit(*waiting_.front(), batch)) break;
  }
}

bool Scheduler::try_admit(Sequence& sequence, ScheduledBatch& batch) {
  const int64_t num_free = blocks_.num_free_blocks();
  // A long prompt at the head would otherwise be looked up in the cache at every step.
  if (sequence.has_pending_token()) return false;  // just preempted, and drawn in its last slot
  const bool nothing_changed = sequence.rank == blocked_rank_ && num_free <= blocked_num_free_;
  if (nothing_changed && !running_.empty()) return false;

  const int64_t num_tokens = std::ssize(known_tokens(sequence));
  const PrefixMatch match = find_prefix(sequence);
  const int64_t num_left = num_tokens - match.num_tokens;
  if (!options_.enable_chunked_prefill && num_left > budget_) return false;
  const int64_t reserve = running_.empty() ? 0 : blocks_.num_blocks() / kReserveDivisor;
  if (blocks_.num_blocks_needed(match, num_tokens) + reserve > num_free) {
    blocked_rank_ = sequence.rank;
    blocked_num_free_ = num_free;
    return false;
  }
  try {
    reserve_memory(sequence);
  } catch (const std::bad_alloc&) {
    end(sequence, FinishReason::kError, kHostMemoryError);
    return true;
  }
  start(sequence, match);
  push_scheduled(sequence, std::min(num_left, budget_), batch);
  return true;
}

// All known tokens get their blocks now, so that a prompt in progress never waits for more.
void Scheduler::start(Sequence& sequence, const PrefixMatch& match) {
  blocks_.allocate(sequence.blocks, match, std::ssize(known_tokens(sequence)));
  waiting_.remove(&sequence);
  if (!sequence.was_admitted()) {
    count_first_admission(sequence, match.num_tokens);
    const std::vector<int32_t>& prompt = sequence.group->request.token_ids;
    sequence.token_ids.assign(prompt.begin(), prompt.end());
  }
  sequence.num_computed_tokens = match.num_tokens;
  sequence.state = SequenceState::kRunning;
  sequence.slot = free_slots_.back();
  sequence.is_new_in_slot = true;
  free_slots_.pop_back();
  const auto by_rank = [](const Sequence* a, const Sequence* b) { return a->rank < b->rank; };
  running_.insert(std::ranges::upper_bound(running_, &sequence, by_rank), &sequence);
}

PrefixMatch Scheduler::find_prefix(Sequence& sequence) {
  // Positions whose log-probabilities are still to be reported must be computed.
  const int64_t limit = reports_prompt_logprobs(sequence) ? sequence.num_reported_prompt_positions
                                                          : std::numeric_limits<int64_t>::max();
  const std::span<const int32_t> token_ids = known_tokens(sequence);
  if (blocks_.is_prefix_caching()) return blocks_.match_cached(sequence.blocks, token_ids, limit);

  const SequenceGroup& group = *sequence.group;
  for (const Sequence& sibling : group.sequences) {
    if (sibling.state == SequenceState::kRunning &&
        sibling.num_computed_tokens >= group.num_prompt_tokens()) {
      const int64_t num_common = std::min(group.num_prompt_tokens(), std::ssize(token_ids) - 1);
      return blocks_.match_shared(sibling.blocks, std::min(num_common, limit));
    }
  }
  return {};
}

// Everything that the sequence's vectors will ever hold, so that its steps allocate nothing.
void Scheduler::reserve_memory(Sequence& sequence) const {
  const int64_t max_tokens = sequence.group->num_prompt_tokens() + sequence.group->max_tokens;
  const int64_t max_blocks = blocks_.num_blocks_for(max_tokens);
  sequence.token_ids.reserve(max_tokens);
  sequence.blocks.block_ids.reserve(max_blocks);
  if (blocks_.is_prefix_caching()) sequence.blocks.hashes.reserve(max_blocks);
}

void Scheduler::count_first_admission(Sequence& sequence, int64_t num_cached) {
  SequenceGroup& group = *sequence.group;
  sequence.num_cached_tokens = num_cached;
  if (!group.is_waiting) return;
  group.is_waiting = false;
  group.queue_time_ns = now_ns_ - group.request.arrival_ns;
  --stats_.num_waiting_requests;
  stats_.num_waiting_tokens -= group.num_prompt_tokens();
  stats_.num_prompt_tokens += group.num_prompt_tokens();
  if (!blocks_.is_prefix_caching()) return;
  stats_.num_prefix_query_tokens += group.num_prompt_tokens();
  stats_.num_prefix_hit_tokens += num_cached;
}

// Gets the block that the next token needs, from the youngest if none is free. False if
// `sequence` is the youngest itself and was preempted.
bool Scheduler::make_room(Sequence& sequence) {
  while (!blocks_.grow(sequence.blocks, std::ssize(sequence.token_ids))) {
    Sequence& youngest = *running_.back();
    preempt(youngest);
    if (&youngest == &sequence) return false;
  }
  return true;
}

void Scheduler::preempt(Sequence& sequence) {
  check(running_.back() == &sequence, "only the youngest is preempted");
  running_.pop_back();
  blocks_.release(sequence.blocks);
  free_slots_.push_back(sequence.slot);
  sequence.slot = -1;
  sequence.num_computed_tokens = 0;
  sequence.state = SequenceState::kPreempted;
  waiting_.push(&sequence);
  ++stats_.num_preemptions;
}

void Scheduler::push_scheduled(Sequence& sequence, int64_t num_tokens, ScheduledBatch& batch) {
  SequenceGroup& group = *sequence.group;
  const SamplingParams& sampling = group.request.sampling;
  ScheduledSequence& row = batch.sequences.emplace_back();
  row.request_id = group.request.id;
  row.sequence_index = sequence.rank.index;
  row.slot = sequence.slot;
  row.is_new_in_slot = sequence.is_new_in_slot;
  row.token_ids = sequence.token_ids;
  row.num_prompt_tokens = group.num_prompt_tokens();
  row.num_computed_tokens = sequence.num_computed_tokens;
  row.num_scheduled_tokens = static_cast<int32_t>(num_tokens);
  row.block_table = sequence.blocks.block_ids;
  row.lora_slot = group.request.lora_slot;
  row.samples = num_tokens == num_uncomputed_tokens(sequence);
  row.sampling = group.wants_prompt_logprobs() && !reports_prompt_logprobs(sequence)
                     ? &group.sampling_after_prompt
                     : &sampling;
  row.seed = sequence.seed;
  row.num_pooled_tokens = sequence.num_reported_prompt_positions;
  row.token_bitmask = group.request.token_mask;
  if (num_output_tokens(sequence) < sampling.min_tokens) {
    row.banned_token_ids = group.banned_token_ids;
  }
  scheduled_[num_steps_in_flight() - 1].push_back(&sequence);
  batch.num_tokens += num_tokens;
  budget_ -= num_tokens;
  sequence.num_computed_tokens += num_tokens;
  group.last_step = num_scheduled_steps_;
  if (!row.samples) return;
  sequence.is_new_in_slot = false;
  sequence.token_ids.push_back(kPendingToken);
  if (group.needs_token_ids) last_needed_step_ = num_scheduled_steps_;
}

SchedulerStats Scheduler::stats() const {
  SchedulerStats stats = stats_;
  stats.num_waiting = waiting_.size() + num_held_siblings_;
  stats.num_running = std::ssize(running_);
  return stats;
}

void Scheduler::take_finished(std::vector<uint64_t>& ids) {
  ids.clear();
  ids.swap(finished_ids_);
}

bool Scheduler::uses_lora(int32_t lora_slot) const {
  const auto uses = [lora_slot](const auto& group) {
    return group->request.lora_slot == lora_slot;
  };
  return std::ranges::any_of(groups_, uses, [](const auto& entry) { return entry.second.get(); }) ||
         std::ranges::any_of(lingering_, uses);
}

void Scheduler::self_check() const {
  std::vector<const BlockTable*> tables;
  std::vector<bool> is_taken(options_.max_num_seqs, false);
  for (const int32_t slot : free_slots_) {
    check(!is_taken[slot], "a slot is free twice");
    is_taken[slot] = true;
  }
  for (size_t i = 0; i < running_.size(); ++i) {
    const Sequence& sequence = *running_[i];
    check(sequence.state == SequenceState::kRunning, "a sequence runs in another state");
    check(!is_taken[sequence.slot], "two sequences share a slot");
    is_taken[sequence.slot] = true;
    check(i == 0 || running_[i - 1]->rank < sequence.rank, "running sequences are out of order");
    check(num_uncomputed_tokens(sequence) >= 1, "a running sequence has nothing to compute");
    tables.push_back(&sequence.blocks);
  }
  check(running_.size() + free_slots_.size() == is_taken.size(), "a slot was lost");
  int64_t num_unfinished = 0;
  for (const auto& [id, group] : groups_) {
    check(group->request.id == id && group->num_unfinished > 0, "a finished request is kept");
    num_unfinished += group->num_unfinished;
    for (const Sequence& sequence : group->sequences) {
      const bool is_running = sequence.state == SequenceState::kRunning;
      check(is_running == (sequence.slot >= 0), "slot and state disagree");
      check(is_running || sequence.blocks.block_ids.empty(), "blocks held without running");
      check(is_running || sequence.state == SequenceState::kFinished ||
                sequence.num_computed_tokens == 0,
            "computed tokens without blocks");
    }
  }
  check(num_unfinished == num_live_sequences_, "the live count is off");
  check(std::ssize(running_) + waiting_.size() + num_held_siblings_ == num_unfinished,
        "a live sequence is in no list");
  blocks_.self_check(tables);
}

}  // namespace octavo
