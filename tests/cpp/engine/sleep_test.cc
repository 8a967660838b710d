// Giving the KV cache back and taking it again, between requests.
#include <gtest/gtest.h>

#include <memory>
#include <utility>
#include <vector>

#include "base/errors.h"
#include "engine/engine.h"
#include "engine/taken_outputs.h"
#include "sched/fake_runner.h"

namespace octavo {
namespace {

using testing::FakeRunner;
using testing::TakenOutputs;

constexpr int64_t kVocabSize = 50;
constexpr int64_t kNumBlocks = 64;

Request make_request(uint64_t id, int64_t num_tokens, int32_t max_tokens) {
  Request request;
  request.id = id;
  for (int64_t i = 0; i < num_tokens; ++i) {
    request.token_ids.push_back(static_cast<int32_t>((id * 11 + i * 7) % kVocabSize));
  }
  request.sampling.temperature = 0.0f;
  request.sampling.max_tokens = max_tokens;
  request.sampling.ignore_eos = true;
  return request;
}

class SleepTest : public ::testing::TestWithParam<int32_t> {  // steps in flight
 protected:
  void SetUp() override {
    EngineConfig config;
    config.max_model_len = 128;
    config.block_size = 4;
    config.max_num_seqs = 4;
    config.max_num_batched_tokens = 32;
    testing::FakeRunnerOptions options{kVocabSize, kNumBlocks, config.block_size,
                                       config.max_num_seqs, config.max_num_batched_tokens};
    options.max_steps_in_flight = GetParam();
    auto runner = std::make_unique<FakeRunner>(options);
    runner_ = runner.get();
    engine_ = std::make_unique<Engine>(config, kVocabSize, kNumBlocks, std::move(runner));
  }

  void run() {
    for (int i = 0; i < 10000 && engine_->step(); ++i) taken_.take(*engine_);
    taken_.take(*engine_);
  }

  void expect_idle() {
    const EngineStats stats = engine_->stats();
    EXPECT_EQ(stats.num_running + stats.num_waiting, 0);
    EXPECT_EQ(stats.num_free_blocks, stats.num_blocks);
  }

  std::unique_ptr<Engine> engine_;
  FakeRunner* runner_ = nullptr;
  TakenOutputs taken_;
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
