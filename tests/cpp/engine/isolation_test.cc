// Faults thrown into steps at random, while sequences share blocks, are preempted and aborted: whom
// a fault hits ends with an error, everybody else gets what a run alone gives.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/errors.h"
#include "engine/engine.h"
#include "engine/taken_outputs.h"
#include "sched/fake_runner.h"

namespace octavo::testing {
namespace {

constexpr int64_t kNumBlocks = 26;
constexpr int64_t kVocabSize = 61;
constexpr int kNumRequests = 80;
constexpr const char* kInjected = "injected";

EngineConfig small_config() {
  EngineConfig config;
  config.max_model_len = 64;
  config.block_size = 4;
  config.max_num_seqs = 6;
  config.max_num_batched_tokens = 24;
  config.eos_token_ids = {3};
  return config;
}

class IsolationTest : public ::testing::TestWithParam<int32_t> {
 protected:
  void make_engine(uint32_t seed) {
    const EngineConfig config = small_config();
    auto runner = std::make_unique<FakeRunner>(
        FakeRunnerOptions{kVocabSize, kNumBlocks, config.block_size, config.max_num_seqs,
                          config.max_num_batched_tokens, GetParam()});
    random_.seed(seed);
    requests_.clear();
    hit_.clear();
    taken_ = {};
    runner->before_run = [this](const ScheduledBatch& batch) {
      if (random_() % 16 == 0) fail(batch);
    };
    runner->after_run = [this](const ScheduledBatch& batch, StepResult& result) {
      if (random_() % 16 == 0) fail(batch);
      if (random_() % 8 == 0) spoil_one_row(batch, result);
    };
    runner_ = runner.get();
    engine_ = std::make_unique<Engine>(config, kVocabSize, kNumBlocks, std::move(runner));
  }

  void fail(const ScheduledBatch& batch) {
    for (const ScheduledSequence& row : batch.sequences) {
      hit_.emplace(row.request_id, row.sequence_index);
    }
    throw DeviceError(kInjected, false);
  }

  void spoil_one_row(const ScheduledBatch& batch, StepResult& result) {
    const size_t row = random_() % batch.sequences.size();
    result.is_invalid[row] = 1;
    hit_.emplace(batch.sequences[row].request_id, batch.sequences[row].sequence_index);
  }

  // Prompts share beginnings, so that what a failed step left in the cache would be found.
  Request random_request(uint64_t id) {
    Request request;
    request.id = id;
    for (int32_t i = 0; i < 14; ++i) {
      request.token_ids.push_back(static_cast<int32_t>((id % 3) * 13 + i));
    }
    for (uint64_t i = random_() % 9; i > 0; --i) {
      request.token_ids.push_back(static_cast<int32_t>(random_() % kVocabSize));
    }
    request.sampling.temperature = 0.0f;
    request.sampling.max_tokens = static_cast<int32_t>(1 + random_() % 24);
    request.sampling.ignore_eos = random_() % 2 == 0;
    request.sampling.n = random_() % 6 == 0 ? 3 : 1;
    return request;
  }

  void step() {
    engine_->self_check();
    engine_->step();
    taken_.take(*engine_);
    ASSERT_TRUE(engine_->is_healthy()) << engine_->last_error();
    const std::string error = engine_->last_error();
    ASSERT_TRUE(error.empty() || error == kInjected) << error;
  }

  void serve() {
    for (uint64_t id = 0; id < kNumRequests; ++id) {
      Request request = random_request(id);
      requests_[id] = request;
      engine_->submit(std::move(request));
      if (id % 9 == 8) engine_->abort(id - 3);
      for (uint64_t i = random_() % 4; i > 0; --i) step();
    }
    while (engine_->stats().num_running + engine_->stats().num_waiting > 0) step();
    step();
  }

  // What the model says to a prompt when nobody is beside it.
  std::vector<int32_t> alone(const Request& request) const {
    std::vector<int32_t> tokens = request.token_ids, output;
    const int64_t room = small_config().max_model_len - std::ssize(tokens);
    while (std::ssize(output) < std::min<int64_t>(request.sampling.max_tokens, room)) {
      output.push_back(runner_->token_after(tokens, request.sampling, 0, {}));
      tokens.push_back(output.back());
      if (output.back() == 3 && !request.sampling.ignore_eos) break;
    }
    return output;
  }

  std::mt19937 random_;
  std::map<uint64_t, Request> requests_;
  std::set<std::pair<uint64_t, int32_t>> hit_;  // by a fault
  FakeRunner* runner_ = nullptr;
  std::unique_ptr<Engine> engine_;
  TakenOutputs taken_;
};

TEST_P(IsolationTest, AFaultEndsWhomItHitsAndNobodyElse) {
  int64_t num_errors = 0, num_whole = 0, num_preemptions = 0, num_hits = 0;
  for (uint32_t seed = 1; seed <= 12; ++seed) {
    make_engine(seed);
    ASSERT_NO_FATAL_FAILURE(serve());
    for (const auto& [id, request] : requests_) {
      const std::vector<int32_t> expected = alone(request);
      for (int32_t index = 0; index < request.sampling.n; ++index) {
        const TakenSequence& got = taken_.at(id, index);
        ASSERT_NE(got.finish_reason, FinishReason::kNone);
        ASSERT_LE(got.token_ids.size(), expected.size());
        EXPECT_TRUE(std::equal(got.token_ids.begin(), got.token_ids.end(), expected.begin()));
        if (got.finish_reason == FinishReason::kError) {
          EXPECT_TRUE(hit_.contains({id, index})) << "request " << id << " was not hit";
          ++num_errors;
        } else if (got.finish_reason != FinishReason::kAbort) {
          EXPECT_EQ(got.token_ids.size(), expected.size());
          ++num_whole;
        }
      }
    }
    const EngineStats stats = engine_->stats();
    EXPECT_EQ(stats.num_free_blocks, kNumBlocks);
    num_preemptions += stats.num_preemptions;
    num_hits += stats.num_prefix_hit_tokens;
  }
  EXPECT_GT(num_errors, 100);
  EXPECT_GT(num_whole, 100);
  EXPECT_GT(num_preemptions, 10);
  EXPECT_GT(num_hits, 100);
}

INSTANTIATE_TEST_SUITE_P(StepsInFlight, IsolationTest, ::testing::Values(1, 2));

}  // namespace
}  // namespace octavo::testing
