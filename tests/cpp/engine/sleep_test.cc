// Giving the KV cache back and taking it again, between requests.
#include <gtest/gtest.h>

#include <vector>

#include "base/errors.h"
#include "engine/engine_fixture.h"

namespace octavo {
namespace {

using testing::EngineFixture;
using testing::make_request;
using testing::small_config;

class SleepTest : public EngineFixture,
                  public ::testing::WithParamInterface<int32_t> {  // steps in flight
 protected:
  void SetUp() override { make_engine(small_config(), 64, GetParam()); }
};

INSTANTIATE_TEST_SUITE_P(StepsInFlight, SleepTest, ::testing::Values(1, 2));

TEST_P(SleepTest, SleepLetsWhatRunsFinishAndThenFreesTheCache) {
  engine_->submit(make_request(1, 20, 5));
  engine_->step();
  engine_->submit(make_request(2, 4, 5));  // still in the inbox
  engine_->sleep(false);
  EXPECT_THROW(engine_->submit(make_request(3, 4, 5)), NotReadyError);
  engine_->step();
  EXPECT_TRUE(runner_->has_kv_cache());
  EXPECT_FALSE(engine_->stats().is_asleep);
  run();
  EXPECT_EQ(taken_.at(1).token_ids.size(), 5);
  EXPECT_EQ(taken_.at(2).token_ids.size(), 5);
  EXPECT_FALSE(runner_->has_kv_cache());
  EXPECT_TRUE(engine_->stats().is_asleep);
  EXPECT_THROW(engine_->submit(make_request(3, 4, 5)), NotReadyError);
  expect_idle();
}

TEST_P(SleepTest, SleepCanAbortWhatRuns) {
  engine_->submit(make_request(1, 4, 50));
  engine_->step();
  engine_->sleep(false);
  engine_->step();
  EXPECT_TRUE(runner_->has_kv_cache());
  engine_->sleep(true);
  run();
  EXPECT_EQ(taken_.at(1).finish_reason, FinishReason::kAbort);
  EXPECT_TRUE(engine_->stats().is_asleep);
}

TEST_P(SleepTest, AfterSleepRequestsRunAndNoPrefixIsFound) {
  Request request = make_request(7, 20, 4);
  engine_->submit(request);
  run();
  const std::vector<int32_t> before = taken_.at(7).token_ids;
  for (int i = 0; i < 2; ++i) {
    engine_->sleep(false);
    run();
    ASSERT_FALSE(runner_->has_kv_cache());
    engine_->wake_up();
    run();
    EXPECT_FALSE(engine_->stats().is_asleep);
    EXPECT_EQ(engine_->stats().num_wake_ups, i + 1);
    taken_ = {};
    engine_->submit(request);
    run();
    EXPECT_EQ(taken_.at(7).token_ids, before);
    EXPECT_EQ(taken_.at(7).num_cached_tokens, 0);
  }
  expect_idle();
}

TEST_P(SleepTest, AWakeUpEndsASleepThatWaits) {
  engine_->submit(make_request(1, 4, 5));
  engine_->step();
  engine_->sleep(false);
  engine_->step();
  engine_->wake_up();
  run();
  EXPECT_EQ(taken_.at(1).token_ids.size(), 5);
  EXPECT_TRUE(runner_->has_kv_cache());
  engine_->submit(make_request(2, 4, 1));
  run();
  EXPECT_EQ(taken_.at(2).finish_reason, FinishReason::kLength);
}

// Two front ends may ask for both before the engine looks: the later one counts.
TEST_P(SleepTest, AWakeUpDoesNotOpenTheInboxAgainstALaterSleep) {
  engine_->sleep(false);
  run();
  engine_->wake_up();
  engine_->sleep(false);
  run();
  EXPECT_TRUE(engine_->stats().is_asleep);
  EXPECT_FALSE(runner_->has_kv_cache());
  EXPECT_THROW(engine_->submit(make_request(1, 4, 5)), NotReadyError);
  engine_->wake_up();
  run();
  engine_->submit(make_request(1, 4, 5));
  run();
  EXPECT_EQ(taken_.at(1).finish_reason, FinishReason::kLength);
}

TEST_P(SleepTest, WithoutMemoryForTheCacheTheEngineSleepsOn) {
  engine_->sleep(false);
  run();
  runner_->before_restore = [] { throw OutOfMemoryError("no room for the cache"); };
  engine_->wake_up();
  run();
  EXPECT_TRUE(engine_->stats().is_asleep);
  EXPECT_EQ(engine_->stats().num_failed_wake_ups, 1);
  EXPECT_EQ(engine_->last_error(), "no room for the cache");
  EXPECT_THROW(engine_->submit(make_request(1, 4, 5)), NotReadyError);
  runner_->before_restore = nullptr;
  engine_->wake_up();
  run();
  EXPECT_FALSE(engine_->stats().is_asleep);
  engine_->submit(make_request(1, 4, 5));
  run();
  EXPECT_EQ(taken_.at(1).finish_reason, FinishReason::kLength);
}

}  // namespace
}  // namespace octavo
