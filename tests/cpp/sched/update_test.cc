// What a step's result means: how sequences end, what is emitted, and how errors are contained.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "base/check.h"
#include "sched/scheduler.h"
#include "sched/simulation.h"

namespace octavo {
namespace {

using testing::Collected;
using testing::Simulation;
using testing::small_options;

Request make_request(uint64_t id, int64_t num_tokens, int32_t max_tokens) {
  Request request;
  request.id = id;
  for (int64_t i = 0; i < num_tokens; ++i) {
    request.token_ids.push_back(static_cast<int32_t>((id * 11 + i * 7) % 50));
  }
  request.sampling.temperature = 0.0f;
  request.sampling.max_tokens = max_tokens;
  return request;
}

// The tokens that a request gives when nothing ends it early.
std::vector<int32_t> endless_output(const Request& request, int32_t num_tokens) {
  Simulation simulation(small_options());
  Request endless = request;
  endless.sampling.ignore_eos = true;
  endless.sampling.stop_token_ids.clear();
  endless.sampling.min_tokens = 0;
  endless.sampling.max_tokens = num_tokens;
  simulation.add(endless);
  simulation.run();
  return simulation.output(request.id).token_ids;
}

Collected run_one(const SchedulerOptions& options, const Request& request) {
  Simulation simulation(options);
  simulation.add(request);
  simulation.run();
  return simulation.output(request.id);
}

TEST(FinishTest, AtMaxTokensWithLength) {
  Request request = make_request(1, 5, 7);
  request.sampling.ignore_eos = true;
  const Collected output = run_one(small_options(), request);
  EXPECT_EQ(output.token_ids.size(), 7);
  EXPECT_EQ(output.finish_reason, FinishReason::kLength);
  EXPECT_EQ(output.stop_token_id, -1);
}

TEST(FinishTest, AtMaxModelLenWithLength) {
  Request request = make_request(1, 120, std::numeric_limits<int32_t>::max());
  request.sampling.ignore_eos = true;
  const Collected output = run_one(small_options(), request);
  EXPECT_EQ(output.token_ids.size(), 8);
  EXPECT_EQ(output.finish_reason, FinishReason::kLength);
}

TEST(FinishTest, AtAnEndOfSequenceTokenWithStop) {
  const Request request = make_request(1, 5, 100);
  const std::vector<int32_t> endless = endless_output(request, 20);
  SchedulerOptions options = small_options();
  options.eos_token_ids = {endless[6], endless[9]};
  const auto first = std::ranges::find_first_of(endless, options.eos_token_ids);
  const Collected output = run_one(options, request);
  EXPECT_EQ(output.token_ids, std::vector<int32_t>(endless.begin(), first + 1));
  EXPECT_EQ(output.finish_reason, FinishReason::kStop);
  EXPECT_EQ(output.stop_token_id, *first);
}

TEST(FinishTest, NotAtAnEndOfSequenceTokenThatIsIgnored) {
  Request request = make_request(1, 5, 20);
  const std::vector<int32_t> endless = endless_output(request, 20);
  SchedulerOptions options = small_options();
  options.eos_token_ids = {endless[6]};
  request.sampling.ignore_eos = true;
  EXPECT_EQ(run_one(options, request).token_ids, endless);
}

TEST(FinishTest, AtAStopTokenEvenIfEndOfSequenceIsIgnored) {
  Request request = make_request(1, 5, 20);
  const std::vector<int32_t> endless = endless_output(request, 20);
  request.sampling.ignore_eos = true;
  request.sampling.stop_token_ids = {endless[4]};
  const Collected output = run_one(small_options(), request);
  EXPECT_EQ(output.token_ids.back(), endless[4]);
  EXPECT_LE(output.token_ids.size(), 5);
  EXPECT_EQ(output.finish_reason, FinishReason::kStop);
  EXPECT_EQ(output.stop_token_id, endless[4]);
}

TEST(FinishTest, AStopOnTheLastTokenIsAStop) {
  Request request = make_request(1, 5, 20);
  const std::vector<int32_t> endless = endless_output(request, 20);
  request.sampling.max_tokens = 1;
  request.sampling.stop_token_ids = {endless[0]};
  EXPECT_EQ(run_one(small_options(), request).finish_reason, FinishReason::kStop);
}

TEST(FinishTest, MinTokensBansEndAndStopIdsAtFirst) {
  Request request = make_request(1, 5, 40);
  const std::vector<int32_t> endless = endless_output(request, 4);
  SchedulerOptions options = small_options();
  options.eos_token_ids = {endless[0]};
  request.sampling.stop_token_ids = {endless[1]};
  request.sampling.min_tokens = 6;

  Simulation simulation(options);
  simulation.add(request);
  std::vector<bool> bans;
  while (simulation.step()) {
    const auto banned = simulation.batch.sequences[0].banned_token_ids;
    bans.push_back(!banned.empty());
    if (!banned.empty()) {
      EXPECT_EQ(std::vector<int32_t>(banned.begin(), banned.end()),
                (std::vector<int32_t>{endless[0], endless[1]}));
    }
  }
  const Collected& output = simulation.output(1);
  ASSERT_GE(output.token_ids.size(), 7);
  EXPECT_EQ(std::ranges::count(bans, true), 6);
  EXPECT_TRUE(std::all_of(bans.begin(), bans.begin() + 6, [](bool b) { return b; }));
  EXPECT_EQ(output.token_ids, simulation.alone(1).token_ids);
}

TEST(FinishTest, NothingEndsASequenceBeforeMinTokens) {
  Request request = make_request(1, 5, 9);
  request.sampling.min_tokens = 4;
  Simulation simulation(small_options());
  simulation.runner.after_run = [](const ScheduledBatch&, StepResult& result) {
    result.token_ids[0] = 0;  // end of sequence, as if the sampler knew no ban
  };
  simulation.add(request);
  simulation.run();
  EXPECT_EQ(simulation.output(1).token_ids.size(), 5);
  EXPECT_EQ(simulation.output(1).finish_reason, FinishReason::kStop);
}

TEST(EmitTest, LogprobsComeWithEachToken) {
  Request request = make_request(1, 5, 4);
  request.sampling.ignore_eos = true;
  request.sampling.logprobs = 2;
  const Collected output = run_one(small_options(), request);
  ASSERT_EQ(output.logprobs.size(), 4 * 3);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(output.logprobs[i * 3].token_id, output.token_ids[i]);
}

// Positions of the prompt whose log-probabilities came, as the fake model tells them.
std::vector<int> reported_positions(const Collected& output, int entries_per_position) {
  std::vector<int> positions;
  for (size_t i = 0; i < output.prompt_logprobs.size(); i += entries_per_position) {
    positions.push_back(static_cast<int>(output.prompt_logprobs[i].logprob));
  }
  return positions;
}

std::vector<int> first_integers(int count) {
  std::vector<int> integers(count);
  for (int i = 0; i < count; ++i) integers[i] = i;
  return integers;
}

TEST(PromptLogprobsTest, CoverEveryPositionButTheFirstTokensAcrossChunks) {
  Request request = make_request(1, 70, 3);
  request.sampling.prompt_logprobs = 1;
  const Collected output = run_one(small_options(), request);
  EXPECT_EQ(reported_positions(output, 2), first_integers(69));
  EXPECT_EQ(output.prompt_logprobs[0].token_id, request.token_ids[1]);
}

TEST(PromptLogprobsTest, AreComputedAlthoughThePrefixIsCached) {
  Simulation simulation(small_options());
  Request request = make_request(1, 30, 3);
  simulation.add(request);
  simulation.run();
  request.id = 2;
  request.sampling.prompt_logprobs = 0;
  simulation.add(request);
  simulation.run();
  EXPECT_EQ(simulation.output(2).num_cached_tokens, 0);
  EXPECT_EQ(reported_positions(simulation.output(2), 1), first_integers(29));
}

TEST(PromptLogprobsTest, AreReportedOnceDespitePreemption) {
  for (const bool caching : {true, false}) {
    SchedulerOptions options = small_options();
    options.blocks.num_blocks = 22;
    options.blocks.enable_prefix_caching = caching;
    options.max_num_batched_tokens = 8;
    Simulation simulation(options);
    for (uint64_t id = 0; id < 4; ++id) {
      Request request = make_request(id, 30, 30);
      request.sampling.ignore_eos = true;
      request.sampling.prompt_logprobs = 0;
      simulation.add(request);
    }
    simulation.run();
    EXPECT_GT(simulation.scheduler.stats().num_preemptions, 0);
    for (uint64_t id = 0; id < 4; ++id) {
      EXPECT_EQ(reported_positions(simulation.output(id), 1), first_integers(29)) << id;
      EXPECT_EQ(simulation.output(id).token_ids, simulation.alone(id).token_ids);
    }
  }
}

// A prompt of which some chunks were reported when it lost its blocks.
TEST(PromptLogprobsTest, GoOnWhereAPreemptedPromptStopped) {
  SchedulerOptions options = small_options();
  options.blocks.num_blocks = 20;
  options.blocks.enable_prefix_caching = false;
  options.max_num_batched_tokens = 8;
  Simulation simulation(options);
  Request decoding = make_request(1, 27, 30);
  decoding.sampling.ignore_eos = true;
  simulation.add(decoding);
  while (simulation.sink.sequences.empty()) simulation.step();
  Request reporting = make_request(2, 50, 2);
  reporting.sampling.prompt_logprobs = 0;
  simulation.add(reporting);
  simulation.run();
  EXPECT_GT(simulation.scheduler.stats().num_preemptions, 0);
  EXPECT_LT(simulation.sink.sequences.size(), 3);
  EXPECT_EQ(reported_positions(simulation.output(2), 1), first_integers(49));
  EXPECT_EQ(simulation.output(2).token_ids, simulation.alone(2).token_ids);
}

TEST(PromptLogprobsTest, AreThoseOfTheRequestAndComeWithSequenceZero) {
  Simulation simulation(small_options());
  Request request = make_request(1, 30, 3);
  request.sampling.prompt_logprobs = 0;
  request.sampling.n = 3;
  simulation.add(request);
  simulation.run();
  EXPECT_EQ(reported_positions(simulation.output(1, 0), 1), first_integers(29));
  EXPECT_TRUE(simulation.output(1, 1).prompt_logprobs.empty());
  EXPECT_TRUE(simulation.output(1, 2).prompt_logprobs.empty());
}

TEST(PromptLogprobsTest, OfASingleTokenAreNone) {
  Request request = make_request(1, 1, 3);
  request.sampling.prompt_logprobs = 2;
  const Collected output = run_one(small_options(), request);
  EXPECT_TRUE(output.prompt_logprobs.empty());
  EXPECT_EQ(output.token_ids.size(), 3);
}

class AbortTest : public ::testing::Test {
 protected:
  void expect_aborted(uint64_t id, int32_t index, size_t num_tokens) {
    const Collected& output = simulation_.output(id, index);
    EXPECT_EQ(output.finish_reason, FinishReason::kAbort);
    EXPECT_EQ(output.token_ids.size(), num_tokens);
  }

  void expect_nothing_left() {
    simulation_.scheduler.self_check();
    EXPECT_FALSE(simulation_.scheduler.has_live());
    EXPECT_EQ(simulation_.scheduler.blocks().num_free_blocks(), num_blocks_);
    EXPECT_FALSE(simulation_.step());
  }

  static SchedulerOptions tight_options() {
    SchedulerOptions options = small_options();
    options.blocks.num_blocks = 30;
    return options;
  }

  Simulation simulation_{tight_options()};
  const int64_t num_blocks_ = simulation_.scheduler.blocks().num_blocks();
};

TEST_F(AbortTest, WhileWaiting) {
  simulation_.add(make_request(1, 5, 5));
  simulation_.scheduler.abort(1);
  expect_aborted(1, 0, 0);
  expect_nothing_left();
}

TEST_F(AbortTest, InTheMiddleOfThePrompt) {
  simulation_.add(make_request(1, 70, 5));
  simulation_.step();
  simulation_.scheduler.abort(1);
  expect_aborted(1, 0, 0);
  expect_nothing_left();
}

TEST_F(AbortTest, WhileDecoding) {
  simulation_.add(make_request(1, 5, 9));
  for (int i = 0; i < 3; ++i) simulation_.step();
  simulation_.scheduler.abort(1);
  expect_aborted(1, 0, 3);
  expect_nothing_left();
}

TEST_F(AbortTest, WhilePreempted) {
  for (uint64_t id = 1; id <= 2; ++id) {
    Request request = make_request(id, 50, 70);
    request.sampling.ignore_eos = true;
    simulation_.add(request);
  }
  while (simulation_.scheduler.stats().num_preemptions == 0) simulation_.step();
  const size_t num_tokens = simulation_.output(2).token_ids.size();
  ASSERT_GT(num_tokens, 0);
  simulation_.scheduler.abort(2);
  expect_aborted(2, 0, num_tokens);
  simulation_.run();
  EXPECT_EQ(simulation_.output(1).token_ids, simulation_.alone(1).token_ids);
  expect_nothing_left();
}

TEST_F(AbortTest, WithSiblingsThatWaitForTheFirst) {
  Request request = make_request(1, 70, 5);
  request.sampling.n = 3;
  simulation_.add(request);
  simulation_.step();
  simulation_.scheduler.abort(1);
  for (int32_t index = 0; index < 3; ++index) expect_aborted(1, index, 0);
  expect_nothing_left();
}

TEST_F(AbortTest, WithSomeSiblingsFinished) {
  Request request = make_request(1, 9, 60);
  request.sampling.n = 3;
  request.sampling.temperature = 1.0f;
  request.sampling.seed = 4;
  simulation_.add(request);
  const auto num_finished = [this] {
    return std::ranges::count_if(simulation_.sink.sequences, [](const auto& item) {
      return item.second.finish_reason != FinishReason::kNone;
    });
  };
  while (num_finished() == 0) simulation_.step();
  ASSERT_LT(num_finished(), 3);
  simulation_.scheduler.abort(1);
  EXPECT_EQ(num_finished(), 3);
  expect_nothing_left();
}

TEST_F(AbortTest, OfUnknownAndFinishedIdsDoesNothing) {
  simulation_.scheduler.abort(7);
  simulation_.add(make_request(1, 5, 1));
  simulation_.run();
  simulation_.scheduler.abort(1);
  EXPECT_EQ(simulation_.output(1).finish_reason, FinishReason::kLength);
  expect_nothing_left();
}

TEST_F(AbortTest, FinishAllEndsEveryState) {
  for (uint64_t id = 1; id <= 12; ++id) {
    Request request = make_request(id, 20, 50);
    request.sampling.ignore_eos = true;
    request.sampling.n = id % 3 == 0 ? 3 : 1;
    simulation_.add(request);
  }
  for (int i = 0; i < 12; ++i) simulation_.step();
  simulation_.scheduler.finish_all(FinishReason::kError, "gone");
  int num_sequences = 0;
  for (const auto& [name, output] : simulation_.sink.sequences) {
    EXPECT_EQ(output.finish_reason, FinishReason::kError);
    EXPECT_EQ(output.error, "gone");
    ++num_sequences;
  }
  EXPECT_EQ(num_sequences, 8 + 4 * 3);
  expect_nothing_left();
}

class ErrorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    for (uint64_t id = 1; id <= 3; ++id) {
      Request request = make_request(id, 9, 9);
      request.sampling.ignore_eos = true;
      simulation_.add(request);
    }
  }

  void spoil_once(std::function<void(StepResult&)> spoil) {
    simulation_.runner.after_run = [this, spoil](const ScheduledBatch&, StepResult& result) {
      spoil(result);
      simulation_.runner.after_run = nullptr;
    };
  }

  static SchedulerOptions three_slots() {
    SchedulerOptions options = small_options();
    options.max_num_seqs = 3;
    return options;
  }

  Simulation simulation_{three_slots()};
};

TEST_F(ErrorTest, AnInvalidRowEndsItsSequenceOnly) {
  simulation_.step();
  spoil_once([](StepResult& result) { result.is_invalid[1] = 1; });
  simulation_.run();
  EXPECT_EQ(simulation_.output(2).finish_reason, FinishReason::kError);
  EXPECT_EQ(simulation_.output(2).token_ids.size(), 1);
  EXPECT_FALSE(simulation_.output(2).error.empty());
  for (const uint64_t id : {1, 3}) {
    EXPECT_EQ(simulation_.output(id).token_ids, simulation_.alone(id).token_ids);
  }
}

TEST_F(ErrorTest, ATokenOutsideTheVocabularyEndsItsSequenceOnly) {
  for (const int32_t bad : {-1, 50, std::numeric_limits<int32_t>::max()}) {
    Simulation simulation(small_options());
    simulation.add(make_request(1, 9, 3));
    simulation.runner.after_run = [bad](const ScheduledBatch&, StepResult& result) {
      result.token_ids[0] = bad;
    };
    simulation.run();
    EXPECT_EQ(simulation.output(1).finish_reason, FinishReason::kError);
    EXPECT_TRUE(simulation.output(1).token_ids.empty());
  }
}

TEST_F(ErrorTest, NobodyFindsTheBlocksOfAnInvalidRow) {
  simulation_.step();
  spoil_once([](StepResult& result) { result.is_invalid[0] = 1; });
  simulation_.run();
  Request again = make_request(1, 9, 9);
  again.id = 11;
  again.sampling.ignore_eos = true;
  simulation_.add(again);
  simulation_.run();
  EXPECT_EQ(simulation_.output(11).num_cached_tokens, 0);
  EXPECT_EQ(simulation_.output(11).token_ids.size(), 9);
}

TEST_F(ErrorTest, AFailedStepEndsItsSequencesAndNoOthers) {
  simulation_.add(make_request(4, 9, 9));
  simulation_.scheduler.schedule(simulation_.batch);
  ASSERT_EQ(simulation_.batch.sequences.size(), 3);
  simulation_.scheduler.fail("failed");
  simulation_.scheduler.self_check();
  simulation_.run();
  for (uint64_t id = 1; id <= 3; ++id) {
    EXPECT_EQ(simulation_.output(id).finish_reason, FinishReason::kError);
    EXPECT_EQ(simulation_.output(id).error, "failed");
  }
  EXPECT_EQ(simulation_.output(4).token_ids, simulation_.alone(4).token_ids);
}

TEST_F(ErrorTest, AResultThatDoesNotFitChangesNothing) {
  simulation_.scheduler.schedule(simulation_.batch);
  simulation_.runner.run(simulation_.batch, simulation_.result);
  const auto refuses = [this](auto change) {
    StepResult bad = simulation_.result;
    change(bad);
    EXPECT_THROW(simulation_.scheduler.update(simulation_.batch, bad), CheckError);
  };
  refuses([](StepResult& r) { r.token_ids.pop_back(); });
  refuses([](StepResult& r) { r.is_invalid.push_back(0); });
  refuses([](StepResult& r) { r.logprob_offsets.pop_back(); });
  refuses([](StepResult& r) { r.logprob_offsets.back() = 1; });
  refuses([](StepResult& r) { r.prompt_logprob_offsets = {0, 2, 1, 0}; });
  EXPECT_TRUE(simulation_.sink.sequences.empty());
  simulation_.scheduler.update(simulation_.batch, simulation_.result);
  simulation_.scheduler.self_check();
  EXPECT_EQ(simulation_.sink.sequences.size(), 3);
}

TEST_F(ErrorTest, SiblingsOfAnInvalidFirstGoOn) {
  Simulation simulation(small_options());
  Request request = make_request(1, 9, 4);
  request.sampling.n = 3;
  request.sampling.ignore_eos = true;
  simulation.add(request);
  simulation.runner.after_run = [&simulation](const ScheduledBatch&, StepResult& result) {
    result.is_invalid[0] = 1;
    simulation.runner.after_run = nullptr;
  };
  simulation.run();
  EXPECT_EQ(simulation.output(1, 0).finish_reason, FinishReason::kError);
  for (const int32_t index : {1, 2}) {
    EXPECT_EQ(simulation.output(1, index).token_ids, simulation.alone(1, index).token_ids);
  }
}

}  // namespace
}  // namespace octavo
