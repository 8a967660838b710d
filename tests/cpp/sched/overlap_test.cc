// Steps that are scheduled before the tokens of the last one are known.
#include <gtest/gtest.h>

#include "sched/requests.h"
#include "sched/scheduler.h"
#include "sched/simulation.h"

namespace octavo {
namespace {

using testing::Collected;
using testing::expect_as_alone;
using testing::make_request;
using testing::scheduled_counts;
using testing::Simulation;

SchedulerOptions overlapped_options() {
  SchedulerOptions options = testing::small_options();
  options.max_steps_in_flight = 2;
  return options;
}

TEST(OverlapTest, AStepIsScheduledBeforeTheTokensOfTheLast) {
  Simulation simulation(overlapped_options());
  simulation.add(make_request(1, 4, 5));
  simulation.step();
  simulation.step();
  EXPECT_EQ(simulation.batch.sequences[0].num_computed_tokens, 4);
  EXPECT_EQ(simulation.batch.sequences[0].token_ids.size(), 5);
  EXPECT_EQ(simulation.output(1).token_ids.size(), 1);
  simulation.run();
  expect_as_alone(simulation, 1);
}

TEST(OverlapTest, NothingIsComputedBeyondMaxTokens) {
  Simulation simulation(overlapped_options());
  simulation.add(make_request(1, 4, 5));
  simulation.run();
  EXPECT_EQ(simulation.runner.num_computed_tokens, 4 + 4);
}

TEST(OverlapTest, ATokenBehindAStopIsLeftOut) {
  Simulation simulation(overlapped_options());
  Request request = make_request(1, 4, 20);
  simulation.add(request);
  simulation.run();
  request.id = 2;
  request.sampling.stop_token_ids = {simulation.output(1).token_ids[2]};
  simulation.add(request);
  simulation.runner.num_computed_tokens = 0;
  simulation.run();
  expect_as_alone(simulation, 2);
  EXPECT_EQ(simulation.output(2).finish_reason, FinishReason::kStop);
  EXPECT_LE(simulation.output(2).token_ids.size(), 3);
  EXPECT_EQ(simulation.scheduler.blocks().num_free_blocks(), 64);
}

TEST(OverlapTest, WhatAPreemptedSequenceDrewIsKept) {
  for (const bool caches : {false, true}) {
    SchedulerOptions options = overlapped_options();
    options.blocks.num_blocks = 12;
    options.blocks.enable_prefix_caching = caches;
    Simulation simulation(options);
    for (uint64_t id = 0; id < 6; ++id) {
      Request request = make_request(id, 6, 30, int32_t(id));
      request.sampling.temperature = 1.0f;
      request.sampling.seed = id;
      simulation.add(request);
    }
    simulation.run();
    EXPECT_GT(simulation.scheduler.stats().num_preemptions, 0);
    for (uint64_t id = 0; id < 6; ++id) expect_as_alone(simulation, id);
    EXPECT_EQ(simulation.scheduler.blocks().num_free_blocks(), 12);
  }
}

TEST(OverlapTest, AnAbortTakesEffectWhileItsStepIsInFlight) {
  Simulation simulation(overlapped_options());
  simulation.add(make_request(1, 4, 20));
  simulation.add(make_request(2, 4, 20, 9));
  for (int i = 0; i < 3; ++i) simulation.step();
  simulation.scheduler.abort(1);
  simulation.scheduler.self_check();
  EXPECT_EQ(simulation.output(1).finish_reason, FinishReason::kAbort);
  simulation.add(make_request(1, 9, 5, 17));  // the id and the slot are free
  simulation.sink.sequences.erase({1, 0});
  simulation.run();
  expect_as_alone(simulation, 1);
  expect_as_alone(simulation, 2);
}

TEST(OverlapTest, AFailedStepEndsTheRowsOfTheNextOneToo) {
  Simulation simulation(overlapped_options());
  simulation.add(make_request(1, 4, 20));
  simulation.scheduler.schedule(simulation.batch);
  ScheduledBatch next;
  simulation.add(make_request(2, 4, 5, 9));
  simulation.scheduler.schedule(next);
  EXPECT_EQ(next.sequences.size(), 2);
  simulation.scheduler.fail("failed");
  simulation.scheduler.self_check();
  EXPECT_EQ(simulation.output(1).finish_reason, FinishReason::kError);
  StepResult result;
  result.token_ids = {7, 8};
  result.is_invalid = {0, 0};
  simulation.scheduler.update(next, result);
  simulation.scheduler.self_check();
  EXPECT_TRUE(simulation.output(1).token_ids.empty());
  EXPECT_EQ(simulation.output(2).token_ids, (std::vector<int32_t>{8}));
}

TEST(OverlapTest, WhoeverNeedsItsTokensOnTheHostMakesTheStepsWait) {
  Simulation simulation(overlapped_options());
  Request request = make_request(1, 4, 6);
  request.sampling.bad_words = {{1, 2}};
  simulation.add(request);
  simulation.add(make_request(2, 4, 6, 9));
  simulation.scheduler.schedule(simulation.batch);
  EXPECT_TRUE(simulation.scheduler.needs_results());
  ScheduledBatch next;
  simulation.scheduler.schedule(next);  // all the same: then it loses a turn
  ASSERT_EQ(next.sequences.size(), 1);
  EXPECT_EQ(next.sequences[0].num_prompt_tokens, 4);

  Simulation in_turn(overlapped_options());
  in_turn.add(request);
  in_turn.add(make_request(2, 4, 6, 9));
  EXPECT_LE(in_turn.run(), 8);
  expect_as_alone(in_turn, 1);
  expect_as_alone(in_turn, 2);
}

TEST(OverlapTest, OnlyKnownTokensReachThePrefixCache) {
  Simulation simulation(overlapped_options());
  simulation.add(make_request(1, 7, 9));
  simulation.run();
  Request request = make_request(2, 7, 4);
  const std::vector<int32_t>& answer = simulation.output(1).token_ids;
  request.token_ids.insert(request.token_ids.end(), answer.begin(), answer.end());
  simulation.add(request);
  simulation.run();
  EXPECT_EQ(simulation.output(2).num_cached_tokens, 12);
  expect_as_alone(simulation, 2);
}

}  // namespace
}  // namespace octavo
