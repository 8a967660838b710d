#include "kv/block_pool.h"

#include <gtest/gtest.h>

#include <deque>
#include <random>
#include <vector>

#include "base/check.h"

namespace octavo {
namespace {

TEST(BlockPoolTest, StartsWithAllBlocksFreeInOrder) {
  BlockPool pool(3);
  EXPECT_EQ(pool.num_blocks(), 3);
  EXPECT_EQ(pool.num_free(), 3);
  EXPECT_EQ(pool.take(), 0);
  EXPECT_EQ(pool.take(), 1);
  EXPECT_EQ(pool.take(), 2);
  EXPECT_EQ(pool.num_free(), 0);
  pool.self_check();
}

TEST(BlockPoolTest, ReusesTheLeastRecentlyReleasedFirst) {
  BlockPool pool(3);
  for (int i = 0; i < 3; ++i) pool.take();
  for (const int32_t id : {1, 2, 0}) pool.release(id, Reuse::kLast);
  for (const int32_t id : {1, 2, 0}) EXPECT_EQ(pool.take(), id);
}

TEST(BlockPoolTest, ReusesWorthlessBlocksBeforeOthers) {
  BlockPool pool(3);
  for (int i = 0; i < 3; ++i) pool.take();
  pool.release(0, Reuse::kLast);
  pool.release(1, Reuse::kFirst);
  EXPECT_EQ(pool.take(), 1);
  EXPECT_EQ(pool.take(), 0);
}

TEST(BlockPoolTest, AReferenceTakesABlockOutOfTheFreeList) {
  BlockPool pool(3);
  pool.add_reference(1);
  EXPECT_EQ(pool.num_free(), 2);
  EXPECT_EQ(pool.take(), 0);
  EXPECT_EQ(pool.take(), 2);
  pool.self_check();
}

TEST(BlockPoolTest, IsFreeOnlyWhenTheLastHolderReleases) {
  BlockPool pool(1);
  const int32_t id = pool.take();
  pool.add_reference(id);
  EXPECT_EQ(pool.ref_count(id), 2);
  pool.release(id, Reuse::kLast);
  EXPECT_EQ(pool.num_free(), 0);
  pool.release(id, Reuse::kLast);
  EXPECT_EQ(pool.num_free(), 1);
}

TEST(BlockPoolTest, MisuseIsCaught) {
  BlockPool pool(1);
  EXPECT_THROW(pool.release(0, Reuse::kLast), CheckError);
  pool.take();
  EXPECT_THROW(pool.take(), CheckError);
  EXPECT_THROW(BlockPool(0), CheckError);
  EXPECT_THROW(BlockPool(int64_t{1} << 31), CheckError);
}

// Against a twin that keeps the free list in a deque.
TEST(BlockPoolTest, BehavesAsAListOfFreeBlocks) {
  constexpr int32_t kNumBlocks = 17;
  BlockPool pool(kNumBlocks);
  std::deque<int32_t> free_ids;
  std::vector<int32_t> ref_counts(kNumBlocks, 0);
  for (int32_t id = 0; id < kNumBlocks; ++id) free_ids.push_back(id);
  std::mt19937 random(7);
  for (int step = 0; step < 20000; ++step) {
    const auto id = static_cast<int32_t>(random() % kNumBlocks);
    switch (random() % 3) {
      case 0:
        if (free_ids.empty()) break;
        ASSERT_EQ(pool.take(), free_ids.front());
        ++ref_counts[free_ids.front()];
        free_ids.pop_front();
        break;
      case 1:
        if (ref_counts[id]++ == 0) std::erase(free_ids, id);
        pool.add_reference(id);
        break;
      default:
        if (ref_counts[id] == 0) break;
        const Reuse reuse = random() % 2 == 0 ? Reuse::kLast : Reuse::kFirst;
        pool.release(id, reuse);
        if (--ref_counts[id] > 0) break;
        if (reuse == Reuse::kLast)
          free_ids.push_back(id);
        else
          free_ids.push_front(id);
    }
    ASSERT_EQ(pool.num_free(), std::ssize(free_ids));
    ASSERT_EQ(pool.ref_count(id), ref_counts[id]);
  }
  pool.self_check();
}

}  // namespace
}  // namespace octavo
