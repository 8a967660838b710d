// Finds the block that already holds given tokens after a given prefix.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kv/block.h"
#include "kv/block_hash.h"

namespace octavo {

// One cached block as a place in a chain. Entry ids are never used twice, so a stored link tells
// whether its entry still exists. The default is the root that first blocks follow.
struct CacheLink {
  int32_t block = kNoBlock;
  uint64_t entry_id = 0;
};

// What identifies a block's content. The hash only finds candidates: an entry matches when the
// parent entry, the salt, the adapter and the token ids are equal too, so not even a collision of
// all 128 bits can give one prefix the keys and values of another.
struct CacheKey {
  BlockHash hash;
  CacheLink parent;
  uint64_t cache_salt = 0;
  std::span<const int32_t> token_ids;  // [block_size]
  uint64_t lora_id = 0;                // of the adapter that computes the block; never used twice
};

// A chained hash table with one preallocated entry for each block: O(1), nothing is allocated after
// construction. Knows nothing of references: BlockManager erases a block before it is rewritten.
class PrefixCache {
 public:
  PrefixCache(int64_t num_blocks, int64_t block_size);

  // The entry with this content, or a link to kNoBlock.
  CacheLink find(const CacheKey& key) const;

  // Makes `block` findable, unless another block with this content is; returns the findable one.
  // Requires: `block` is not cached.
  CacheLink insert(int32_t block, const CacheKey& key);

  void erase(int32_t block);
  bool contains(int32_t block) const { return entries_[block].id != 0; }

  // Whether the root or the entry that `link` named still exists.
  bool is_alive(const CacheLink& link) const {
    return link.block == kNoBlock || entries_[link.block].id == link.entry_id;
  }

  // Forgets everything and starts a new epoch.
  void clear();

  // Counts clear(): content computed in an earlier epoch must not be inserted.
  uint64_t epoch() const { return epoch_; }

  int64_t num_cached() const { return num_cached_; }

  // Throws CheckError unless the table holds exactly the cached entries, each in its bucket.
  void self_check() const;

 private:
  struct Entry {
    BlockHash hash;
    uint64_t id = 0;  // 0 = not cached
    uint64_t parent_id = 0;
    uint64_t cache_salt = 0;
    uint64_t lora_id = 0;
    int32_t next_in_bucket = kNoBlock;
  };

  int32_t& bucket(const BlockHash& hash) { return buckets_[hash.low & bucket_mask_]; }
  int32_t bucket(const BlockHash& hash) const { return buckets_[hash.low & bucket_mask_]; }
  std::span<const int32_t> tokens_of(int32_t block) const;
  bool matches(int32_t block, const CacheKey& key) const;

  const int64_t block_size_;
  uint64_t bucket_mask_ = 0;
  std::vector<int32_t> buckets_;  // head of each chain, a power of two of them
  std::vector<Entry> entries_;    // [num_blocks]
  std::vector<int32_t> tokens_;   // [num_blocks, block_size]
  uint64_t last_id_ = 0;
  uint64_t epoch_ = 0;
  int64_t num_cached_ = 0;
};

}  // namespace octavo
