// A scheduler with a fake model and a sink that remembers: steps run one by one, every output is
// kept, and each sequence is compared with what its request gives when it runs alone.
#pragma once

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "sched/fake_runner.h"
#include "sched/scheduler.h"

namespace octavo::testing {

// All that one sequence emitted.
struct Collected {
  std::vector<int32_t> token_ids;
  std::vector<LogprobEntry> logprobs;
  std::vector<LogprobEntry> prompt_logprobs;
  FinishReason finish_reason = FinishReason::kNone;
  int32_t stop_token_id = -1;
  int64_t num_cached_tokens = 0;
  std::string error;
};

using SequenceName = std::pair<uint64_t, int32_t>;  // request id, sequence index

class Collector final : public OutputSink {
 public:
  void emit(const SequenceOutput& output) override {
    Collected& sequence = sequences[{output.request_id, output.sequence_index}];
    check(sequence.finish_reason == FinishReason::kNone, "an output after the last one");
    if (output.token_id >= 0) sequence.token_ids.push_back(output.token_id);
    append(sequence.logprobs, output.logprobs);
    append(sequence.prompt_logprobs, output.prompt_logprobs);
    sequence.finish_reason = output.finish_reason;
    sequence.stop_token_id = output.stop_token_id;
    sequence.num_cached_tokens = output.num_cached_tokens;
    if (output.error != nullptr) sequence.error = output.error;
  }

  std::map<SequenceName, Collected> sequences;

 private:
  static void append(std::vector<LogprobEntry>& to, std::span<const LogprobEntry> from) {
    to.insert(to.end(), from.begin(), from.end());
  }
};

// Small sizes, so that every limit is met often.
inline SchedulerOptions small_options() {
  SchedulerOptions options;
  options.blocks.num_blocks = 64;
  options.blocks.block_size = 4;
  options.blocks.secret = {3, 5};
  options.vocab_size = 50;
  options.max_model_len = 128;
  options.max_num_seqs = 8;
  options.max_num_batched_tokens = 32;
  options.seed = 9;
  options.eos_token_ids = {0};
  return options;
}

class Simulation {
 public:
  explicit Simulation(const SchedulerOptions& options)
      : runner(fake_options(options)), scheduler(options, sink), options_(options) {}

  void add(const Request& request) {
    requests_[request.id] = request;
    scheduler.add(Request(request));
  }

  // One step with all counts checked, as the engine does it; false if nothing was live.
  bool step() {
    if (scheduler.needs_results()) end_step();
    const bool was_live = scheduler.has_live();
    scheduler.schedule(batch);
    scheduler.self_check();
    const bool is_launched = !batch.sequences.empty();
    if (is_launched) {
      runner.launch(batch);
      in_flight_.push_back(batch);
    }
    const int64_t num_left = is_launched ? options_.max_steps_in_flight - 1 : 0;
    if (std::ssize(in_flight_) > num_left) end_step();
    return was_live;
  }

  // Takes in all that is in flight.
  void drain() {
    while (!in_flight_.empty()) end_step();
  }

  // Steps until nothing is live; throws if that takes longer than any sound schedule would.
  int64_t run() {
    int64_t num_steps = 0;
    while (step()) check(++num_steps < 100000, "the scheduler makes no progress");
    return num_steps;
  }

  const Collected& output(uint64_t id, int32_t index = 0) { return sink.sequences.at({id, index}); }

  // The twin: what the sequence gives alone, by the definitions of SamplingParams.
  Collected alone(uint64_t id, int32_t index = 0) const {
    const Request& request = requests_.at(id);
    const SamplingParams& p = request.sampling;
    std::vector<int32_t> banned = options_.eos_token_ids;
    banned.insert(banned.end(), p.stop_token_ids.begin(), p.stop_token_ids.end());
    const uint64_t seed = sequence_seed(p.seed.value_or(0), index);
    std::vector<int32_t> token_ids = request.token_ids;
    Collected expected;
    while (expected.finish_reason == FinishReason::kNone) {
      const auto num_output = static_cast<int32_t>(expected.token_ids.size());
      const bool bans = num_output < p.min_tokens;
      const int32_t id_after =
          runner.token_after(token_ids, p, seed, bans ? banned : std::vector<int32_t>{});
      token_ids.push_back(id_after);
      expected.token_ids.push_back(id_after);
      const bool is_eos = !p.ignore_eos && contains(options_.eos_token_ids, id_after);
      if (!bans && (is_eos || contains(p.stop_token_ids, id_after))) {
        expected.finish_reason = FinishReason::kStop;
        expected.stop_token_id = id_after;
      } else if (num_output + 1 == p.max_tokens ||
                 static_cast<int64_t>(token_ids.size()) == scheduler.max_model_len()) {
        expected.finish_reason = FinishReason::kLength;
      }
    }
    return expected;
  }

  FakeRunner runner;
  Collector sink;
  Scheduler scheduler;
  ScheduledBatch batch;
  StepResult result;

 private:
  void end_step() {
    runner.wait(result);
    scheduler.update(in_flight_.front(), result);
    in_flight_.pop_front();
    scheduler.self_check();
  }

  static bool contains(const std::vector<int32_t>& ids, int32_t id) {
    return std::find(ids.begin(), ids.end(), id) != ids.end();
  }

  const SchedulerOptions options_;
  std::deque<ScheduledBatch> in_flight_;
  std::map<uint64_t, Request> requests_;
};

}  // namespace octavo::testing
