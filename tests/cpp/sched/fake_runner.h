// A model without a device: the next token is a hash of everything before it, read back through the
// block tables from simulated key/value memory. A block that is shared, reused or recomputed
// wrongly changes what is read, and wait() throws. A step is computed as late as can be, when it is
// waited for: all that launch() read is a copy, as on a device that lags behind.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <span>
#include <vector>

#include "base/check.h"
#include "runner/step_runner.h"
#include "sched/scheduler.h"

namespace octavo::testing {

inline uint64_t scramble(uint64_t x) {
  x = (x ^ (x >> 31)) * 0x7fb5d329728ea185;
  x = (x ^ (x >> 27)) * 0x81dadef4bc2dd44d;
  return x ^ (x >> 33);
}

// What a position's keys and values depend on: its token and all tokens before it.
inline uint64_t next_state(uint64_t state, int32_t token_id) {
  return scramble(state + 0x9e3779b97f4a7c15 * (static_cast<uint64_t>(token_id) + 1));
}

// An adapter changes all keys and values.
inline uint64_t first_state(int32_t lora_slot) { return static_cast<uint64_t>(lora_slot + 1); }

struct FakeRunnerOptions {
  int64_t vocab_size = 0;
  int64_t num_blocks = 0;
  int64_t block_size = 0;
  int32_t max_num_seqs = 0;
  int64_t max_num_batched_tokens = 0;
  int32_t max_steps_in_flight = 1;
  int64_t sliding_window = 0;
};

class FakeRunner final : public StepRunner {
 public:
  explicit FakeRunner(const FakeRunnerOptions& options)
      : options_(options), memory_(options.num_blocks * options.block_size, 0) {}

  int32_t max_steps_in_flight() const override { return options_.max_steps_in_flight; }

  void free_kv_cache() override {
    check(in_flight_.empty(), "a step in flight still uses the cache");
    memory_ = {};
  }

  void restore_kv_cache() override {
    if (const auto hook = before_restore) hook();
    memory_.assign(options_.num_blocks * options_.block_size, 0);
  }

  bool has_kv_cache() const { return !memory_.empty(); }

  void launch(const ScheduledBatch& batch) override {
    check(has_kv_cache(), "no step runs without the cache");
    // Called through copies, so that a hook can take itself away.
    if (const auto hook = before_run) hook(batch);
    check_batch(batch);
    if (batch.before_sampling) batch.before_sampling();
    check(std::ssize(in_flight_) < options_.max_steps_in_flight, "too many steps in flight");
    in_flight_.emplace_back(batch);
  }

  void wait(StepResult& result) override {
    check(!in_flight_.empty(), "nothing is in flight");
    Launched step = std::move(in_flight_.front());
    in_flight_.pop_front();
    result.clear();
    result.logprob_offsets.push_back(0);
    result.prompt_logprob_offsets.push_back(0);
    for (Row& row : step.rows) {
      if (row.token_ids.back() == kPendingToken) row.token_ids.back() = drawn_[row.scheduled.slot];
      run_row(row.scheduled, result);
    }
    if (const auto hook = after_run) hook(step.batch(), result);
  }

  // The token that follows `token_ids`: the oracle of a sequence run alone.
  int32_t token_after(std::span<const int32_t> token_ids, const SamplingParams& sampling,
                      uint64_t seed, std::span<const int32_t> banned) const {
    uint64_t state = 0;
    for (const int32_t id : token_ids) state = next_state(state, id);
    return sample(state, static_cast<int64_t>(token_ids.size()), sampling, seed, banned);
  }

  std::function<void(const ScheduledBatch&)> before_run;
  std::function<void()> before_restore;
  std::function<void(const ScheduledBatch&, StepResult&)> after_run;
  int64_t num_computed_tokens = 0;  // over all steps, recomputed ones included

 private:
  // A row with its own copies of what it points to.
  struct Row {
    explicit Row(const ScheduledSequence& row)
        : scheduled(row),
          token_ids(row.token_ids.begin(), row.token_ids.end()),
          block_table(row.block_table.begin(), row.block_table.end()),
          banned(row.banned_token_ids.begin(), row.banned_token_ids.end()) {
      scheduled.token_ids = token_ids;
      scheduled.block_table = block_table;
      scheduled.banned_token_ids = banned;
    }
    ScheduledSequence scheduled;
    std::vector<int32_t> token_ids, block_table, banned;
  };

  struct Launched {
    explicit Launched(const ScheduledBatch& batch) : num_tokens(batch.num_tokens) {
      for (const ScheduledSequence& row : batch.sequences) rows.emplace_back(row);
    }
    ScheduledBatch batch() const {
      ScheduledBatch copy;
      for (const Row& row : rows) copy.sequences.push_back(row.scheduled);
      copy.num_tokens = num_tokens;
      return copy;
    }
    std::deque<Row> rows;  // which do not move
    int64_t num_tokens;
  };

  struct SlotContent {
    uint64_t seed = 0;
    std::vector<int32_t> token_ids;
  };

  void check_batch(const ScheduledBatch& batch) {
    int64_t num_tokens = 0;
    std::vector<bool> is_used(options_.max_num_seqs, false);
    for (const ScheduledSequence& row : batch.sequences) {
      check(row.slot >= 0 && row.slot < options_.max_num_seqs && !is_used[row.slot], "slot");
      is_used[row.slot] = true;
      check(row.num_scheduled_tokens > 0, "a row without tokens");
      const int64_t end = row.num_computed_tokens + row.num_scheduled_tokens;
      const auto num_known = static_cast<int64_t>(row.token_ids.size());
      check(end <= num_known && row.samples == (end == num_known), "wrong positions");
      const auto pending = std::ranges::find(row.token_ids, kPendingToken);
      check(pending >= row.token_ids.end() - 1, "a pending token before the last");
      check(pending == row.token_ids.end() || !in_flight_.empty(), "nothing draws this token");
      check(pending == row.token_ids.end() || row.sampling->bad_words.empty(),
            "the bad words to ban depend on a token that is not known");
      check(static_cast<int64_t>(row.block_table.size()) * options_.block_size >= end, "uncovered");
      num_tokens += row.num_scheduled_tokens;
    }
    check(num_tokens == batch.num_tokens && num_tokens > 0, "wrong sum of tokens");
    check(num_tokens <= options_.max_num_batched_tokens, "budget exceeded");
  }

  // Kernels read tiles of 128 keys.
  int64_t first_key_read(int64_t position) const {
    if (options_.sliding_window == 0) return 0;
    return std::max<int64_t>(0, position - options_.sliding_window + 1) / 128 * 128;
  }

  uint64_t& at(const ScheduledSequence& row, int64_t position) {
    const int32_t block = row.block_table[position / options_.block_size];
    return memory_[block * options_.block_size + position % options_.block_size];
  }

  void check_slot(const ScheduledSequence& row) {
    SlotContent& slot = slots_[row.slot];
    if (!row.is_new_in_slot) {
      check(slot.seed == row.seed && slot.token_ids.size() <= row.token_ids.size(), "slot changed");
      check(std::equal(slot.token_ids.begin(), slot.token_ids.end(), row.token_ids.begin()),
            "slot changed hands without is_new_in_slot");
    }
    slot = {row.seed, {row.token_ids.begin(), row.token_ids.end()}};
  }

  void run_row(const ScheduledSequence& row, StepResult& result) {
    check_slot(row);
    uint64_t state = first_state(row.lora_slot);
    const int64_t first_key = first_key_read(row.num_computed_tokens);
    for (int64_t p = 0; p < row.num_computed_tokens; ++p) {
      state = next_state(state, row.token_ids[p]);
      check(p < first_key || at(row, p) == state,
            "the block table points to another prefix's keys and values");
    }
    const int64_t end = row.num_computed_tokens + row.num_scheduled_tokens;
    for (int64_t p = row.num_computed_tokens; p < end; ++p) {
      state = next_state(state, row.token_ids[p]);
      at(row, p) = state;
      if (row.sampling->prompt_logprobs >= 0 && p + 1 < row.num_prompt_tokens) {
        push_logprobs(row.token_ids[p + 1], row.sampling->prompt_logprobs, p,
                      result.prompt_logprobs);
      }
    }
    num_computed_tokens += row.num_scheduled_tokens;
    result.is_invalid.push_back(0);
    const int32_t token_id = row.samples ? sample_masked(row, state, end) : -1;
    result.token_ids.push_back(token_id);
    if (row.samples) drawn_[row.slot] = token_id;
    if (row.samples && row.sampling->logprobs >= 0) {
      push_logprobs(token_id, row.sampling->logprobs, end, result.logprobs);
    }
    result.logprob_offsets.push_back(static_cast<int32_t>(result.logprobs.size()));
    result.prompt_logprob_offsets.push_back(static_cast<int32_t>(result.prompt_logprobs.size()));
  }

  // 1 + k entries; the "log-probability" is the position, so that a test can see which came.
  static void push_logprobs(int32_t token_id, int32_t k, int64_t position,
                            std::vector<LogprobEntry>& entries) {
    for (int32_t rank = 0; rank <= k; ++rank) {
      entries.push_back({token_id, static_cast<float>(position), rank + 1});
    }
  }

  // A mask shows as its smallest token.
  int32_t sample_masked(const ScheduledSequence& row, uint64_t state, int64_t position) const {
    for (size_t word = 0; word < row.token_bitmask.size(); ++word) {
      if (row.token_bitmask[word] != 0) {
        return static_cast<int32_t>(word * 32) + std::countr_zero(row.token_bitmask[word]);
      }
    }
    return sample(state, position, *row.sampling, row.seed, row.banned_token_ids);
  }

  int32_t sample(uint64_t state, int64_t position, const SamplingParams& sampling, uint64_t seed,
                 std::span<const int32_t> banned) const {
    uint64_t draw = sampling.temperature > 0 ? scramble(state ^ scramble(seed + position)) : state;
    while (true) {
      const auto id = static_cast<int32_t>(draw % static_cast<uint64_t>(options_.vocab_size));
      if (std::find(banned.begin(), banned.end(), id) == banned.end()) return id;
      draw = scramble(draw + 1);
    }
  }

  const FakeRunnerOptions options_;
  std::vector<uint64_t> memory_;  // [num_blocks, block_size], the state after each position
  std::map<int32_t, SlotContent> slots_;
  std::map<int32_t, int32_t> drawn_;  // by slot
  std::deque<Launched> in_flight_;
};

inline FakeRunnerOptions fake_options(const SchedulerOptions& options) {
  return {options.vocab_size,    options.blocks.num_blocks,      options.blocks.block_size,
          options.max_num_seqs,  options.max_num_batched_tokens, options.max_steps_in_flight,
          options.sliding_window};
}

}  // namespace octavo::testing
