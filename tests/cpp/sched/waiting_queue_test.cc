#include "sched/waiting_queue.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <vector>

#include "base/check.h"

namespace octavo {
namespace {

Rank rank(int64_t turn) { return {turn, static_cast<uint64_t>(turn), 0}; }

TEST(WaitingQueueTest, FrontIsTheLeastRank) {
  std::vector<Sequence> sequences(4);
  WaitingQueue queue;
  for (const int64_t i : {2, 0, 3, 1}) {
    sequences[i].rank = rank(i);
    queue.push(&sequences[i]);
  }
  for (Sequence& expected : sequences) {
    ASSERT_EQ(queue.front(), &expected);
    queue.remove(queue.front());
    EXPECT_EQ(expected.queue_position, -1);
  }
  EXPECT_TRUE(queue.empty());
}

TEST(WaitingQueueTest, MisuseIsCaught) {
  Sequence sequence;
  WaitingQueue queue;
  EXPECT_THROW(queue.remove(&sequence), CheckError);
  queue.push(&sequence);
  EXPECT_THROW(queue.push(&sequence), CheckError);
  EXPECT_THROW(WaitingQueue().remove(&sequence), CheckError);
}

// Against a twin that is a std::set, with removals anywhere.
TEST(WaitingQueueTest, BehavesAsASortedSet) {
  std::vector<Sequence> sequences(64);
  for (size_t i = 0; i < sequences.size(); ++i) {
    sequences[i].rank = {static_cast<int64_t>(i * 37 % 16), i, 0};
  }
  const auto by_rank = [](const Sequence* a, const Sequence* b) { return a->rank < b->rank; };
  std::set<Sequence*, decltype(by_rank)> twin(by_rank);
  WaitingQueue queue;
  std::mt19937 random(3);
  for (int step = 0; step < 20000; ++step) {
    Sequence* sequence = &sequences[random() % sequences.size()];
    if (twin.erase(sequence) > 0) {
      queue.remove(sequence);
    } else {
      twin.insert(sequence);
      queue.push(sequence);
    }
    ASSERT_EQ(queue.size(), std::ssize(twin));
    if (!twin.empty()) {
      ASSERT_EQ(queue.front(), *twin.begin());
    }
  }
}

}  // namespace
}  // namespace octavo
