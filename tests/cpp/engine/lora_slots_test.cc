// Adapters come and go while requests run.
#include "engine/lora_slots.h"

#include <gtest/gtest.h>

#include <chrono>
#include <utility>

#include "base/errors.h"
#include "engine/engine_fixture.h"

namespace octavo {
namespace {

using testing::EngineFixture;
using testing::make_request;
using testing::small_config;

class LoraEngineTest : public EngineFixture {
 protected:
  void SetUp() override { make_engine(1); }

  void make_engine(int32_t max_steps_in_flight) {
    EngineConfig config = small_config();
    config.max_loras = 2;
    EngineFixture::make_engine(config, 64, max_steps_in_flight);
  }

  uint64_t load() {
    const uint64_t id = engine_->begin_lora().id;
    engine_->open_lora(id);
    return id;
  }

  void submit(uint64_t id, uint64_t lora_id, int32_t max_tokens = 3) {
    Request request = make_request(id, 5, max_tokens);
    request.lora_id = lora_id;
    engine_->submit(std::move(request));
  }
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
