// Counter-based random numbers: the same (seed, stream, position) gives the same number on every
// backend, in any batch. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// 2011.
#pragma once

#include <array>
#include <cstdint>

#if defined(__CUDACC__)
#define OCTAVO_HOST_DEVICE __host__ __device__
#else
#define OCTAVO_HOST_DEVICE
#endif

namespace octavo {

// Philox4x32-10 block: four 32-bit words for one 128-bit counter and a 64-bit key.
OCTAVO_HOST_DEVICE inline std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter,
                                                             std::array<uint32_t, 2> key) {
  constexpr uint32_t kMul0 = 0xD2511F53, kMul1 = 0xCD9E8D57;
  constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{kMul0} * counter[0];
    const uint64_t p1 = uint64_t{kMul1} * counter[2];
    counter = {static_cast<uint32_t>(p1 >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(p1),
               static_cast<uint32_t>(p0 >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(p0)};
    key[0] += kWeyl0;
    key[1] += kWeyl1;
  }
  return counter;
}

// A float in (0, 1] for draw `index` at `position` of the stream `seed`.
OCTAVO_HOST_DEVICE inline float philox_uniform(uint64_t seed, uint64_t position, uint32_t index) {
  const auto words =
      philox4x32({static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), index, 0},
                 {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return (static_cast<float>(words[0] >> 8) + 1.0f) * (1.0f / 16777216.0f);
}

}  // namespace octavo
