#include "engine/outbox.h"

#include <gtest/gtest.h>
#include <poll.h>

#include <chrono>
#include <thread>
#include <vector>

#include "engine/counted_new.h"

namespace octavo {
namespace {

using namespace std::chrono_literals;

SequenceOutput token(uint64_t connection, uint64_t id, int32_t token_id) {
  SequenceOutput output;
  output.request_id = connection << 48 | id;
  output.token_id = token_id;
  return output;
}

class OutboxTest : public ::testing::Test {
 protected:
  bool is_readable() const {
    pollfd entry{outbox_.fd(), POLLIN, 0};
    return poll(&entry, 1, 0) == 1;
  }

  Outbox outbox_;
  std::vector<OutputBatch> batches_;
};

TEST_F(OutboxTest, AnOutputBecomesARecordWithItsColumns) {
  const std::vector<LogprobEntry> logprobs{{7, -0.5f, 1}, {8, -1.5f, 2}};
  const std::vector<LogprobEntry> prompt_logprobs{{9, -2.5f, 3}};
  SequenceOutput output = token(3, 5, 42);
  output.sequence_index = 2;
  output.num_prompt_tokens = 11;
  output.num_cached_tokens = 8;
  output.stop_token_id = 42;
  output.finish_reason = FinishReason::kStop;
  output.logprobs = logprobs;
  output.prompt_logprobs = prompt_logprobs;
  outbox_.emit(output);
  outbox_.publish();
  ASSERT_TRUE(outbox_.take(batches_, 0s));
  ASSERT_EQ(batches_.size(), 1);
  const OutputBatch& batch = batches_[0];
  EXPECT_EQ(batch.connection, 3);
  ASSERT_EQ(batch.records.size(), 1);
  const OutputRecord& record = batch.records[0];
  EXPECT_EQ(record.request_id, uint64_t{3} << 48 | 5);
  EXPECT_EQ(record.sequence_index, 2);
  EXPECT_EQ(record.num_tokens, 1);
  EXPECT_EQ(record.num_prompt_tokens, 11);
  EXPECT_EQ(record.num_cached_tokens, 8);
  EXPECT_EQ(record.stop_token_id, 42);
  EXPECT_EQ(record.num_logprobs, 2);
  EXPECT_EQ(record.num_prompt_logprobs, 1);
  EXPECT_EQ(record.finish_reason, 1);
  EXPECT_EQ(batch.token_ids, (std::vector<int32_t>{42}));
  ASSERT_EQ(batch.logprobs.size(), 2);
  EXPECT_EQ(batch.logprobs[1].token_id, 8);
  ASSERT_EQ(batch.prompt_logprobs.size(), 1);
  EXPECT_EQ(batch.prompt_logprobs[0].rank, 3);
  EXPECT_TRUE(batch.errors.empty());
}

TEST_F(OutboxTest, AnErrorCarriesItsMessage) {
  SequenceOutput output = token(0, 5, -1);
  output.finish_reason = FinishReason::kError;
  output.error = "broken";
  outbox_.emit(output);
  outbox_.publish();
  outbox_.take(batches_, 0s);
  EXPECT_EQ(batches_[0].records[0].num_tokens, 0);
  ASSERT_EQ(batches_[0].errors.size(), 1);
  EXPECT_EQ(batches_[0].errors[0].first, 5);
  EXPECT_EQ(batches_[0].errors[0].second, "broken");
}

TEST_F(OutboxTest, EachConnectionGetsItsOwnBatch) {
  for (const uint64_t connection : {1, 2, 1, 65535, 2}) {
    outbox_.emit(token(connection, 1, static_cast<int32_t>(connection)));
  }
  outbox_.publish();
  outbox_.take(batches_, 0s);
  ASSERT_EQ(batches_.size(), 3);
  EXPECT_EQ(batches_[0].token_ids, (std::vector<int32_t>{1, 1}));
  EXPECT_EQ(batches_[1].token_ids, (std::vector<int32_t>{2, 2}));
  EXPECT_EQ(batches_[2].connection, 65535);
}

TEST_F(OutboxTest, StepsThatWereNotTakenAddUpInOrder) {
  for (int32_t step = 0; step < 5; ++step) {
    outbox_.emit(token(step % 2, 1, step));
    outbox_.publish();
  }
  EXPECT_GT(outbox_.pending_bytes(), 0);
  outbox_.take(batches_, 0s);
  ASSERT_EQ(batches_.size(), 2);
  EXPECT_EQ(batches_[0].token_ids, (std::vector<int32_t>{0, 2, 4}));
  EXPECT_EQ(batches_[1].token_ids, (std::vector<int32_t>{1, 3}));
  EXPECT_EQ(outbox_.pending_bytes(), 0);
}

TEST_F(OutboxTest, NothingIsSeenBeforePublish) {
  outbox_.emit(token(0, 1, 1));
  EXPECT_TRUE(outbox_.take(batches_, 0s));
  EXPECT_TRUE(batches_.empty());
  EXPECT_FALSE(is_readable());
}

TEST_F(OutboxTest, TheDescriptorIsReadableWhileOutputsWait) {
  EXPECT_FALSE(is_readable());
  outbox_.emit(token(0, 1, 1));
  outbox_.publish();
  EXPECT_TRUE(is_readable());
  outbox_.take(batches_, 0s);
  EXPECT_FALSE(is_readable());
  outbox_.publish();  // nothing new
  EXPECT_FALSE(is_readable());
}

TEST_F(OutboxTest, AfterCloseTheRestIsTakenAndThenNothing) {
  outbox_.emit(token(0, 1, 1));
  outbox_.publish();
  outbox_.close();
  EXPECT_TRUE(outbox_.take(batches_, 0s));
  EXPECT_EQ(batches_.size(), 1);
  EXPECT_FALSE(outbox_.take(batches_, 10s));
  EXPECT_TRUE(batches_.empty());
  EXPECT_FALSE(outbox_.take(batches_, 10s));
  EXPECT_TRUE(is_readable());
}

TEST_F(OutboxTest, TakeWaitsForTheOtherThread) {
  std::thread engine([this] {
    outbox_.emit(token(0, 1, 1));
    outbox_.publish();
  });
  EXPECT_TRUE(outbox_.take(batches_, 10s));
  EXPECT_EQ(batches_.size(), 1);
  engine.join();
}

TEST_F(OutboxTest, BuffersGoRound) {
  const auto step = [this] {
    for (uint64_t i = 0; i < 300; ++i) outbox_.emit(token(i % 3, i, 1));
    outbox_.publish();
    outbox_.take(batches_, 0s);
  };
  for (int i = 0; i < 4; ++i) step();
  const testing::CountedNew counted;
  for (int i = 0; i < 100; ++i) step();
  EXPECT_EQ(counted.count(), 0);
}

TEST_F(OutboxTest, ABurstIsNotKept) {
  const std::vector<LogprobEntry> many(1 << 20);
  SequenceOutput output = token(0, 1, 1);
  output.prompt_logprobs = many;
  outbox_.emit(output);
  outbox_.publish();
  outbox_.take(batches_, 0s);
  EXPECT_EQ(batches_[0].prompt_logprobs.size(), many.size());
  outbox_.take(batches_, 0s);
  outbox_.emit(token(0, 1, 1));
  outbox_.publish();
  outbox_.take(batches_, 0s);
  EXPECT_LT(batches_[0].prompt_logprobs.capacity(), many.size());
}

}  // namespace
}  // namespace octavo
