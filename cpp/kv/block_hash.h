// Names of block contents: a keyed 128-bit hash chain. Each block's hash covers its parent's hash,
// so equal hashes mean equal prefixes; the key is a secret of this boot, so callers cannot craft
// collisions.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace octavo {

using SipKey = std::array<uint64_t, 2>;

struct BlockHash {
  uint64_t low = 0;
  uint64_t high = 0;

  friend bool operator==(const BlockHash&, const BlockHash&) = default;
};

// SipHash-2-4 with 128 bits of output over `words` (little-endian) followed by `bytes`.
// Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012, and its 128-bit variant.
BlockHash siphash128(const SipKey& key, std::span<const uint64_t> words,
                     std::span<const std::byte> bytes);

// The hash of a full block that follows `parent` ({} for the first block of a prompt).
BlockHash hash_block(const SipKey& key, const BlockHash& parent, uint64_t cache_salt,
                     std::span<const int32_t> token_ids);

using BlockHashFunction = BlockHash (*)(const SipKey& key, const BlockHash& parent,
                                        uint64_t cache_salt, std::span<const int32_t> token_ids);

}  // namespace octavo
