// The engine's step on the calling thread: what is accepted, what comes out, how failures end.
#include "engine/engine.h"

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/errors.h"
#include "engine/counted_new.h"
#include "engine/engine_fixture.h"

namespace octavo {
namespace {

using namespace std::chrono_literals;
using testing::EngineFixture;
using testing::kVocabSize;
using testing::make_request;
using testing::small_config;

class EngineTest : public EngineFixture {
 protected:
  void SetUp() override { make_engine(small_config()); }

  void fail_next_step_with(const std::function<void()>& thrower) {
    runner_->before_run = [this, thrower](const ScheduledBatch&) {
      runner_->before_run = nullptr;
      thrower();
    };
  }
};

TEST_F(EngineTest, RequestsBecomeRecords) {
  engine_->submit(make_request(1, 5, 3));
  engine_->submit(make_request(uint64_t{2} << 48 | 1, 40, 4));
  run();
  EXPECT_EQ(taken_.at(1).token_ids.size(), 3);
  EXPECT_EQ(taken_.at(1).finish_reason, FinishReason::kLength);
  EXPECT_EQ(taken_.at(1).connection, 0);
  EXPECT_EQ(taken_.at(uint64_t{2} << 48 | 1).token_ids.size(), 4);
  EXPECT_EQ(taken_.at(uint64_t{2} << 48 | 1).connection, 2);
  expect_idle();
}

TEST_F(EngineTest, BadRequestsAreRefusedAtSubmit) {
  EXPECT_THROW(engine_->submit(make_request(1, 0, 3)), InvalidRequestError);
  EXPECT_THROW(engine_->submit(make_request(1, 128, 3)), InvalidRequestError);
  Request request = make_request(1, 5, 3);
  request.token_ids[2] = kVocabSize;
  EXPECT_THROW(engine_->submit(request), InvalidRequestError);
  EXPECT_FALSE(engine_->step());
  EXPECT_TRUE(taken_.empty());
}

TEST_F(EngineTest, APromptThatNoCacheCouldHoldIsRefused) {
  make_engine(small_config(), 5);
  EXPECT_EQ(engine_->max_model_len(), 20);
  EXPECT_THROW(engine_->submit(make_request(1, 20, 3)), InvalidRequestError);
  engine_->submit(make_request(1, 19, 3));
  run();
  EXPECT_EQ(taken_.at(1).token_ids.size(), 1);
}

TEST_F(EngineTest, QueueLimitsCountWaitingRequestsOnly) {
  for (uint64_t id = 0; id < 8; ++id) engine_->submit(make_request(id, 4, 50));
  EXPECT_THROW(engine_->submit(make_request(8, 4, 50)), QueueFullError);
  EXPECT_EQ(engine_->stats().num_waiting, 8);
  engine_->step();
  EXPECT_EQ(engine_->stats().num_running, 4);
  EXPECT_EQ(engine_->stats().num_waiting, 4);
  for (uint64_t id = 8; id < 12; ++id) engine_->submit(make_request(id, 4, 50));
  EXPECT_THROW(engine_->submit(make_request(12, 4, 50)), QueueFullError);
  run();
  EXPECT_EQ(taken_.num_finished(FinishReason::kLength), 12);
}

TEST_F(EngineTest, AnIdIsFreeAgainWithItsLastRecord) {
  engine_->submit(make_request(1, 4, 2));
  EXPECT_THROW(engine_->submit(make_request(1, 4, 2)), InvalidRequestError);
  run();
  taken_ = {};
  engine_->submit(make_request(1, 4, 2));
  run();
  EXPECT_EQ(taken_.at(1).token_ids.size(), 2);
}

TEST_F(EngineTest, AbortEndsEverySequenceOfARequest) {
  Request request = make_request(1, 20, 50);
  request.sampling.n = 3;
  engine_->submit(request);
  engine_->submit(make_request(2, 4, 6));
  for (int i = 0; i < 3; ++i) engine_->step();
  engine_->abort(1);
  engine_->abort(1);
  engine_->abort(99);
  run();
  for (int32_t index = 0; index < 3; ++index) {
    EXPECT_EQ(taken_.at(1, index).finish_reason, FinishReason::kAbort);
  }
  EXPECT_EQ(taken_.at(2).finish_reason, FinishReason::kLength);
  EXPECT_EQ(engine_->stats().num_finished[static_cast<int>(FinishReason::kAbort)], 3);
  expect_idle();
}

TEST_F(EngineTest, AnAbortHitsOnlyTheRequestsBeforeIt) {
  engine_->submit(make_request(1, 4, 50));
  engine_->abort(1);
  run();
  EXPECT_EQ(taken_.at(1).finish_reason, FinishReason::kAbort);
  taken_ = {};
  engine_->abort(1);
  engine_->submit(make_request(1, 4, 2));
  run();
  EXPECT_EQ(taken_.at(1).finish_reason, FinishReason::kLength);
}

TEST_F(EngineTest, ResetForgetsThePrefixCache) {
  const auto cached_tokens_of = [this](uint64_t id) {
    Request request = make_request(7, 20, 1);
    request.id = id;
    engine_->submit(request);
    run();
    return taken_.at(id).num_cached_tokens;
  };
  EXPECT_EQ(cached_tokens_of(1), 0);
  EXPECT_EQ(cached_tokens_of(2), 16);
  engine_->reset_prefix_cache();
  EXPECT_EQ(cached_tokens_of(3), 0);
}

TEST_F(EngineTest, ASelfCheckIsCountedBesideRunningRequests) {
  engine_->submit(make_request(1, 4, 5));
  engine_->step();
  engine_->self_check();
  EXPECT_EQ(engine_->stats().num_self_checks, 0);
  run();
  EXPECT_EQ(engine_->stats().num_self_checks, 1);
  EXPECT_EQ(taken_.at(1).finish_reason, FinishReason::kLength);
  EXPECT_TRUE(engine_->is_healthy());
}

TEST_F(EngineTest, AnInvalidRowEndsItsSequenceOnly) {
  engine_->submit(make_request(1, 4, 5));
  engine_->submit(make_request(2, 4, 5));
  engine_->step();
  runner_->after_run = [this](const ScheduledBatch&, StepResult& result) {
    result.is_invalid[0] = 1;
    runner_->after_run = nullptr;
  };
  run();
  EXPECT_EQ(taken_.at(1).finish_reason, FinishReason::kError);
  EXPECT_FALSE(taken_.at(1).error.empty());
  EXPECT_EQ(taken_.at(2).finish_reason, FinishReason::kLength);
  EXPECT_TRUE(engine_->is_healthy());
}

class FailedStepTest : public EngineTest,
                       public ::testing::WithParamInterface<std::pair<const char*, void (*)()>> {};

TEST_P(FailedStepTest, EndsItsSequencesAndTheEngineGoesOn) {
  for (uint64_t id = 1; id <= 6; ++id) engine_->submit(make_request(id, 4, 5));
  engine_->step();
  fail_next_step_with(GetParam().second);
  run();
  for (uint64_t id = 1; id <= 4; ++id) {
    EXPECT_EQ(taken_.at(id).finish_reason, FinishReason::kError);
    EXPECT_EQ(taken_.at(id).token_ids.size(), 1);
    EXPECT_EQ(taken_.at(id).error.find("secret"), std::string::npos);
  }
  for (uint64_t id = 5; id <= 6; ++id) {
    EXPECT_EQ(taken_.at(id).finish_reason, FinishReason::kLength);
  }
  EXPECT_TRUE(engine_->is_healthy());
  EXPECT_FALSE(engine_->last_error().empty());
  expect_idle();
}

void throw_device_error() { throw DeviceError("secret launch failure", false); }
void throw_exception() { throw std::runtime_error("secret failure"); }
void throw_memory() { throw OutOfMemoryError("secret shortage"); }
void throw_number() { throw 1; }

INSTANTIATE_TEST_SUITE_P(Causes, FailedStepTest,
                         ::testing::Values(std::pair{"Device", &throw_device_error},
                                           std::pair{"Exception", &throw_exception},
                                           std::pair{"Memory", &throw_memory},
                                           std::pair{"Number", &throw_number}),
                         [](const auto& info) { return info.param.first; });

TEST_F(EngineTest, AResultThatDoesNotFitFailsTheStepOnly) {
  engine_->submit(make_request(1, 4, 5));
  runner_->after_run = [this](const ScheduledBatch&, StepResult& result) {
    result.token_ids.clear();
    runner_->after_run = nullptr;
  };
  run();
  engine_->submit(make_request(2, 4, 5));
  run();
  EXPECT_EQ(taken_.at(1).finish_reason, FinishReason::kError);
  EXPECT_EQ(taken_.at(2).finish_reason, FinishReason::kLength);
}

TEST_F(EngineTest, AStickyErrorEndsEverything) {
  for (uint64_t id = 1; id <= 6; ++id) engine_->submit(make_request(id, 4, 5));
  engine_->step();
  fail_next_step_with([] { throw DeviceError("secret", true); });
  engine_->step();
  EXPECT_FALSE(engine_->is_healthy());
  EXPECT_FALSE(engine_->stats().is_healthy);
  EXPECT_EQ(engine_->last_error(), "secret");
  EXPECT_THROW(engine_->submit(make_request(7, 4, 5)), NotReadyError);
  engine_->shutdown();
  while (take()) {
  }
  EXPECT_EQ(taken_.num_finished(FinishReason::kError), 6);
  expect_idle();
}

TEST_F(EngineTest, HostMemoryShortAtAdmissionEndsOneRequest) {
  EngineConfig config = small_config();
  config.max_model_len = 1 << 20;
  make_engine(config, 1 << 18);
  engine_->submit(make_request(1, 4, 3));
  engine_->submit(make_request(2, 4, 1 << 19));
  {
    const testing::CountedNew counted(1 << 20);
    engine_->step();
  }
  run();
  EXPECT_EQ(taken_.at(1).finish_reason, FinishReason::kLength);
  EXPECT_EQ(taken_.at(2).finish_reason, FinishReason::kError);
  EXPECT_TRUE(engine_->is_healthy());
  expect_idle();
}

TEST_F(EngineTest, HostMemoryShortInTheInboxEndsOneRequest) {
  Request large = make_request(2, 4, 3);
  large.sampling.n = 3;
  large.sampling.min_tokens = 1;  // its banned ids are a list of their own
  large.sampling.stop_token_ids.assign(1000, 7);
  engine_->submit(make_request(1, 4, 3));
  engine_->submit(large);
  {
    const testing::CountedNew counted(3999);
    engine_->step();
  }
  run();
  EXPECT_EQ(taken_.at(1).finish_reason, FinishReason::kLength);
  for (int32_t index = 0; index < 3; ++index) {
    EXPECT_EQ(taken_.at(2, index).finish_reason, FinishReason::kError);
  }
  engine_->submit(make_request(2, 4, 3));  // the id is free again
}

TEST_F(EngineTest, HostMemoryShortInTheMiddleOfAStepEndsEverything) {
  for (uint64_t id = 1; id <= 6; ++id) engine_->submit(make_request(id, 4, 5));
  engine_->step();
  {
    const testing::CountedNew counted(0);
    engine_->step();
  }
  EXPECT_FALSE(engine_->is_healthy());
  EXPECT_FALSE(engine_->last_error().empty());
  engine_->abort(1);  // must not upset the end
  engine_->shutdown();
  while (take()) {
  }
  EXPECT_EQ(taken_.num_finished(FinishReason::kError), 6);
  EXPECT_EQ(taken_.num_finished(), 6);
}

// Whatever breaks off while the inbox is emptied, those behind it end too.
TEST_F(EngineTest, HostMemoryShortInTheInboxLosesNobodyBehindIt) {
  for (uint64_t id = 1; id <= 6; ++id) engine_->submit(make_request(id, 4, 5));
  {
    const testing::CountedNew counted(0);
    engine_->step();
  }
  EXPECT_FALSE(engine_->is_healthy());
  engine_->shutdown();
  while (take()) {
  }
  for (uint64_t id = 2; id <= 6; ++id) {
    EXPECT_TRUE(taken_.all().contains({id, 0})) << id;
  }
}

TEST_F(EngineTest, OutputsThatNobodyTakesEndTheRequests) {
  EngineConfig config = small_config();
  config.max_pending_output_bytes = 2000;
  make_engine(config);
  for (uint64_t id = 1; id <= 6; ++id) engine_->submit(make_request(id, 4, 100));
  int num_steps = 0;
  while (engine_->step()) ASSERT_LT(++num_steps, 90);
  EXPECT_THROW(engine_->submit(make_request(7, 4, 5)), QueueFullError);
  take();
  EXPECT_EQ(taken_.num_finished(FinishReason::kAbort), 6);
  engine_->step();
  engine_->submit(make_request(7, 4, 5));
  run();
  EXPECT_EQ(taken_.at(7).finish_reason, FinishReason::kLength);
}

TEST_F(EngineTest, ShutdownAbortsEveryState) {
  for (uint64_t id = 1; id <= 6; ++id) engine_->submit(make_request(id, 4, 50));
  engine_->step();
  engine_->submit(make_request(7, 4, 5));
  engine_->shutdown();
  engine_->shutdown();
  EXPECT_THROW(engine_->submit(make_request(8, 4, 5)), NotReadyError);
  EXPECT_TRUE(take());
  EXPECT_FALSE(take());
  EXPECT_EQ(taken_.num_finished(FinishReason::kAbort), 7);
  EXPECT_TRUE(engine_->is_healthy());
}

TEST_F(EngineTest, StatsCount) {
  Request request = make_request(1, 9, 4);
  engine_->submit(request);
  run();
  request.id = 2;
  engine_->submit(request);
  run();
  const EngineStats stats = engine_->stats();
  EXPECT_EQ(stats.num_steps, 8);
  EXPECT_EQ(stats.num_prompt_tokens, 18);
  EXPECT_EQ(stats.num_generation_tokens, 8);
  EXPECT_EQ(stats.num_prefix_query_tokens, 18);
  EXPECT_EQ(stats.num_prefix_hit_tokens, 8);
  EXPECT_EQ(stats.num_finished[static_cast<int>(FinishReason::kLength)], 2);
  EXPECT_EQ(stats.num_blocks, 64);
  EXPECT_EQ(stats.max_model_len, 128);
  EXPECT_GT(stats.step_seconds, 0);
  EXPECT_GT(stats.step_seconds, stats.device_seconds);
}

TEST_F(EngineTest, ARequestIsCountedAtEveryMoment) {
  engine_->submit(make_request(1, 4, 1));
  EXPECT_EQ(engine_->stats().num_waiting, 1);
  int64_t num_during_step = 0;
  runner_->before_run = [&](const ScheduledBatch&) {
    const EngineStats stats = engine_->stats();
    num_during_step = stats.num_waiting + stats.num_running;
  };
  engine_->step();
  EXPECT_EQ(num_during_step, 1);
  EXPECT_EQ(engine_->stats().num_waiting, 0);
}

TEST_F(EngineTest, TheHeartbeatIsStoredAtEachStep) {
  std::atomic<int64_t> heartbeat{0};
  engine_->set_heartbeat(&heartbeat);
  engine_->step();
  const int64_t first_ns = heartbeat.load();
  EXPECT_GT(first_ns, 0);
  EXPECT_EQ(engine_->stats().heartbeat_ns, first_ns);
  engine_->step();
  EXPECT_GT(heartbeat.load(), first_ns);
}

// A runner that allocates nothing itself.
class ConstantRunner final : public StepRunner {
 public:
  explicit ConstantRunner(int32_t max_steps_in_flight) : results_(max_steps_in_flight) {}

  int32_t max_steps_in_flight() const override { return static_cast<int32_t>(results_.size()); }

  void launch(const ScheduledBatch& batch) override {
    StepResult& result = results_[num_launched_++ % results_.size()];
    result.clear();
    for (const ScheduledSequence& row : batch.sequences) {
      result.token_ids.push_back(row.samples ? 1 + static_cast<int32_t>(row.seed % 7) : -1);
      result.is_invalid.push_back(0);
    }
  }

  void wait(StepResult& result) override {
    std::swap(result, results_[num_waited_++ % results_.size()]);
  }

 private:
  std::vector<StepResult> results_;
  size_t num_launched_ = 0;
  size_t num_waited_ = 0;
};

class SteadyStateTest : public ::testing::TestWithParam<std::tuple<bool, int32_t>> {};

TEST_P(SteadyStateTest, AStepAllocatesNothing) {
  EngineConfig config = small_config();
  config.max_num_seqs = 64;
  config.max_num_batched_tokens = 256;
  config.max_num_queued_reqs = 100;
  config.max_model_len = 1024;
  config.enable_prefix_caching = std::get<0>(GetParam());
  Engine engine(config, kVocabSize, 64 * 256,
                std::make_unique<ConstantRunner>(std::get<1>(GetParam())));
  for (uint64_t id = 0; id < 64; ++id) engine.submit(make_request((id % 3) << 48 | id, 20, 900));
  std::vector<OutputBatch> batches;
  const auto step = [&] {
    ASSERT_TRUE(engine.step());
    engine.take_outputs(batches, 0s);
  };
  for (int i = 0; i < 20; ++i) step();
  const testing::CountedNew counted;
  for (int i = 0; i < 500; ++i) step();  // over many block boundaries
  EXPECT_EQ(counted.count(), 0);
  EXPECT_EQ(engine.stats().num_running, 64);
}

INSTANTIATE_TEST_SUITE_P(PrefixCachingAndStepsInFlight, SteadyStateTest,
                         ::testing::Combine(::testing::Bool(), ::testing::Values(1, 2)));

}  // namespace
}  // namespace octavo
