// Gives sequences their blocks: allocation, sharing of equal prefixes, release.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kv/block_hash.h"
#include "kv/block_pool.h"
#include "kv/prefix_cache.h"

namespace octavo {

struct BlockManagerOptions {
  int64_t num_blocks = 0;
  int64_t block_size = 16;
  bool enable_prefix_caching = true;
  SipKey secret{};  // key of the block hashes
  BlockHashFunction hash = hash_block;
};

// The blocks of one sequence. Owned by the sequence, changed by BlockManager only.
struct BlockTable {
  uint64_t cache_salt = 0;
  uint64_t lora_id = 0;            // of the adapter that computes the blocks; 0 = none
  std::vector<int32_t> block_ids;  // block i holds positions [i * block_size, (i + 1) * block_size)
  int64_t num_released = 0;       // leading blocks that were given back; their ids only fill places
  std::vector<BlockHash> hashes;  // of the leading full blocks of the tokens; kept by release()

  int64_t num_published = 0;  // leading blocks whose content the cache was offered
  CacheLink last_published;   // the cache's entry for the last of them
  uint64_t epoch = 0;         // of the cache when the blocks were taken
};

// Blocks that already hold the first tokens of a sequence. Valid until the next BlockManager call.
struct PrefixMatch {
  std::span<const int32_t> block_ids;
  int64_t num_tokens = 0;
  CacheLink last;  // entry of the last block; the root when the match is not from the cache
};

// O(1) for each block. Allocates only when a vector of a BlockTable outgrows its capacity.
class BlockManager {
 public:
  // Throws ConfigError.
  explicit BlockManager(const BlockManagerOptions& options);

  int64_t num_blocks() const { return pool_.num_blocks(); }
  int64_t num_free_blocks() const { return pool_.num_free(); }  // cached ones included
  int64_t num_cached_blocks() const { return cache_.num_cached(); }
  int64_t block_size() const { return options_.block_size; }
  bool is_prefix_caching() const { return options_.enable_prefix_caching; }
  int64_t num_blocks_for(int64_t num_tokens) const {
    return (num_tokens + options_.block_size - 1) / options_.block_size;
  }

  // The longest cached prefix of `token_ids`: whole blocks, at most `max_tokens` tokens, and always
  // less than all of them, since the last token must be computed to have something to sample from.
  // Empty when prefix caching is off. `table` keeps the hashes for next time.
  PrefixMatch match_cached(BlockTable& table, std::span<const int32_t> token_ids,
                           int64_t max_tokens);

  // The blocks of `other` that hold its first `max_tokens` tokens at most; none once it gave
  // leading ones back. For sequences of one request; needs no cache. Requires: these positions of
  // `other` are computed.
  PrefixMatch match_shared(const BlockTable& other, int64_t max_tokens) const;

  // Free blocks that allocate() would use up.
  int64_t num_blocks_needed(const PrefixMatch& match, int64_t num_tokens) const;

  // Fills an empty table: the matched blocks, then new ones to cover `num_tokens` positions.
  // Requires: num_blocks_needed() <= num_free_blocks(). Throws: std::bad_alloc, without a change.
  void allocate(BlockTable& table, const PrefixMatch& match, int64_t num_tokens);

  // Grows the table to cover `num_tokens` positions. False, without a change, if blocks are short.
  bool grow(BlockTable& table, int64_t num_tokens);

  // Offers the full blocks among the first `num_computed` positions to the prefix cache.
  void publish(BlockTable& table, std::span<const int32_t> token_ids, int64_t num_computed);

  // Gives back the blocks that lie before position `num_tokens`: no layer will read them again.
  // Block i keeps its place in the table. Requires: publish() saw them.
  void release_leading(BlockTable& table, int64_t num_tokens);

  // Gives the blocks back, last first, so that the ends of prefixes are evicted before their
  // beginnings. Their content stays cached.
  void release(BlockTable& table);

  // Gives the blocks back and forgets their content: it may be damaged.
  void discard(BlockTable& table);

  // Forgets all cached content, also that of held blocks. Holders keep their blocks.
  void reset_prefix_cache() { cache_.clear(); }

  // Throws CheckError unless free + held = all, and the reference counts are exactly those of
  // `tables`, which must be all tables there are.
  void self_check(std::span<const BlockTable* const> tables) const;

 private:
  void extend_hashes(BlockTable& table, std::span<const int32_t> token_ids, int64_t num_blocks);
  CacheKey key_of(const BlockTable& table, std::span<const int32_t> token_ids, int64_t index,
                  const CacheLink& parent) const;
  int32_t take_block();
  void give_back(int32_t id);

  const BlockManagerOptions options_;
  BlockPool pool_;
  PrefixCache cache_;
  std::vector<int32_t> matched_;  // storage of the last PrefixMatch
};

}  // namespace octavo
