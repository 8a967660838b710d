// Blocks that every layer's window has left.
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

// Prefix caching, steps in flight.
class WindowTest : public ::testing::TestWithParam<std::tuple<bool, int32_t>> {
 protected:
  static SchedulerOptions options(int64_t sliding_window) {
    SchedulerOptions options = small_options();
    options.blocks.num_blocks = 260;
    options.blocks.enable_prefix_caching = std::get<0>(GetParam());
    options.max_steps_in_flight = std::get<1>(GetParam());
    options.max_model_len = 1000;
    options.sliding_window = sliding_window;
    return options;
  }

  static int64_t num_preemptions(Simulation& simulation) {
    for (uint64_t id = 0; id < 3; ++id) simulation.add(make_request(id, 150, 600, int32_t(id)));
    simulation.run();
    for (uint64_t id = 0; id < 3; ++id) expect_as_alone(simulation, id);
    EXPECT_EQ(simulation.scheduler.blocks().num_free_blocks(), 260);
    return simulation.scheduler.stats().num_preemptions;
  }
};

TEST_P(WindowTest, LongSequencesKeepNoMoreThanTheirWindow) {
  Simulation without(options(0));
  EXPECT_GT(num_preemptions(without), 0);
  Simulation with(options(30));
  EXPECT_EQ(num_preemptions(with), 0);
}

TEST_P(WindowTest, HoldsTheWindowAndATileOfKeys) {
  Simulation simulation(options(30));
  simulation.add(make_request(1, 500, 100));
  int64_t most_after_prompt = 0;
  while (simulation.step()) {
    const int64_t held = 260 - simulation.scheduler.blocks().num_free_blocks();
    if (!simulation.sink.sequences.empty()) most_after_prompt = std::max(most_after_prompt, held);
  }
  EXPECT_LE(most_after_prompt, (30 + 128 + 2 * 4) / 4);
  EXPECT_GE(most_after_prompt, 30 / 4);
}

TEST_P(WindowTest, PreemptionAndSharedPromptsChangeNoToken) {
  SchedulerOptions tight = options(30);
  tight.blocks.num_blocks = 120;
  Simulation simulation(tight);
  for (uint64_t id = 0; id < 8; ++id) {
    Request request = make_request(id, 200 + 10 * static_cast<int64_t>(id % 3), 150);
    request.sampling.n = id % 2 == 0 ? 2 : 1;
    simulation.add(request);
  }
  simulation.run();
  for (uint64_t id = 0; id < 8; ++id) expect_as_alone(simulation, id);
  for (uint64_t id = 0; id < 8; id += 2) expect_as_alone(simulation, id, 1);
  EXPECT_EQ(simulation.scheduler.blocks().num_free_blocks(), 120);
}

INSTANTIATE_TEST_SUITE_P(Caching, WindowTest,
                         ::testing::Combine(::testing::Bool(), ::testing::Values(1, 2)));

}  // namespace
}  // namespace octavo
