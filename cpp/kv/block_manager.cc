#include "kv/block_manager.h"

#include <algorithm>
#include <limits>

#include "base/check.h"
#include "base/errors.h"

namespace octavo {
namespace {

BlockManagerOptions validated(const BlockManagerOptions& options) {
  if (options.block_size < 1) throw ConfigError("block_size must be at least 1");
  if (options.num_blocks < 1 || options.num_blocks >= std::numeric_limits<int32_t>::max()) {
    throw ConfigError("the number of KV blocks must be between 1 and 2^31 - 2");
  }
  return options;
}

// Spreads the hashes of different adapters; that they are different is checked apart from the hash.
// Source: the increment of SplitMix64 (Steele, Lea and Flood, 2014).
uint64_t salt_of(const BlockTable& table) {
  return table.cache_salt + table.lora_id * 0x9e3779b97f4a7c15;
}

}  // namespace

BlockManager::BlockManager(const BlockManagerOptions& options)
    : options_(validated(options)),
      pool_(options.num_blocks),
      cache_(options.num_blocks, options.enable_prefix_caching ? options.block_size : 0) {
  matched_.reserve(options.enable_prefix_caching ? options.num_blocks : 0);
}

void BlockManager::extend_hashes(BlockTable& table, std::span<const int32_t> token_ids,
                                 int64_t num_blocks) {
  while (std::ssize(table.hashes) < num_blocks) {
    const BlockHash parent = table.hashes.empty() ? BlockHash{} : table.hashes.back();
    const int64_t begin = std::ssize(table.hashes) * options_.block_size;
    table.hashes.push_back(options_.hash(options_.secret, parent, salt_of(table),
                                         token_ids.subspan(begin, options_.block_size)));
  }
}

CacheKey BlockManager::key_of(const BlockTable& table, std::span<const int32_t> token_ids,
                              int64_t index, const CacheLink& parent) const {
  return {table.hashes[index], parent, table.cache_salt,
          token_ids.subspan(index * options_.block_size, options_.block_size), table.lora_id};
}

PrefixMatch BlockManager::match_cached(BlockTable& table, std::span<const int32_t> token_ids,
                                       int64_t max_tokens) {
  matched_.clear();
  CacheLink last;
  if (options_.enable_prefix_caching) {
    const int64_t limit = std::min(max_tokens, std::ssize(token_ids) - 1) / options_.block_size;
    extend_hashes(table, token_ids, limit);
    for (int64_t i = 0; i < limit; ++i) {
      const CacheLink found = cache_.find(key_of(table, token_ids, i, last));
      if (found.block == kNoBlock) break;
      matched_.push_back(found.block);
      last = found;
    }
  }
  return {matched_, std::ssize(matched_) * options_.block_size, last};
}

PrefixMatch BlockManager::match_shared(const BlockTable& other, int64_t max_tokens) const {
  const int64_t num_shared = other.num_released > 0 ? 0 : max_tokens / options_.block_size;
  return {std::span(other.block_ids).first(num_shared), num_shared * options_.block_size, {}};
}

int64_t BlockManager::num_blocks_needed(const PrefixMatch& match, int64_t num_tokens) const {
  const auto is_held = [this](int32_t id) { return pool_.ref_count(id) > 0; };
  return num_blocks_for(num_tokens) - std::ranges::count_if(match.block_ids, is_held);
}

int32_t BlockManager::take_block() {
  const int32_t id = pool_.take();
  cache_.erase(id);
  return id;
}

void BlockManager::allocate(BlockTable& table, const PrefixMatch& match, int64_t num_tokens) {
  check(table.block_ids.empty(), "allocation for a table that has blocks");
  check(num_blocks_needed(match, num_tokens) <= pool_.num_free(), "allocation without room");
  table.block_ids.reserve(num_blocks_for(num_tokens));
  // The matched blocks are referenced before any is taken, or taking could evict them.
  table.block_ids.assign(match.block_ids.begin(), match.block_ids.end());
  for (const int32_t id : table.block_ids) pool_.add_reference(id);
  const bool from_cache = match.last.block != kNoBlock;
  table.num_published = from_cache ? std::ssize(match.block_ids) : 0;
  table.last_published = match.last;
  table.epoch = cache_.epoch();
  grow(table, num_tokens);
}

bool BlockManager::grow(BlockTable& table, int64_t num_tokens) {
  const int64_t num_held = std::ssize(table.block_ids);
  const int64_t num_needed = num_blocks_for(num_tokens);
  if (num_needed - num_held > pool_.num_free()) return false;
  if (num_needed > num_held) {
    table.block_ids.resize(num_needed);
    const auto added = std::span(table.block_ids).subspan(num_held);
    std::ranges::generate(added, [this] { return take_block(); });
  }
  return true;
}

void BlockManager::publish(BlockTable& table, std::span<const int32_t> token_ids,
                           int64_t num_computed) {
  const int64_t num_full = num_computed / options_.block_size;
  if (!options_.enable_prefix_caching || num_full <= table.num_published) return;
  if (table.epoch != cache_.epoch()) return;
  extend_hashes(table, token_ids, num_full);
  // The chain may run through another sequence's equal block that was evicted since. Then offer
  // our own blocks from the start: they hold the same content and are alive.
  if (!cache_.is_alive(table.last_published)) {
    if (table.num_released > 0) return;
    table.num_published = 0;
    table.last_published = {};
  }
  for (; table.num_published < num_full; ++table.num_published) {
    const int32_t block = table.block_ids[table.num_published];
    const CacheKey key = key_of(table, token_ids, table.num_published, table.last_published);
    const CacheLink found = cache_.find(key);
    // A block of ours that is cached under a dead parent is cached anew under the living one.
    if (found.block == kNoBlock) cache_.erase(block);
    table.last_published = found.block == kNoBlock ? cache_.insert(block, key) : found;
  }
}

void BlockManager::release_leading(BlockTable& table, int64_t num_tokens) {
  const int64_t end =
      std::min<int64_t>(num_tokens / options_.block_size, std::ssize(table.block_ids));
  for (; table.num_released < end; ++table.num_released) {
    give_back(table.block_ids[table.num_released]);
  }
}

void BlockManager::give_back(int32_t id) {
  pool_.release(id, cache_.contains(id) ? Reuse::kLast : Reuse::kFirst);
}

void BlockManager::release(BlockTable& table) {
  const auto held = std::span(table.block_ids).subspan(table.num_released);
  for (auto id = held.rbegin(); id != held.rend(); ++id) give_back(*id);
  table.block_ids.clear();
  table.num_released = 0;
  table.num_published = 0;
  table.last_published = {};
}

void BlockManager::discard(BlockTable& table) {
  for (int64_t i = 0; i < std::ssize(table.block_ids); ++i) {
    const int32_t id = table.block_ids[i];
    // One that was given back may be another's by now, with content of its own.
    if (i >= table.num_released || pool_.ref_count(id) == 0) cache_.erase(id);
  }
  release(table);
}

void BlockManager::self_check(std::span<const BlockTable* const> tables) const {
  pool_.self_check();
  cache_.self_check();
  std::vector<int32_t> num_holders(num_blocks(), 0);
  for (const BlockTable* table : tables) {
    const auto held = std::span(table->block_ids).subspan(table->num_released);
    for (const int32_t id : held) ++num_holders[id];
  }
  for (int32_t id = 0; id < num_blocks(); ++id) {
    check(num_holders[id] == pool_.ref_count(id), "a reference count is not the number of holders");
  }
}

}  // namespace octavo
