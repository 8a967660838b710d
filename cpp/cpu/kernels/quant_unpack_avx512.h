// The quants of one block as eight vectors of unsigned bytes. Shared by the AVX-512 and AMX GEMMs.
#pragma once

#include "cpu/kernels.h"
#include "cpu/kernels/vec_math.h"

namespace octavo::cpu {
namespace {

inline __m512i load_bytes(const std::byte* p) { return _mm512_loadu_si512(p); }

inline void unpack_nibbles(const std::byte* block, __m512i (&w)[kBlockVectors]) {
  const __m512i low = _mm512_set1_epi8(15);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512i pairs = load_bytes(block + i * kVectorBytes);
    w[i] = _mm512_and_si512(pairs, low);
    w[i + 4] = _mm512_and_si512(_mm512_srli_epi16(pairs, 4), low);
  }
}

template <PanelFormat kFormat>
inline void unpack_block(const std::byte* block, __m512i (&w)[kBlockVectors]) {
  if constexpr (kFormat == PanelFormat::kInt8) {
#pragma GCC unroll 8
    for (int g = 0; g < kBlockVectors; ++g) w[g] = load_bytes(block + g * kVectorBytes);
    return;
  }
  unpack_nibbles(block, w);
  const std::byte* rest = block + 4 * kVectorBytes;
  if constexpr (kFormat == PanelFormat::kInt5Min) {
    const __m512i fifth = _mm512_set1_epi8(16);
#pragma GCC unroll 8
    for (int g = 0; g < kBlockVectors; ++g) {
      uint64_t mask;
      __builtin_memcpy(&mask, rest + g * 8, sizeof(mask));
      w[g] = _mm512_mask_add_epi8(w[g], mask, w[g], fifth);
    }
  }
  if constexpr (kFormat == PanelFormat::kInt6) {
    const __m512i top = _mm512_set1_epi8(0x30);
#pragma GCC unroll 8
    for (int g = 0; g < kBlockVectors; ++g) {
      const __m512i bits = load_bytes(rest + g / 4 * kVectorBytes);
      const int right = g % 4 * 2 - 4;
      const __m512i shifted =
          right < 0 ? _mm512_slli_epi16(bits, -right) : _mm512_srli_epi16(bits, right);
      constexpr int kAndOr = 0xEA;  // (shifted & top) | w
      w[g] = _mm512_ternarylogic_epi32(shifted, top, w[g], kAndOr);
    }
  }
}

}  // namespace
}  // namespace octavo::cpu
