#include "kv/prefix_cache.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace octavo {

PrefixCache::PrefixCache(int64_t num_blocks, int64_t block_size) : block_size_(block_size) {
  const uint64_t num_buckets = std::bit_ceil(static_cast<uint64_t>(num_blocks));
  bucket_mask_ = num_buckets - 1;
  buckets_.assign(num_buckets, kNoBlock);
  entries_.resize(num_blocks);
  tokens_.resize(num_blocks * block_size);
}

std::span<const int32_t> PrefixCache::tokens_of(int32_t block) const {
  return std::span(tokens_).subspan(block * block_size_, block_size_);
}

bool PrefixCache::matches(int32_t block, const CacheKey& key) const {
  const Entry& entry = entries_[block];
  return entry.hash == key.hash && entry.parent_id == key.parent.entry_id &&
         entry.cache_salt == key.cache_salt && entry.lora_id == key.lora_id &&
         std::ranges::equal(tokens_of(block), key.token_ids);
}

CacheLink PrefixCache::find(const CacheKey& key) const {
  int32_t block = bucket(key.hash);
  while (block != kNoBlock && !matches(block, key)) block = entries_[block].next_in_bucket;
  return {block, block == kNoBlock ? 0 : entries_[block].id};
}

CacheLink PrefixCache::insert(int32_t block, const CacheKey& key) {
  check(!contains(block), "the block is cached already");
  check(std::ssize(key.token_ids) == block_size_, "only full blocks are cached");
  const CacheLink found = find(key);
  if (found.block != kNoBlock) return found;
  int32_t& head = bucket(key.hash);
  entries_[block] = {key.hash, ++last_id_, key.parent.entry_id, key.cache_salt, key.lora_id, head};
  head = block;
  std::ranges::copy(key.token_ids, tokens_.begin() + block * block_size_);
  ++num_cached_;
  return {block, last_id_};
}

void PrefixCache::erase(int32_t block) {
  if (!contains(block)) return;
  int32_t* link = &bucket(entries_[block].hash);
  while (*link != block) link = &entries_[*link].next_in_bucket;
  *link = entries_[block].next_in_bucket;
  entries_[block] = {};
  --num_cached_;
}

void PrefixCache::clear() {
  std::ranges::fill(buckets_, kNoBlock);
  std::ranges::fill(entries_, Entry{});
  num_cached_ = 0;
  ++epoch_;
}

void PrefixCache::self_check() const {
  int64_t num_listed = 0;
  for (size_t i = 0; i < buckets_.size(); ++i) {
    for (int32_t block = buckets_[i]; block != kNoBlock; block = entries_[block].next_in_bucket) {
      check(contains(block), "the table lists a block that is not cached");
      check((entries_[block].hash.low & bucket_mask_) == i, "an entry is in the wrong bucket");
      check(++num_listed <= num_cached_, "the table lists more entries than are cached");
    }
  }
  const auto is_cached = [](const Entry& entry) { return entry.id != 0; };
  check(num_listed == num_cached_, "a cached entry cannot be found");
  check(std::ranges::count_if(entries_, is_cached) == num_cached_, "the cached count is off");
}

}  // namespace octavo
