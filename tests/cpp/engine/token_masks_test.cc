// Sequences that a grammar constrains: their masks come from another thread, in time or too late.
#include "engine/token_masks.h"

#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "base/errors.h"
#include "engine/engine.h"
#include "engine/taken_outputs.h"
#include "sched/fake_runner.h"

namespace octavo {
namespace {

using namespace std::chrono_literals;
using testing::FakeRunner;
using testing::TakenOutputs;

constexpr int64_t kVocabSize = 50;
constexpr uint64_t kPlain = 1, kConstrained = 2;

std::vector<uint32_t> mask_of(int32_t token_id) {
  std::vector<uint32_t> mask(2, 0);
  mask[token_id / 32] = 1u << (token_id % 32);
  return mask;
}

Request make_request(uint64_t id, int32_t max_tokens) {
  Request request;
  request.id = id;
  request.token_ids = {1, 2, 3};
  request.sampling.temperature = 0.0f;
  request.sampling.max_tokens = max_tokens;
  return request;
}

class TokenMasksTest : public ::testing::Test {
 protected:
  TokenMasksTest() {
    EngineConfig config;
    config.max_model_len = 64;
    config.block_size = 4;
    config.max_num_seqs = 4;
    config.max_num_batched_tokens = 32;
    auto runner = std::make_unique<FakeRunner>(testing::FakeRunnerOptions{
        kVocabSize, 64, config.block_size, config.max_num_seqs, config.max_num_batched_tokens});
    runner_ = runner.get();
    engine_ = std::make_unique<Engine>(config, kVocabSize, 64, std::move(runner));
  }

  void submit_constrained(int32_t first_token, int32_t max_tokens, int32_t n = 1) {
    Request request = make_request(kConstrained, max_tokens);
    request.sampling.n = n;
    request.token_mask = mask_of(first_token);
    engine_->submit(std::move(request));
  }

  void step() {
    engine_->step();
    taken_.take(*engine_);
  }
  std::vector<MaskWork> work() {
    std::vector<MaskWork> work;
    engine_->take_mask_work(work, 0ns);
    return work;
  }
  void set_mask(int32_t token_id, int32_t index = 0) {
    const SequenceKey key{kConstrained, index};
    engine_->set_token_masks({&key, 1}, mask_of(token_id));
  }
  const std::vector<int32_t>& tokens(uint64_t id, uint32_t index = 0) {
    return taken_.at(id, index).token_ids;
  }

  FakeRunner* runner_ = nullptr;
  std::unique_ptr<Engine> engine_;
  TakenOutputs taken_;
};

TEST_F(TokenMasksTest, EachTokenIsDrawnFromItsMaskAndNamedAsWork) {
  submit_constrained(33, 3);
  step();
  EXPECT_EQ(tokens(kConstrained), (std::vector<int32_t>{33}));
  std::vector<MaskWork> first = work();
  ASSERT_EQ(first.size(), 1u);
  EXPECT_EQ(first[0].sequence, (SequenceKey{kConstrained, 0}));
  EXPECT_EQ(first[0].token_id, 33);
  set_mask(9);
  step();
  ASSERT_EQ(work().size(), 1u);
  set_mask(40);
  step();
  EXPECT_EQ(tokens(kConstrained), (std::vector<int32_t>{33, 9, 40}));
  const std::vector<MaskWork> last = work();
  ASSERT_EQ(last.size(), 1u);
  EXPECT_EQ(last[0].token_id, -1);  // it has ended
}

TEST_F(TokenMasksTest, ALateMaskCostsItsSequenceAStepAndNobodyElseATime) {
  engine_->submit(make_request(kPlain, 20));
  submit_constrained(5, 4);
  step();
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < 10; ++i) step();  // the mask does not come
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 500ms);
  EXPECT_EQ(tokens(kPlain).size(), 11u);
  EXPECT_EQ(tokens(kConstrained).size(), 1u);
  EXPECT_EQ(engine_->stats().num_deferred, 10);
  set_mask(6);
  step();
  EXPECT_EQ(tokens(kConstrained), (std::vector<int32_t>{5, 6}));
  EXPECT_EQ(tokens(kPlain).size(), 12u);
}

TEST_F(TokenMasksTest, AStepOfConstrainedSequencesAloneWaits) {
  submit_constrained(5, 2);
  step();
  std::thread maker([this] {
    std::this_thread::sleep_for(10ms);
    set_mask(6);
  });
  step();
  maker.join();
  EXPECT_EQ(tokens(kConstrained), (std::vector<int32_t>{5, 6}));
  EXPECT_EQ(engine_->stats().num_deferred, 0);
}

TEST_F(TokenMasksTest, SiblingsHaveMasksOfTheirOwn) {
  submit_constrained(5, 2, 2);
  step();
  step();  // sequence 1 begins, sequence 0 may be waiting for its mask
  set_mask(10, 0);
  set_mask(20, 1);
  step();
  step();
  EXPECT_EQ(tokens(kConstrained, 0), (std::vector<int32_t>{5, 10}));
  EXPECT_EQ(tokens(kConstrained, 1), (std::vector<int32_t>{5, 20}));
}

TEST_F(TokenMasksTest, OneSequenceCanBeAborted) {
  submit_constrained(5, 8, 2);
  step();
  step();
  engine_->abort(kConstrained, 1);
  set_mask(6, 0);
  step();
  EXPECT_EQ(taken_.at(kConstrained, 1).finish_reason, FinishReason::kAbort);
  EXPECT_EQ(taken_.at(kConstrained, 0).finish_reason, FinishReason::kNone);
  set_mask(7, 1);  // too late: ignored
  EXPECT_EQ(tokens(kConstrained, 0).back(), 6);
}

TEST_F(TokenMasksTest, AWrongMaskIsRefused) {
  Request request = make_request(kConstrained, 2);
  request.token_mask = {1, 2, 3};
  EXPECT_THROW(engine_->submit(request), InvalidRequestError);
  request.token_mask = mask_of(1);
  request.sampling.min_tokens = 1;
  EXPECT_THROW(engine_->submit(request), InvalidRequestError);
  const SequenceKey key{kConstrained, 0};
  EXPECT_ANY_THROW(engine_->set_token_masks({&key, 1}, std::vector<uint32_t>{1}));
}

TEST_F(TokenMasksTest, WorkEndsWithTheEngine) {
  submit_constrained(5, 8);
  step();
  engine_->shutdown();
  std::vector<MaskWork> work;
  EXPECT_TRUE(engine_->take_mask_work(work, 0ns));
  EXPECT_EQ(work.back().token_id, -1);
  EXPECT_FALSE(engine_->take_mask_work(work, 0ns));
}

TEST_F(TokenMasksTest, TimeInTheQueueIsCounted) {
  engine_->submit(make_request(kPlain, 2));
  std::this_thread::sleep_for(20ms);
  engine_->step();
  std::vector<OutputBatch> batches;
  engine_->take_outputs(batches, 0ns);
  const uint32_t queue_time_us = batches.at(0).records.at(0).queue_time_us;
  EXPECT_GE(queue_time_us, 20'000u);
  EXPECT_LT(queue_time_us, 10'000'000u);
}

}  // namespace
}  // namespace octavo
