#include "kv/block_manager.h"

#include <gtest/gtest.h>

#include <initializer_list>
#include <limits>
#include <numeric>
#include <vector>

#include "base/check.h"
#include "base/errors.h"

namespace octavo {
namespace {

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

BlockHash constant_hash(const SipKey&, const BlockHash&, uint64_t, std::span<const int32_t>) {
  return {1, 1};
}

class BlockManagerTest : public ::testing::Test {
 protected:
  static BlockManagerOptions options(int64_t num_blocks) {
    BlockManagerOptions options;
    options.num_blocks = num_blocks;
    options.block_size = 4;
    options.secret = {1, 2};
    return options;
  }

  static std::vector<int32_t> tokens(int64_t count, int32_t first = 0) {
    std::vector<int32_t> ids(count);
    std::iota(ids.begin(), ids.end(), first);
    return ids;
  }

  // What the scheduler does for a prompt: match, allocate, compute all, publish.
  static PrefixMatch compute(BlockManager& manager, BlockTable& table,
                             const std::vector<int32_t>& ids) {
    const PrefixMatch match = manager.match_cached(table, ids, kNoLimit);
    manager.allocate(table, match, std::ssize(ids));
    manager.publish(table, ids, std::ssize(ids));
    return match;
  }

  static int64_t cached_tokens(BlockManager& manager, const std::vector<int32_t>& ids,
                               uint64_t salt = 0) {
    BlockTable probe;
    probe.cache_salt = salt;
    return manager.match_cached(probe, ids, kNoLimit).num_tokens;
  }

  static void check_tables(const BlockManager& manager,
                           std::initializer_list<const BlockTable*> tables) {
    manager.self_check(std::vector(tables));
  }

  BlockManager manager_{options(8)};
};

TEST_F(BlockManagerTest, RefusesAnImpossibleConfiguration) {
  EXPECT_THROW(BlockManager(options(0)), ConfigError);
  EXPECT_THROW(BlockManager(options(int64_t{1} << 31)), ConfigError);
  BlockManagerOptions no_size = options(1);
  no_size.block_size = 0;
  EXPECT_THROW(BlockManager{no_size}, ConfigError);
}

TEST_F(BlockManagerTest, AllocatesAsManyBlocksAsTheTokensNeed) {
  BlockTable one, exact, more;
  manager_.allocate(one, {}, 1);
  manager_.allocate(exact, {}, 4);
  manager_.allocate(more, {}, 5);
  EXPECT_EQ(one.block_ids.size(), 1);
  EXPECT_EQ(exact.block_ids.size(), 1);
  EXPECT_EQ(more.block_ids.size(), 2);
  EXPECT_EQ(manager_.num_free_blocks(), 4);
  check_tables(manager_, {&one, &exact, &more});
}

TEST_F(BlockManagerTest, GrowsOnlyAtBlockBoundaries) {
  BlockTable table;
  manager_.allocate(table, {}, 3);
  EXPECT_TRUE(manager_.grow(table, 4));
  EXPECT_EQ(table.block_ids.size(), 1);
  EXPECT_TRUE(manager_.grow(table, 5));
  EXPECT_EQ(table.block_ids.size(), 2);
}

TEST_F(BlockManagerTest, GrowingIsAllOrNothing) {
  BlockTable table;
  manager_.allocate(table, {}, 7 * 4);
  EXPECT_FALSE(manager_.grow(table, 9 * 4));
  EXPECT_EQ(table.block_ids.size(), 7);
  EXPECT_EQ(manager_.num_free_blocks(), 1);
  EXPECT_TRUE(manager_.grow(table, 8 * 4));
  check_tables(manager_, {&table});
}

TEST_F(BlockManagerTest, AllocationWithoutRoomIsCaught) {
  BlockTable table;
  EXPECT_EQ(manager_.num_blocks_needed({}, 33), 9);
  EXPECT_THROW(manager_.allocate(table, {}, 33), CheckError);
  EXPECT_EQ(manager_.num_free_blocks(), 8);
}

TEST_F(BlockManagerTest, FindsAComputedPrefix) {
  BlockTable first, second;
  compute(manager_, first, tokens(10));
  const PrefixMatch match = compute(manager_, second, tokens(11));
  EXPECT_EQ(match.num_tokens, 8);
  EXPECT_EQ(first.block_ids[0], second.block_ids[0]);
  EXPECT_EQ(first.block_ids[1], second.block_ids[1]);
  EXPECT_NE(first.block_ids[2], second.block_ids[2]);
  check_tables(manager_, {&first, &second});
}

TEST_F(BlockManagerTest, AlwaysLeavesATokenToCompute) {
  BlockTable table;
  compute(manager_, table, tokens(8));
  EXPECT_EQ(cached_tokens(manager_, tokens(8)), 4);
  EXPECT_EQ(cached_tokens(manager_, tokens(9)), 8);
  EXPECT_EQ(cached_tokens(manager_, tokens(4)), 0);
  EXPECT_EQ(cached_tokens(manager_, tokens(1)), 0);
}

TEST_F(BlockManagerTest, MatchesAtMostMaxTokens) {
  BlockTable table, probe;
  compute(manager_, table, tokens(12));
  EXPECT_EQ(manager_.match_cached(probe, tokens(12), 7).num_tokens, 4);
  EXPECT_EQ(manager_.match_cached(probe, tokens(12), 0).num_tokens, 0);
}

TEST_F(BlockManagerTest, APartialBlockIsNotShared) {
  BlockTable table;
  compute(manager_, table, tokens(7));
  EXPECT_EQ(manager_.num_cached_blocks(), 1);
}

TEST_F(BlockManagerTest, OnlyComputedBlocksAreShared) {
  BlockTable table;
  manager_.allocate(table, {}, 12);
  EXPECT_EQ(cached_tokens(manager_, tokens(12)), 0);
  manager_.publish(table, tokens(12), 7);
  EXPECT_EQ(cached_tokens(manager_, tokens(12)), 4);
  manager_.publish(table, tokens(12), 8);
  EXPECT_EQ(cached_tokens(manager_, tokens(12)), 8);
}

TEST_F(BlockManagerTest, SaltsSeparate) {
  BlockTable table;
  table.cache_salt = 1;
  compute(manager_, table, tokens(8));
  EXPECT_EQ(cached_tokens(manager_, tokens(9), 1), 8);
  EXPECT_EQ(cached_tokens(manager_, tokens(9), 2), 0);
  EXPECT_EQ(cached_tokens(manager_, tokens(9)), 0);
}

TEST_F(BlockManagerTest, AMatchEndsAtTheFirstDifference) {
  BlockTable table;
  compute(manager_, table, tokens(12));
  std::vector<int32_t> other = tokens(13);
  other[5] = 99;
  EXPECT_EQ(cached_tokens(manager_, other), 4);
}

TEST_F(BlockManagerTest, EqualBlocksAfterAnotherPrefixAreNotShared) {
  BlockTable table;
  std::vector<int32_t> prompt = tokens(8);
  compute(manager_, table, prompt);
  std::vector<int32_t> other = tokens(9);
  other[0] = 99;
  EXPECT_EQ(cached_tokens(manager_, other), 0);
}

TEST_F(BlockManagerTest, NoCollisionGivesAnotherPrefix) {
  BlockManagerOptions colliding = options(8);
  colliding.hash = constant_hash;
  BlockManager manager(colliding);
  BlockTable first, second;
  compute(manager, first, tokens(8));
  EXPECT_EQ(compute(manager, second, tokens(8, 100)).num_tokens, 0);
  EXPECT_EQ(cached_tokens(manager, tokens(9)), 8);
  EXPECT_EQ(cached_tokens(manager, tokens(9, 100)), 8);
  std::vector<int32_t> crossed = tokens(9);  // the first block of one, the second of the other
  for (int i = 4; i < 8; ++i) crossed[i] = 100 + i;
  EXPECT_EQ(cached_tokens(manager, crossed), 4);
  check_tables(manager, {&first, &second});
}

TEST_F(BlockManagerTest, ReleasedBlocksStayFindable) {
  BlockTable table, second;
  compute(manager_, table, tokens(8));
  manager_.release(table);
  EXPECT_EQ(manager_.num_free_blocks(), 8);
  EXPECT_EQ(manager_.num_cached_blocks(), 2);
  EXPECT_EQ(compute(manager_, second, tokens(9)).num_tokens, 8);
  EXPECT_EQ(manager_.num_free_blocks(), 5);
  check_tables(manager_, {&second});
}

TEST_F(BlockManagerTest, MatchedFreeBlocksCountAsNeeded) {
  BlockTable table, probe;
  compute(manager_, table, tokens(8));
  const PrefixMatch held = manager_.match_cached(probe, tokens(12), kNoLimit);
  EXPECT_EQ(manager_.num_blocks_needed(held, 12), 1);
  manager_.release(table);
  const PrefixMatch free = manager_.match_cached(probe, tokens(12), kNoLimit);
  EXPECT_EQ(manager_.num_blocks_needed(free, 12), 3);
}

TEST_F(BlockManagerTest, AllocationDoesNotEvictItsOwnMatch) {
  BlockTable table, second;
  compute(manager_, table, tokens(8));
  manager_.release(table);
  BlockTable filler;
  manager_.allocate(filler, {}, 5 * 4);  // one free block without content is left
  const PrefixMatch match = manager_.match_cached(second, tokens(12), kNoLimit);
  ASSERT_EQ(match.num_tokens, 8);
  manager_.allocate(second, match, 12);
  EXPECT_EQ(manager_.num_free_blocks(), 0);
  check_tables(manager_, {&second, &filler});
}

TEST_F(BlockManagerTest, EndsOfPrefixesAreEvictedBeforeTheirBeginnings) {
  BlockTable table, filler;
  compute(manager_, table, tokens(32));
  manager_.release(table);
  manager_.allocate(filler, {}, 3 * 4);
  EXPECT_EQ(cached_tokens(manager_, tokens(33)), 20);
  EXPECT_EQ(manager_.num_cached_blocks(), 5);
}

TEST_F(BlockManagerTest, TheLeastRecentlyUsedIsEvictedFirst) {
  BlockTable old_table, new_table, touch, filler;
  compute(manager_, old_table, tokens(16));
  compute(manager_, new_table, tokens(16, 100));
  manager_.release(old_table);
  manager_.release(new_table);
  compute(manager_, touch, tokens(16));  // a hit of three blocks, and a fourth taken anew
  manager_.release(touch);
  manager_.allocate(filler, {}, 3 * 4);
  EXPECT_EQ(cached_tokens(manager_, tokens(17)), 16);
  EXPECT_LT(cached_tokens(manager_, tokens(17, 100)), 16);
}

TEST_F(BlockManagerTest, ADiscardedBlockIsNotFoundAgain) {
  BlockTable table;
  compute(manager_, table, tokens(8));
  manager_.discard(table);
  EXPECT_EQ(cached_tokens(manager_, tokens(9)), 0);
  EXPECT_EQ(manager_.num_free_blocks(), 8);
  check_tables(manager_, {});
}

TEST_F(BlockManagerTest, ResetForgetsHeldAndFreeBlocks) {
  BlockTable held, released;
  compute(manager_, held, tokens(8));
  compute(manager_, released, tokens(8, 100));
  manager_.release(released);
  manager_.reset_prefix_cache();
  EXPECT_EQ(manager_.num_cached_blocks(), 0);
  EXPECT_EQ(cached_tokens(manager_, tokens(9)), 0);
  EXPECT_EQ(manager_.num_free_blocks(), 6);
  check_tables(manager_, {&held});
}

TEST_F(BlockManagerTest, NothingFromBeforeAResetIsPublishedAfter) {
  BlockTable held;
  manager_.allocate(held, {}, 8);
  manager_.publish(held, tokens(8), 4);
  manager_.reset_prefix_cache();
  manager_.publish(held, tokens(8), 8);
  EXPECT_EQ(manager_.num_cached_blocks(), 0);
  manager_.release(held);
  compute(manager_, held, tokens(8));
  EXPECT_EQ(manager_.num_cached_blocks(), 2);
}

TEST_F(BlockManagerTest, AChainThroughAnEvictedDuplicateIsMended) {
  BlockTable first, twin, filler;
  manager_.allocate(first, {}, 4);
  manager_.allocate(twin, {}, 8);  // computed at the same time: no hit
  manager_.publish(first, tokens(4), 4);
  manager_.publish(twin, tokens(8), 4);  // first's block is the one that is found
  manager_.release(first);
  manager_.allocate(filler, {}, 6 * 4);  // evicts it
  manager_.publish(twin, tokens(8), 8);
  EXPECT_EQ(cached_tokens(manager_, tokens(9)), 8);
  check_tables(manager_, {&twin, &filler});
}

TEST_F(BlockManagerTest, SharesWithoutACache) {
  BlockManagerOptions uncached = options(8);
  uncached.enable_prefix_caching = false;
  BlockManager manager(uncached);
  BlockTable first, second;
  compute(manager, first, tokens(11));
  EXPECT_EQ(cached_tokens(manager, tokens(11)), 0);
  EXPECT_EQ(manager.num_cached_blocks(), 0);
  const PrefixMatch match = manager.match_shared(first, 10);
  EXPECT_EQ(match.num_tokens, 8);
  EXPECT_EQ(manager.num_blocks_needed(match, 11), 1);
  manager.allocate(second, match, 11);
  EXPECT_EQ(manager.num_free_blocks(), 4);
  check_tables(manager, {&first, &second});
  manager.release(first);
  check_tables(manager, {&second});
  manager.release(second);
  EXPECT_EQ(manager.num_free_blocks(), 8);
}

TEST_F(BlockManagerTest, SelfCheckSeesALostBlock) {
  BlockTable table;
  manager_.allocate(table, {}, 8);
  EXPECT_THROW(check_tables(manager_, {}), CheckError);
  table.block_ids.pop_back();
  EXPECT_THROW(check_tables(manager_, {&table}), CheckError);
}

TEST_F(BlockManagerTest, LeadingBlocksAreGivenBackAndStayCached) {
  BlockTable table;
  const auto ids = tokens(30);
  compute(manager_, table, ids);
  manager_.release_leading(table, 11);
  EXPECT_EQ(table.num_released, 2);
  EXPECT_EQ(manager_.num_free_blocks(), 2);
  check_tables(manager_, {&table});
  EXPECT_EQ(cached_tokens(manager_, ids), 28) << "their content is still there";
  BlockTable sibling;
  EXPECT_EQ(manager_.match_shared(table, 28).num_tokens, 0) << "but a sibling cannot share them";
  manager_.release_leading(table, 3);
  EXPECT_EQ(table.num_released, 2);
  manager_.release(table);
  EXPECT_EQ(table.num_released, 0);
  EXPECT_EQ(manager_.num_free_blocks(), 8);
  check_tables(manager_, {});
}

TEST_F(BlockManagerTest, ReleasedBlocksServeOthersWhileTheTableGrows) {
  BlockTable table, other;
  auto ids = tokens(16);
  compute(manager_, table, ids);
  manager_.release_leading(table, 16);
  compute(manager_, other, tokens(32, 100));
  check_tables(manager_, {&table, &other});
  EXPECT_FALSE(manager_.grow(table, 17));
  manager_.release(other);
  ASSERT_TRUE(manager_.grow(table, 20));
  ids = tokens(20);
  manager_.publish(table, ids, 20);
  check_tables(manager_, {&table});
  EXPECT_EQ(cached_tokens(manager_, tokens(21)), 0) << "the chain's beginning is gone";
  EXPECT_EQ(cached_tokens(manager_, tokens(33, 100)), 28) << "the other's content was not touched";
  manager_.discard(table);
  check_tables(manager_, {});
  EXPECT_EQ(manager_.num_free_blocks(), 8);
}

}  // namespace
}  // namespace octavo
