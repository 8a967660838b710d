// 16-bit and 8-bit floats to float32, exactly. Written without branches, so that loops over them
// become vectors.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

namespace octavo {

// Both the subnormal and the normal reading are computed, and masks choose. Subnormals go through
// an integer: a thread that flushes subnormals reads them too.
inline float float16_to_float32(uint16_t half) {
  constexpr int32_t kRebias = (127 - 15) << 23;
  const int32_t sign = (half & 0x8000) << 16;
  const int32_t magnitude = half & 0x7FFF;
  const auto subnormal = std::bit_cast<int32_t>(static_cast<float>(magnitude) * 0x1p-24f);
  // Infinity and NaN, whose exponent is all ones, need the bias twice; they keep their payload.
  const int32_t is_special = -static_cast<int32_t>(magnitude >= 0x7C00);
  const int32_t normal = (magnitude << 13) + kRebias + (is_special & kRebias);
  const int32_t is_subnormal = -static_cast<int32_t>(magnitude < 0x0400);
  return std::bit_cast<float>(sign | (is_subnormal & subnormal) | (~is_subnormal & normal));
}

inline float bfloat16_to_float32(uint16_t value) {
  return std::bit_cast<float>(uint32_t{value} << 16);
}

// OCP 8-bit float E4M3: bias 7, no infinity, S.1111.111 is NaN.
inline float float8_e4m3_to_float32(uint8_t value) {
  constexpr int32_t kRebias = (127 - 7) << 23;
  const int32_t sign = (value & 0x80) << 24;
  const int32_t magnitude = value & 0x7F;
  const auto subnormal = std::bit_cast<int32_t>(static_cast<float>(magnitude) * 0x1p-9f);
  const int32_t is_subnormal = -static_cast<int32_t>(magnitude < 0x08);
  const int32_t is_nan = -static_cast<int32_t>(magnitude == 0x7F);
  const int32_t normal = ((magnitude << 20) + kRebias) | (is_nan & 0x7FC00000);
  return std::bit_cast<float>(sign | (is_subnormal & subnormal) | (~is_subnormal & normal));
}

// The float16 at `p`, which need not be aligned.
inline float load_float16(const uint8_t* p) {
  uint16_t half;
  std::memcpy(&half, p, sizeof(half));
  return float16_to_float32(half);
}

}  // namespace octavo
