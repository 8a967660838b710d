// Quantised panels as bfloat16 panels. Written for AVX-512.
// An unsigned quant u of a byte is put below the exponent of one, 1 + u / 2^15, by one permutation
// of bytes and without a conversion; weight = 2^15 scale * (1 + u / 2^15) + (minimum - (2^15 +
// zero) scale) is one fma, exact but for its rounding where there is no minimum, because scales
// have eleven bits. The rounding to bfloat16 adds half of the last place, so that one permutation
// takes the upper halves of a pair of features. Bound by the two ports that take vector
// instructions: 112 for 512 weights and the unpacking, 62 cycles, beside 16 for their product with
// each 16 rows.
#pragma once

#include "cpu/kernels.h"
#include "cpu/kernels/quant_row.h"
#include "cpu/kernels/quant_unpack_avx512.h"
#include "cpu/kernels/vec_math.h"

namespace octavo::cpu {
namespace {

// weight = slope * (1 + u / 2^15) + offset, for the 16 columns of a panel.
struct WidenLine {
  Vec slope, offset;
};

// A NaN whose other bits stay a NaN when they are rounded.
inline Vec canonical_nan(Vec x) {
  return {_mm512_mask_mov_ps(x.v, _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q),
                             _mm512_set1_ps(__builtin_nanf("")))};
}

template <PanelFormat kFormat>
inline WidenLine widen_line(const std::byte* record, int64_t scale_index) {
  constexpr QuantLayout kLayout = quant_layout(kFormat);
  constexpr float kOne = 32768.0f;  // what the one of 1 + u / 2^15 stands for
  const Vec scale = canonical_nan(load(scales_of(record, scale_index)));
  const Vec below = mul(scale, set1(-(kOne + static_cast<float>(kLayout.zero))));
  if constexpr (kLayout.has_minimum) {
    return {mul(scale, set1(kOne)), add(canonical_nan(load(minima_of<kFormat>(record))), below)};
  }
  return {mul(scale, set1(kOne)), below};
}

// Feature kByte of the four in each lane: the weights, half a place too large in magnitude.
template <int kByte>
inline __m512i widen_feature(__m512i quants, const WidenLine& line) {
  constexpr __mmask64 kSecondBytes = 0x2222222222222222;
  const __m512i byte_of_lane = _mm512_broadcast_i32x4(
      _mm_set_epi32((12 + kByte) << 8, (8 + kByte) << 8, (4 + kByte) << 8, kByte << 8));
  const __m512i one_and_quant =
      _mm512_mask_shuffle_epi8(_mm512_set1_epi32(0x3F800000), kSecondBytes, quants, byte_of_lane);
  const Vec weight = fma({_mm512_castsi512_ps(one_and_quant)}, line.slope, line.offset);
  return _mm512_add_epi32(_mm512_castps_si512(weight.v), _mm512_set1_epi32(0x8000));
}

template <PanelFormat kFormat>
void widen_panel(const std::byte* panel, int64_t depth, std::byte* out) {
  constexpr QuantLayout kLayout = quant_layout(kFormat);
  constexpr int kVectorsPerScale = kBlockVectors / static_cast<int>(kLayout.num_scales);
  constexpr int64_t kLineBytes = 64;
  // Latency of DRAM at one core's rate, and past a page's end.
  constexpr int64_t kAheadBytes = 4096;
  // Upper halves of the lanes of two vectors, in turns.
  const __m512i upper_halves =
      _mm512_set_epi16(63, 31, 61, 29, 59, 27, 57, 25, 55, 23, 53, 21, 51, 19, 49, 17, 47, 15, 45,
                       13, 43, 11, 41, 9, 39, 7, 37, 5, 35, 3, 33, 1);
  for (int64_t b = 0; b < depth / kBlockDepth; ++b) {
    const std::byte* record = panel + b * kLayout.record_bytes();
    for (int64_t i = 0; i < kLayout.record_bytes(); i += kLineBytes) {
      _mm_prefetch(record + i + kAheadBytes, _MM_HINT_T0);
    }
    __m512i quants[kBlockVectors];
    unpack_block<kFormat>(record + kLayout.quants_offset(), quants);
    WidenLine lines[2];
#pragma GCC unroll 2
    for (int s = 0; s < kLayout.num_scales; ++s) lines[s] = widen_line<kFormat>(record, s);
#pragma GCC unroll 8
    for (int g = 0; g < kBlockVectors; ++g, out += 2 * kVectorBytes) {
      const WidenLine& line = lines[g / kVectorsPerScale];
      _mm512_store_si512(out,
                         _mm512_permutex2var_epi16(widen_feature<0>(quants[g], line), upper_halves,
                                                   widen_feature<1>(quants[g], line)));
      _mm512_store_si512(out + kVectorBytes,
                         _mm512_permutex2var_epi16(widen_feature<2>(quants[g], line), upper_halves,
                                                   widen_feature<3>(quants[g], line)));
    }
  }
}

template <PanelFormat kFormat>
void add_widening(Kernels& k) {
  k.widen_panel[static_cast<int>(kFormat)] = widen_panel<kFormat>;
}

inline void add_widenings(Kernels& k) {
  add_widening<PanelFormat::kInt8>(k);
  add_widening<PanelFormat::kInt4>(k);
  add_widening<PanelFormat::kInt4Min>(k);
  add_widening<PanelFormat::kInt5Min>(k);
  add_widening<PanelFormat::kInt6>(k);
}

}  // namespace
}  // namespace octavo::cpu
