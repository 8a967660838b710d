// The engine on its own thread, with submitters, aborters and a consumer on others.
#include <gtest/gtest.h>
#include <poll.h>
#include <pthread.h>

#include <atomic>
#include <chrono>
#include <future>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "base/errors.h"
#include "engine/engine_fixture.h"

namespace octavo {
namespace {

using namespace std::chrono_literals;
using testing::FakeRunner;
using testing::kVocabSize;
using testing::make_request;
using testing::TakenOutputs;

constexpr int64_t kNumBlocks = 80;

EngineConfig thread_config() {
  EngineConfig config;
  config.max_model_len = 128;
  config.block_size = 4;
  config.max_num_seqs = 16;
  config.max_num_batched_tokens = 64;
  config.max_num_queued_reqs = 1 << 20;
  return config;
}

class EngineThreadTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const EngineConfig config = thread_config();
    auto runner = std::make_unique<FakeRunner>(testing::runner_options(config, kNumBlocks));
    runner_ = runner.get();
    engine_ = std::make_unique<Engine>(config, kVocabSize, kNumBlocks, std::move(runner));
  }

  void take_until_finished(int64_t num_sequences) {
    const auto deadline = std::chrono::steady_clock::now() + 60s;
    while (taken_.num_finished() < num_sequences) {
      ASSERT_LT(std::chrono::steady_clock::now(), deadline);
      taken_.take(*engine_, 100ms);
    }
  }

  FakeRunner* runner_ = nullptr;
  std::unique_ptr<Engine> engine_;
  TakenOutputs taken_;
};

TEST_F(EngineThreadTest, RequestsFromBeforeTheStartAreServed) {
  engine_->submit(make_request(1, 5, 4));
  engine_->start();
  engine_->submit(make_request(2, 5, 4));
  take_until_finished(2);
}

TEST_F(EngineThreadTest, SixtyFourSubmittersLoseAndDoubleNothing) {
  constexpr int kNumThreads = 64;
  constexpr int kRequestsPerThread = 25;
  std::atomic<int64_t> num_sequences{0};
  const auto submit_many = [&](uint64_t connection) {
    std::mt19937 random(static_cast<uint32_t>(connection));
    for (uint64_t i = 0; i < kRequestsPerThread; ++i) {
      Request request = make_request(connection << 48 | i, 1 + random() % 40, 1 + random() % 12);
      request.sampling.n = random() % 4 == 0 ? 3 : 1;
      num_sequences += request.sampling.n;
      const uint64_t id = request.id;
      engine_->submit(std::move(request));
      if (random() % 5 == 0) engine_->abort(id);
      if (random() % 50 == 0) engine_->reset_prefix_cache();
      EXPECT_EQ(engine_->stats().num_blocks, kNumBlocks);
    }
  };
  engine_->start();
  std::vector<std::thread> submitters;
  for (uint64_t thread = 0; thread < kNumThreads; ++thread) {
    submitters.emplace_back(submit_many, thread);
  }
  // The consumer runs at the same time; how many sequences there are is known only afterwards.
  for (int i = 0; i < 50; ++i) taken_.take(*engine_, 1ms);
  for (std::thread& submitter : submitters) submitter.join();
  take_until_finished(num_sequences);
  EXPECT_EQ(taken_.num_finished(FinishReason::kError), 0);
  const EngineStats stats = engine_->stats();
  EXPECT_EQ(stats.num_free_blocks, kNumBlocks);
  EXPECT_EQ(stats.num_running + stats.num_waiting, 0);
  engine_->shutdown();
  EXPECT_FALSE(taken_.take(*engine_));
}

TEST_F(EngineThreadTest, ShutdownWithWorkInFlightEndsEverySequence) {
  engine_->start();
  for (uint64_t id = 0; id < 200; ++id) engine_->submit(make_request(id, 20, 100));
  taken_.take(*engine_, 10s);
  std::thread stopper([this] { engine_->shutdown(); });
  while (taken_.take(*engine_, 10s)) {
  }
  stopper.join();
  EXPECT_EQ(taken_.num_finished(), 200);
  EXPECT_GT(taken_.num_finished(FinishReason::kAbort), 0);
}

TEST_F(EngineThreadTest, SubmittersDuringShutdownAreServedOrRefused) {
  engine_->start();
  std::atomic<int64_t> num_accepted{0};
  std::vector<std::thread> submitters;
  for (uint64_t connection = 0; connection < 8; ++connection) {
    submitters.emplace_back([this, connection, &num_accepted] {
      try {
        for (uint64_t i = 0;; ++i) {
          engine_->submit(make_request(connection << 48 | i, 3, 2));
          ++num_accepted;
        }
      } catch (const NotReadyError&) {
      }
    });
  }
  taken_.take(*engine_, 10s);
  std::thread stopper([this] { engine_->shutdown(); });
  while (taken_.take(*engine_, 10s)) {
  }
  for (std::thread& submitter : submitters) submitter.join();
  stopper.join();
  EXPECT_EQ(taken_.num_finished(), num_accepted);
}

TEST_F(EngineThreadTest, TheDestructorShutsDown) {
  engine_->start();
  engine_->submit(make_request(1, 20, 100));
  engine_.reset();
}

TEST_F(EngineThreadTest, ShutdownWithoutStartEndsWhatWasSubmitted) {
  engine_->submit(make_request(1, 20, 100));
  engine_->shutdown();
  EXPECT_TRUE(taken_.take(*engine_));
  EXPECT_EQ(taken_.at(1).finish_reason, FinishReason::kAbort);
  EXPECT_FALSE(taken_.take(*engine_));
}

TEST_F(EngineThreadTest, ALostDeviceEndsTheOutputs) {
  runner_->before_run = [](const ScheduledBatch&) { throw DeviceError("lost", true); };
  engine_->start();
  engine_->submit(make_request(1, 20, 100));
  while (taken_.take(*engine_, 10s)) {
  }
  EXPECT_EQ(taken_.at(1).finish_reason, FinishReason::kError);
  EXPECT_FALSE(engine_->is_healthy());
  EXPECT_THROW(engine_->submit(make_request(2, 20, 100)), NotReadyError);
}

TEST_F(EngineThreadTest, TheHeartbeatGoesOnWhileIdle) {
  std::atomic<int64_t> heartbeat{0};
  engine_->set_heartbeat(&heartbeat);
  engine_->start();
  int64_t last_ns = 0;
  for (int beats = 0; beats < 3;) {
    const int64_t now_ns = heartbeat.load();
    beats += now_ns != last_ns;
    last_ns = now_ns;
    std::this_thread::sleep_for(1ms);
  }
  engine_->shutdown();
}

TEST_F(EngineThreadTest, TheDescriptorWakesAPoller) {
  engine_->start();
  pollfd entry{engine_->output_fd(), POLLIN, 0};
  EXPECT_EQ(poll(&entry, 1, 0), 0);
  engine_->submit(make_request(1, 5, 1));
  EXPECT_EQ(poll(&entry, 1, 10000), 1);
  take_until_finished(1);
  EXPECT_EQ(poll(&entry, 1, 0), 0);
  engine_->shutdown();
  EXPECT_EQ(poll(&entry, 1, 0), 1);
}

TEST_F(EngineThreadTest, SignalsGoToOtherThreads) {
  std::promise<sigset_t> mask;
  runner_->before_run = [this, &mask](const ScheduledBatch&) {
    sigset_t current;
    pthread_sigmask(SIG_BLOCK, nullptr, &current);
    mask.set_value(current);
    runner_->before_run = nullptr;
  };
  engine_->start();
  engine_->submit(make_request(1, 5, 1));
  take_until_finished(1);
  const sigset_t blocked = mask.get_future().get();
  EXPECT_EQ(sigismember(&blocked, SIGTERM), 1);
  EXPECT_EQ(sigismember(&blocked, SIGSEGV), 0);
}

}  // namespace
}  // namespace octavo
