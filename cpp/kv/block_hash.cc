#include "kv/block_hash.h"

#include <bit>
#include <cstring>

namespace octavo {
namespace {

static_assert(std::endian::native == std::endian::little);

struct SipState {
  uint64_t v0, v1, v2, v3;

  explicit SipState(const SipKey& key)
      : v0(key[0] ^ 0x736f6d6570736575),
        v1(key[1] ^ 0x646f72616e646f6d ^ 0xee),
        v2(key[0] ^ 0x6c7967656e657261),
        v3(key[1] ^ 0x7465646279746573) {}

  void round() {
    v0 += v1;
    v1 = std::rotl(v1, 13) ^ v0;
    v0 = std::rotl(v0, 32);
    v2 += v3;
    v3 = std::rotl(v3, 16) ^ v2;
    v0 += v3;
    v3 = std::rotl(v3, 21) ^ v0;
    v2 += v1;
    v1 = std::rotl(v1, 17) ^ v2;
    v2 = std::rotl(v2, 32);
  }

  void absorb(uint64_t word) {
    v3 ^= word;
    round();
    round();
    v0 ^= word;
  }

  uint64_t squeeze() {
    for (int i = 0; i < 4; ++i) round();
    return v0 ^ v1 ^ v2 ^ v3;
  }
};

}  // namespace

BlockHash siphash128(const SipKey& key, std::span<const uint64_t> words,
                     std::span<const std::byte> bytes) {
  SipState state(key);
  for (const uint64_t word : words) state.absorb(word);
  size_t done = 0;
  for (; done + 8 <= bytes.size(); done += 8) {
    uint64_t word;
    std::memcpy(&word, bytes.data() + done, 8);
    state.absorb(word);
  }
  uint64_t tail = 0;
  if (done < bytes.size()) std::memcpy(&tail, bytes.data() + done, bytes.size() - done);
  state.absorb(tail | uint64_t{words.size() * 8 + bytes.size()} << 56);

  BlockHash hash;
  state.v2 ^= 0xee;
  hash.low = state.squeeze();
  state.v1 ^= 0xdd;
  hash.high = state.squeeze();
  return hash;
}

BlockHash hash_block(const SipKey& key, const BlockHash& parent, uint64_t cache_salt,
                     std::span<const int32_t> token_ids) {
  const std::array<uint64_t, 3> words{parent.low, parent.high, cache_salt};
  return siphash128(key, words, std::as_bytes(token_ids));
}

}  // namespace octavo
