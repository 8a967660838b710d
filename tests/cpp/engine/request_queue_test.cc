#include "engine/request_queue.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>
#include <vector>

#include "base/errors.h"

namespace octavo {
namespace {

using namespace std::chrono_literals;

Request request(uint64_t id, int64_t num_tokens = 1, int32_t n = 1) {
  Request made;
  made.id = id;
  made.token_ids.assign(num_tokens, 1);
  made.sampling.n = n;
  return made;
}

class RequestQueueTest : public ::testing::Test {
 protected:
  RequestQueue queue_{3, 100};
  std::vector<Command> commands_;
};

TEST_F(RequestQueueTest, CommandsComeOutInOrder) {
  queue_.submit(request(1));
  queue_.abort(1);
  queue_.reset_prefix_cache();
  queue_.submit(request(2, 5));
  queue_.drain(commands_);
  ASSERT_EQ(commands_.size(), 4);
  EXPECT_EQ(commands_[0].kind, Command::Kind::kSubmit);
  EXPECT_EQ(commands_[1].kind, Command::Kind::kAbort);
  EXPECT_EQ(commands_[1].request_id, 1);
  EXPECT_EQ(commands_[2].kind, Command::Kind::kResetPrefixCache);
  EXPECT_EQ(commands_[3].request->id, 2);
  EXPECT_EQ(commands_[3].request->token_ids.size(), 5);
  queue_.drain(commands_);
  EXPECT_TRUE(commands_.empty());
}

TEST_F(RequestQueueTest, RefusesMoreRequestsThanItsLimit) {
  for (uint64_t id = 0; id < 3; ++id) queue_.submit(request(id));
  EXPECT_THROW(queue_.submit(request(3)), QueueFullError);
  queue_.drain(commands_);
  EXPECT_THROW(queue_.submit(request(3)), QueueFullError);  // they wait in the scheduler now
  queue_.settle({2, 2}, {}, false);
  queue_.submit(request(3));
  EXPECT_THROW(queue_.submit(request(4)), QueueFullError);
}

TEST_F(RequestQueueTest, RefusesMoreTokensThanItsLimit) {
  queue_.submit(request(1, 60));
  EXPECT_THROW(queue_.submit(request(2, 41)), QueueFullError);
  queue_.submit(request(3, 40));
  queue_.drain(commands_);
  queue_.settle({1, 60}, {}, false);
  EXPECT_THROW(queue_.submit(request(4, 41)), QueueFullError);
  queue_.submit(request(5, 40));
}

TEST_F(RequestQueueTest, AnEmptyQueueTakesAnyOneRequest) {
  queue_.submit(request(1, 5000));
  EXPECT_THROW(queue_.submit(request(2, 1)), QueueFullError);
}

TEST_F(RequestQueueTest, SaysThatItIsFullBeforeItIsAsked) {
  for (uint64_t id = 0; id < 3; ++id) {
    EXPECT_FALSE(queue_.is_full());
    queue_.submit(request(id));
  }
  EXPECT_TRUE(queue_.is_full());
  queue_.drain(commands_);
  EXPECT_TRUE(queue_.is_full());  // they wait in the scheduler now
  queue_.settle({2, 2}, {}, false);
  EXPECT_FALSE(queue_.is_full());
  queue_.settle({1, 100}, {}, false);
  EXPECT_TRUE(queue_.is_full());  // of tokens
}

TEST_F(RequestQueueTest, ARefusedRequestLeavesNothingBehind) {
  for (uint64_t id = 0; id < 3; ++id) queue_.submit(request(id));
  EXPECT_THROW(queue_.submit(request(9)), QueueFullError);
  queue_.drain(commands_);
  EXPECT_EQ(commands_.size(), 3);
  queue_.settle({}, {}, false);
  queue_.submit(request(9));
}

TEST_F(RequestQueueTest, AnIdIsUsedAgainOnlyAfterItEnded) {
  queue_.submit(request(1));
  EXPECT_THROW(queue_.submit(request(1)), InvalidRequestError);
  queue_.drain(commands_);
  queue_.settle({}, {}, false);
  EXPECT_THROW(queue_.submit(request(1)), InvalidRequestError);
  queue_.settle({}, std::vector<uint64_t>{1}, false);
  queue_.submit(request(1));
}

TEST_F(RequestQueueTest, AbortsOfUnknownIdsAreDropped) {
  queue_.abort(7);
  queue_.drain(commands_);
  EXPECT_TRUE(commands_.empty());
}

TEST_F(RequestQueueTest, RefusesWhileOutputsAreNotTaken) {
  queue_.settle({}, {}, true);
  EXPECT_THROW(queue_.submit(request(1)), QueueFullError);
  queue_.settle({}, {}, false);
  queue_.submit(request(1));
}

TEST_F(RequestQueueTest, RefusesAfterCloseWithTheFirstReason) {
  queue_.submit(request(1));
  EXPECT_FALSE(queue_.is_closed());
  queue_.close("first");
  queue_.close("second");
  EXPECT_TRUE(queue_.is_closed());
  try {
    queue_.submit(request(2));
    ADD_FAILURE() << "accepted";
  } catch (const NotReadyError& error) {
    EXPECT_STREQ(error.what(), "first");
  }
  queue_.drain(commands_);
  EXPECT_EQ(commands_.size(), 1);
}

TEST_F(RequestQueueTest, CountsSequencesUntilTheStepThatTookThemIsSettled) {
  queue_.submit(request(1, 1, 5));
  queue_.submit(request(2));
  EXPECT_EQ(queue_.num_unsettled_sequences(), 6);
  queue_.drain(commands_);
  queue_.submit(request(3));
  EXPECT_EQ(queue_.num_unsettled_sequences(), 7);
  queue_.settle({}, {}, false);
  EXPECT_EQ(queue_.num_unsettled_sequences(), 1);
}

TEST_F(RequestQueueTest, WaitEndsWithACommandWithCloseOrInTime) {
  queue_.wait(1ms);
  std::thread submitter([this] { queue_.submit(request(1)); });
  queue_.wait(10s);
  submitter.join();
  queue_.drain(commands_);
  EXPECT_EQ(commands_.size(), 1);
  std::thread closer([this] { queue_.close("closed"); });
  queue_.wait(10s);
  closer.join();
  EXPECT_TRUE(queue_.is_closed());
}

}  // namespace
}  // namespace octavo
