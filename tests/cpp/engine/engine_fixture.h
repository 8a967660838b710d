// An engine on a FakeRunner, stepped by the test, and the requests that it gets.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <utility>

#include "engine/engine.h"
#include "engine/taken_outputs.h"
#include "sched/fake_runner.h"

namespace octavo::testing {

inline constexpr int64_t kVocabSize = 50;

inline EngineConfig small_config() {
  EngineConfig config;
  config.max_model_len = 128;
  config.block_size = 4;
  config.max_num_seqs = 4;
  config.max_num_batched_tokens = 32;
  config.max_num_queued_reqs = 8;
  config.eos_token_ids = {0, 1 << 20};
  return config;
}

inline FakeRunnerOptions runner_options(const EngineConfig& config, int64_t num_blocks,
                                        int32_t max_steps_in_flight = 1) {
  return {kVocabSize,
          num_blocks,
          config.block_size,
          config.max_num_seqs,
          config.max_num_batched_tokens,
          max_steps_in_flight};
}

// Greedy, to the last of `max_tokens`. Requests of equal ids have equal prompts.
inline Request make_request(uint64_t id, int64_t num_tokens, int32_t max_tokens) {
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

class EngineFixture : public ::testing::Test {
 protected:
  void make_engine(const EngineConfig& config, int64_t num_blocks = 64,
                   int32_t max_steps_in_flight = 1) {
    auto runner =
        std::make_unique<FakeRunner>(runner_options(config, num_blocks, max_steps_in_flight));
    runner_ = runner.get();
    taken_ = {};
    engine_ = std::make_unique<Engine>(config, kVocabSize, num_blocks, std::move(runner));
  }

  // Steps while there is something to do.
  void run() {
    for (int i = 0; i < 10000 && engine_->step(); ++i) take();
    take();
  }
  bool take() { return taken_.take(*engine_); }

  void expect_idle() {
    const EngineStats stats = engine_->stats();
    EXPECT_EQ(stats.num_waiting, 0);
    EXPECT_EQ(stats.num_running, 0);
    EXPECT_EQ(stats.num_free_blocks, stats.num_blocks);
  }

  std::unique_ptr<Engine> engine_;
  FakeRunner* runner_ = nullptr;
  TakenOutputs taken_;
};

}  // namespace octavo::testing
