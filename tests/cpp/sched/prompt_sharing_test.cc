// Prompts computed once: the prefix cache, and the sequences of one request.
#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "sched/requests.h"
#include "sched/scheduler.h"
#include "sched/simulation.h"

namespace octavo {
namespace {

using testing::expect_as_alone;
using testing::make_request;
using testing::Simulation;
using testing::small_options;

TEST(PrefixCachingTest, ASecondRequestSkipsTheSharedPrompt) {
  Simulation simulation(small_options());
  simulation.add(make_request(1, 30, 2));
  simulation.run();
  const int64_t num_computed = simulation.runner.num_computed_tokens;
  simulation.add(make_request(2, 30, 2));
  simulation.run();
  EXPECT_EQ(simulation.runner.num_computed_tokens - num_computed, 30 - 28 + 1);
  EXPECT_EQ(simulation.output(1).num_cached_tokens, 0);
  EXPECT_EQ(simulation.output(2).num_cached_tokens, 28);
  expect_as_alone(simulation, 2);
  const SchedulerStats stats = simulation.scheduler.stats();
  EXPECT_EQ(stats.num_prefix_query_tokens, 60);
  EXPECT_EQ(stats.num_prefix_hit_tokens, 28);
}

TEST(PrefixCachingTest, AConversationFindsItsEarlierOutput) {
  Simulation simulation(small_options());
  simulation.add(make_request(1, 10, 12));
  simulation.run();
  Request next = make_request(2, 10, 2);
  const std::vector<int32_t>& reply = simulation.output(1).token_ids;
  next.token_ids.insert(next.token_ids.end(), reply.begin(), reply.end());
  next.token_ids.push_back(3);
  simulation.add(next);
  simulation.run();
  EXPECT_EQ(simulation.output(2).num_cached_tokens, 20);  // all full blocks but the unread token's
  expect_as_alone(simulation, 2);
}

TEST(PrefixCachingTest, AdaptersShareNothingAndOneLoadedAnewFindsNothing) {
  Simulation simulation(small_options());
  const auto add = [&](uint64_t id, uint64_t lora_id, int32_t slot) {
    Request request = make_request(id, 20, 1);
    request.lora_id = lora_id;
    request.lora_slot = slot;
    simulation.add(request);
    simulation.run();  // throws where the keys and values of another adapter are read
    return simulation.output(id).num_cached_tokens;
  };
  EXPECT_EQ(add(1, 0, -1), 0);
  EXPECT_EQ(add(2, 1, 0), 0);
  EXPECT_EQ(add(3, 2, 1), 0);
  EXPECT_EQ(add(4, 1, 0), 16);
  EXPECT_EQ(add(5, 0, -1), 16);
  EXPECT_EQ(add(6, 3, 0), 0);  // another adapter in the slot of the first
}

TEST(PrefixCachingTest, SaltsAndResetsMissAndOffNeverHits) {
  Simulation simulation(small_options());
  Request salted = make_request(1, 20, 1);
  salted.cache_salt = 7;
  simulation.add(salted);
  simulation.run();
  simulation.add(make_request(2, 20, 1));
  simulation.run();
  simulation.scheduler.reset_prefix_cache();
  simulation.add(make_request(3, 20, 1));
  simulation.run();
  EXPECT_EQ(simulation.output(2).num_cached_tokens, 0);
  EXPECT_EQ(simulation.output(3).num_cached_tokens, 0);

  SchedulerOptions options = small_options();
  options.blocks.enable_prefix_caching = false;
  Simulation uncached(options);
  for (uint64_t id = 1; id <= 2; ++id) {
    uncached.add(make_request(id, 20, 1));
    uncached.run();
    EXPECT_EQ(uncached.output(id).num_cached_tokens, 0);
  }
  EXPECT_EQ(uncached.scheduler.stats().num_prefix_query_tokens, 0);
}

class SharedPromptTest : public ::testing::TestWithParam<bool> {
 protected:
  static SchedulerOptions sharing_options() {
    SchedulerOptions options = small_options();
    options.blocks.enable_prefix_caching = GetParam();
    return options;
  }

  static Request sampled(uint64_t id, int32_t n, int64_t num_tokens, int32_t max_tokens) {
    Request request = make_request(id, num_tokens, max_tokens);
    request.sampling.n = n;
    request.sampling.temperature = 1.0f;
    request.sampling.seed = 77;
    return request;
  }
};

TEST_P(SharedPromptTest, SiblingsComputeThePromptOnce) {
  Simulation simulation(sharing_options());
  simulation.add(sampled(1, 4, 22, 6));
  simulation.run();
  // The prompt, then for each sibling the tail after the full blocks, then the decodes.
  EXPECT_EQ(simulation.runner.num_computed_tokens, 22 + 3 * 2 + 4 * 5);
  for (int32_t index = 0; index < 4; ++index) expect_as_alone(simulation, 1, index);
}

TEST_P(SharedPromptTest, SiblingsDrawDifferentTokens) {
  Simulation simulation(sharing_options());
  simulation.add(sampled(1, 4, 22, 20));
  simulation.run();
  std::set<std::vector<int32_t>> outputs;
  for (int32_t index = 0; index < 4; ++index) outputs.insert(simulation.output(1, index).token_ids);
  EXPECT_EQ(outputs.size(), 4);
}

TEST_P(SharedPromptTest, SiblingsWaitForTheFirstPrompt) {
  Simulation simulation(sharing_options());
  simulation.add(sampled(1, 3, 60, 2));
  simulation.step();
  EXPECT_EQ(simulation.batch.sequences.size(), 1);
  EXPECT_EQ(simulation.scheduler.stats().num_waiting, 2);
  simulation.step();
  EXPECT_EQ(simulation.batch.sequences.size(), 1);
  simulation.step();
  EXPECT_EQ(simulation.batch.sequences.size(), 3);
  EXPECT_EQ(simulation.scheduler.stats().num_waiting, 0);
}

TEST_P(SharedPromptTest, SharingSurvivesPreemption) {
  SchedulerOptions options = sharing_options();
  options.blocks.num_blocks = 14;
  Simulation simulation(options);
  simulation.add(sampled(1, 5, 14, 30));
  simulation.add(sampled(2, 3, 9, 25));
  simulation.run();
  EXPECT_GT(simulation.scheduler.stats().num_preemptions, 0);
  for (int32_t index = 0; index < 5; ++index) expect_as_alone(simulation, 1, index);
  for (int32_t index = 0; index < 3; ++index) expect_as_alone(simulation, 2, index);
}

TEST_P(SharedPromptTest, MoreSiblingsThanSlots) {
  Simulation simulation(sharing_options());
  simulation.add(sampled(1, 30, 9, 3));
  simulation.run();
  for (int32_t index = 0; index < 30; ++index) expect_as_alone(simulation, 1, index);
}

TEST_P(SharedPromptTest, SiblingsOfAFirstThatEndsWithItsPrompt) {
  Simulation simulation(sharing_options());
  simulation.add(sampled(1, 3, 9, 1));
  simulation.run();
  for (int32_t index = 0; index < 3; ++index) expect_as_alone(simulation, 1, index);
}

INSTANTIATE_TEST_SUITE_P(PrefixCaching, SharedPromptTest, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "On" : "Off"; });

}  // namespace
}  // namespace octavo
