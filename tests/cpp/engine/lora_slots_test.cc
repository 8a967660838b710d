// Adapters come and go while requests run.
#include "engine/lora_slots.h"

#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <utility>

#include "base/errors.h"
#include "engine/engine.h"
#include "engine/taken_outputs.h"
#include "sched/fake_runner.h"

namespace octavo {
namespace {

using testing::FakeRunner;
using testing::TakenOutputs;

constexpr int64_t kVocabSize = 50;

class LoraEngineTest : public ::testing::Test {
 protected:
  LoraEngineTest() { make_engine(1); }

  void make_engine(int32_t max_steps_in_flight) {
    EngineConfig config;
    config.max_model_len = 128;
    config.block_size = 4;
    config.max_num_seqs = 4;
    config.max_num_batched_tokens = 32;
    config.max_loras = 2;
    auto runner = std::make_unique<FakeRunner>(
        testing::FakeRunnerOptions{kVocabSize, 64, config.block_size, config.max_num_seqs,
                                   config.max_num_batched_tokens, max_steps_in_flight});
    runner_ = runner.get();
    engine_ = std::make_unique<Engine>(config, kVocabSize, 64, std::move(runner));
  }

  uint64_t load() {
    const uint64_t id = engine_->begin_lora().id;
    engine_->open_lora(id);
    return id;
  }

  void submit(uint64_t id, uint64_t lora_id, int32_t max_tokens = 3) {
    Request request;
    request.id = id;
    request.token_ids = {1, 2, 3, 4, 5};
    request.lora_id = lora_id;
    request.sampling.max_tokens = max_tokens;
    request.sampling.ignore_eos = true;
    engine_->submit(std::move(request));
  }

  void run() {
    while (engine_->step()) taken_.take(*engine_);
    taken_.take(*engine_);
  }

  std::unique_ptr<Engine> engine_;
  FakeRunner* runner_ = nullptr;
  TakenOutputs taken_;
};

TEST_F(LoraEngineTest, RequestsRunInTheSlotOfTheirAdapter) {
  const uint64_t first = load(), second = load();
  std::vector<int32_t> slots;
  runner_->before_run = [&](const ScheduledBatch& batch) {
    for (const ScheduledSequence& row : batch.sequences) slots.push_back(row.lora_slot);
  };
  submit(1, second, 1);
  submit(2, 0, 1);
  submit(3, first, 1);
  run();
  EXPECT_EQ(slots, (std::vector<int32_t>{1, -1, 0}));
}

TEST_F(LoraEngineTest, OnlyOpenAdaptersTakeRequests) {
  EXPECT_THROW(submit(1, 1), UnknownModelError);
  const LoraSlots::Lease lease = engine_->begin_lora();
  EXPECT_THROW(submit(1, lease.id), UnknownModelError);
  engine_->open_lora(lease.id);
  submit(1, lease.id);
  engine_->close_lora(lease.id);
  EXPECT_THROW(submit(2, lease.id), UnknownModelError);
  run();
  EXPECT_EQ(taken_.at(1).token_ids.size(), 3);
  EXPECT_EQ(taken_.at(1).finish_reason, FinishReason::kLength);
}

TEST_F(LoraEngineTest, AClosedSlotIsFreeWhenItsLastRequestHasEnded) {
  for (const int32_t steps_in_flight : {1, 2}) {
    make_engine(steps_in_flight);
    load();
    const LoraSlots::Lease lease = engine_->begin_lora();
    engine_->open_lora(lease.id);
    submit(1, lease.id, 20);
    engine_->step();
    engine_->close_lora(lease.id);
    engine_->step();
    EXPECT_THROW(engine_->begin_lora(), InvalidRequestError);
    run();
    const LoraSlots::Lease next = engine_->begin_lora();
    EXPECT_EQ(next.slot, lease.slot);
    EXPECT_GT(next.id, lease.id);
    taken_ = {};
  }
}

TEST_F(LoraEngineTest, ALoadThatFailsGivesItsSlotBack) {
  load();
  engine_->close_lora(engine_->begin_lora().id);
  EXPECT_FALSE(engine_->step());
  EXPECT_NO_THROW(engine_->begin_lora());
  engine_->close_lora(99);  // nobody's
}

TEST_F(LoraEngineTest, ClosingTwiceIsClosingOnce) {
  const uint64_t id = load();
  engine_->close_lora(id);
  engine_->close_lora(id);
  engine_->step();
  engine_->close_lora(id);
  engine_->step();
  EXPECT_TRUE(engine_->is_healthy());
  load();
  load();
  EXPECT_THROW(engine_->begin_lora(), InvalidRequestError);
}

TEST_F(LoraEngineTest, ALoadWaitsForASlotThatIsClosed) {
  load();
  const uint64_t id = load();
  submit(1, id, 5);
  engine_->start();
  engine_->close_lora(id);
  EXPECT_NO_THROW(engine_->begin_lora(std::chrono::seconds(30)));
  EXPECT_THROW(engine_->begin_lora(std::chrono::seconds(30)), InvalidRequestError);  // at once
}

TEST_F(LoraEngineTest, WhatIsOpenIsLoadedNoMore) {
  const uint64_t id = load();
  EXPECT_THROW(engine_->loading_lora_slot(id), CheckError);
  EXPECT_THROW(engine_->loading_lora_slot(0), CheckError);
  EXPECT_THROW(engine_->open_lora(id), CheckError);
}

TEST_F(LoraEngineTest, AnAbortedRequestFreesTheSlotToo) {
  load();
  const uint64_t id = load();
  submit(1, id, 50);
  engine_->step();
  engine_->close_lora(id);
  engine_->abort(1);
  run();
  EXPECT_NO_THROW(engine_->begin_lora());
}

}  // namespace
}  // namespace octavo
