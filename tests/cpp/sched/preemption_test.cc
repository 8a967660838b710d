// Sequences that lose their blocks and compute them again.
#include <gtest/gtest.h>

#include "sched/requests.h"
#include "sched/scheduler.h"
#include "sched/simulation.h"

namespace octavo {
namespace {

using testing::expect_as_alone;
using testing::make_request;
using testing::Simulation;
using testing::small_options;

class PreemptionTest : public ::testing::TestWithParam<bool> {
 protected:
  static SchedulerOptions tight_options() {
    SchedulerOptions options = small_options();
    options.blocks.num_blocks = 12;
    options.blocks.enable_prefix_caching = GetParam();
    return options;
  }
};

TEST_P(PreemptionTest, ShortBlocksCostTimeButChangeNoToken) {
  Simulation simulation(tight_options());
  for (uint64_t id = 0; id < 6; ++id) simulation.add(make_request(id, 6, 30, int32_t(id)));
  simulation.run();
  EXPECT_GT(simulation.scheduler.stats().num_preemptions, 0);
  for (uint64_t id = 0; id < 6; ++id) expect_as_alone(simulation, id);
  EXPECT_EQ(simulation.scheduler.blocks().num_free_blocks(), 12);
}

TEST_P(PreemptionTest, SampledTokensAreTheSameAfterRecomputing) {
  Simulation simulation(tight_options());
  for (uint64_t id = 0; id < 6; ++id) {
    Request request = make_request(id, 6, 30, int32_t(id));
    request.sampling.temperature = 1.0f;
    request.sampling.seed = id;
    simulation.add(request);
  }
  simulation.run();
  EXPECT_GT(simulation.scheduler.stats().num_preemptions, 0);
  for (uint64_t id = 0; id < 6; ++id) expect_as_alone(simulation, id);
}

TEST_P(PreemptionTest, TheOldestIsNeverPreempted) {
  Simulation simulation(tight_options());
  for (uint64_t id = 0; id < 6; ++id) simulation.add(make_request(id, 6, 30, int32_t(id)));
  for (int64_t num_steps = 1; num_steps <= 30; ++num_steps) {
    simulation.step();
    EXPECT_EQ(std::ssize(simulation.output(0).token_ids), num_steps);
  }
  EXPECT_GT(simulation.scheduler.stats().num_preemptions, 0);
}

TEST_P(PreemptionTest, TheLeastUrgentIsPreemptedFirst) {
  SchedulerOptions options = tight_options();
  options.policy = SchedulingPolicy::kPriority;
  Simulation simulation(options);
  for (uint64_t id = 0; id < 2; ++id) {
    Request request = make_request(id, 6, 30, int32_t(id));
    request.priority = id == 0 ? 1 : 0;
    simulation.add(request);
  }
  simulation.run();
  EXPECT_GT(simulation.scheduler.stats().num_preemptions, 0);
  expect_as_alone(simulation, 0);
  expect_as_alone(simulation, 1);
}

TEST_P(PreemptionTest, ASequenceThatFillsAllBlocksStillFinishes) {
  Simulation simulation(tight_options());
  ASSERT_EQ(simulation.scheduler.max_model_len(), 48);
  simulation.add(make_request(0, 40, 1000));
  simulation.add(make_request(1, 47, 1000, 9));
  simulation.run();
  expect_as_alone(simulation, 0);
  expect_as_alone(simulation, 1);
  EXPECT_EQ(simulation.output(0).token_ids.size(), 8);
  EXPECT_EQ(simulation.output(1).token_ids.size(), 1);
}

TEST_P(PreemptionTest, ReturningSequencesAreAdmittedBeforeNewOnes) {
  Simulation simulation(tight_options());
  simulation.add(make_request(0, 6, 40));
  simulation.add(make_request(1, 6, 40, 9));
  while (simulation.scheduler.stats().num_preemptions == 0) simulation.step();
  simulation.add(make_request(2, 6, 2, 17));
  const size_t num_tokens = simulation.output(1).token_ids.size();
  while (!simulation.sink.sequences.contains({2, 0})) simulation.step();
  EXPECT_GT(simulation.output(1).token_ids.size(), num_tokens);
  simulation.run();
  for (uint64_t id = 0; id < 3; ++id) expect_as_alone(simulation, id);
}

INSTANTIATE_TEST_SUITE_P(PrefixCaching, PreemptionTest, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "On" : "Off"; });

}  // namespace
}  // namespace octavo
