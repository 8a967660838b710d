#include "kv/prefix_cache.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <tuple>
#include <vector>

#include "base/check.h"

namespace octavo {
namespace {

constexpr BlockHash kSameHash{42, 43};

class PrefixCacheTest : public ::testing::Test {
 protected:
  // A key whose hash collides with that of every other.
  static CacheKey colliding(const std::vector<int32_t>& token_ids, CacheLink parent = {},
                            uint64_t salt = 0) {
    return {kSameHash, parent, salt, token_ids};
  }

  PrefixCache cache_{8, 2};
  const std::vector<int32_t> a_{1, 2}, b_{1, 3};
};

TEST_F(PrefixCacheTest, FindsWhatWasInserted) {
  const CacheLink inserted = cache_.insert(5, colliding(a_));
  EXPECT_EQ(inserted.block, 5);
  EXPECT_EQ(cache_.find(colliding(a_)).block, 5);
  EXPECT_EQ(cache_.find(colliding(a_)).entry_id, inserted.entry_id);
  EXPECT_TRUE(cache_.contains(5));
  EXPECT_EQ(cache_.num_cached(), 1);
}

TEST_F(PrefixCacheTest, AnEqualHashWithOtherTokensIsNoHit) {
  cache_.insert(0, colliding(a_));
  EXPECT_EQ(cache_.find(colliding(b_)).block, kNoBlock);
  cache_.insert(1, colliding(b_));
  EXPECT_EQ(cache_.find(colliding(a_)).block, 0);
  EXPECT_EQ(cache_.find(colliding(b_)).block, 1);
  cache_.self_check();
}

TEST_F(PrefixCacheTest, AnEqualHashUnderAnotherParentIsNoHit) {
  const CacheLink first = cache_.insert(0, colliding(a_));
  const CacheLink second = cache_.insert(1, colliding(b_));
  cache_.insert(2, colliding(a_, first));
  EXPECT_EQ(cache_.find(colliding(a_, first)).block, 2);
  EXPECT_EQ(cache_.find(colliding(a_, second)).block, kNoBlock);
}

TEST_F(PrefixCacheTest, AnEqualHashUnderAnotherSaltIsNoHit) {
  cache_.insert(0, colliding(a_, {}, 1));
  EXPECT_EQ(cache_.find(colliding(a_, {}, 2)).block, kNoBlock);
  EXPECT_EQ(cache_.find(colliding(a_, {}, 1)).block, 0);
}

TEST_F(PrefixCacheTest, AReusedBlockIsAnotherParent) {
  const CacheLink old_parent = cache_.insert(0, colliding(a_));
  cache_.insert(1, colliding(a_, old_parent));
  cache_.erase(0);
  EXPECT_FALSE(cache_.is_alive(old_parent));
  const CacheLink new_parent = cache_.insert(0, colliding(b_));
  EXPECT_FALSE(cache_.is_alive(old_parent));
  EXPECT_TRUE(cache_.is_alive(new_parent));
  EXPECT_EQ(cache_.find(colliding(a_, new_parent)).block, kNoBlock);
}

TEST_F(PrefixCacheTest, EqualContentIsCachedOnce) {
  const CacheLink first = cache_.insert(0, colliding(a_));
  const CacheLink second = cache_.insert(1, colliding(a_));
  EXPECT_EQ(second.block, 0);
  EXPECT_EQ(second.entry_id, first.entry_id);
  EXPECT_FALSE(cache_.contains(1));
  EXPECT_EQ(cache_.num_cached(), 1);
}

TEST_F(PrefixCacheTest, EraseForgetsOneOfABucket) {
  for (int32_t block = 0; block < 3; ++block) cache_.insert(block, colliding({block, block}));
  cache_.erase(1);
  cache_.erase(1);
  EXPECT_EQ(cache_.find(colliding({0, 0})).block, 0);
  EXPECT_EQ(cache_.find(colliding({1, 1})).block, kNoBlock);
  EXPECT_EQ(cache_.find(colliding({2, 2})).block, 2);
  EXPECT_EQ(cache_.num_cached(), 2);
  cache_.self_check();
}

TEST_F(PrefixCacheTest, ClearForgetsEverythingAndStartsAnEpoch) {
  const CacheLink link = cache_.insert(3, colliding(a_));
  const uint64_t epoch = cache_.epoch();
  cache_.clear();
  EXPECT_EQ(cache_.num_cached(), 0);
  EXPECT_FALSE(cache_.contains(3));
  EXPECT_FALSE(cache_.is_alive(link));
  EXPECT_NE(cache_.epoch(), epoch);
  cache_.self_check();
}

TEST_F(PrefixCacheTest, OnlyFullBlocksAreCached) {
  EXPECT_THROW(cache_.insert(0, colliding({1})), CheckError);
  cache_.insert(0, colliding(a_));
  EXPECT_THROW(cache_.insert(0, colliding(b_)), CheckError);
}

// Against a twin that is a std::map, with few buckets in use and many collisions.
TEST_F(PrefixCacheTest, BehavesAsAMap) {
  constexpr int32_t kNumBlocks = 13;
  PrefixCache cache(kNumBlocks, 1);
  std::map<std::tuple<uint64_t, int32_t>, int32_t> twin;  // (hash, token) -> block
  std::mt19937 random(11);
  for (int step = 0; step < 20000; ++step) {
    const std::vector<int32_t> token{static_cast<int32_t>(random() % 6)};
    const CacheKey key{{random() % 3, 0}, {}, 0, token};
    const auto block = static_cast<int32_t>(random() % kNumBlocks);
    const auto entry = twin.find({key.hash.low, token[0]});
    ASSERT_EQ(cache.find(key).block, entry == twin.end() ? kNoBlock : entry->second);
    if (cache.contains(block)) {
      cache.erase(block);
      std::erase_if(twin, [block](const auto& item) { return item.second == block; });
    } else {
      cache.insert(block, key);
      twin.try_emplace({key.hash.low, token[0]}, block);
    }
    ASSERT_EQ(cache.num_cached(), std::ssize(twin));
  }
  cache.self_check();
}

}  // namespace
}  // namespace octavo
