// Quantised weights times int8 activations with vpdpbusd. The 32 products of a block are added
// exactly; each block then adds scale * activation scale * sum, rounded twice, and the minimum's
// share, in ascending order: the same roundings for any number of rows and on every instruction
// set. Bound: memory for few rows, vpdpbusd issue (8 of 11 to 12 vector instructions) for many.
#pragma once

#include "cpu/kernels.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/quant_row.h"
#include "cpu/kernels/quant_unpack_avx512.h"
#include "cpu/kernels/vec_math.h"

namespace octavo::cpu {
namespace {

constexpr int64_t kCacheLineBytes = 64;
// How far ahead of the product the panels are fetched: the latency of DRAM at one core's rate, and
// past a page's end, where the hardware prefetcher stops.
constexpr int64_t kPrefetchBytes = 4096;

// Adds one block, given its exact integer sums (one for each scale), to a row's accumulator.
template <PanelFormat kFormat>
inline Vec add_block(Vec acc, const __m512i (&sums)[2], const Vec (&scale)[2], Vec minimum,
                     const std::byte* row, int64_t depth, int64_t block) {
  constexpr QuantLayout kLayout = quant_layout(kFormat);
  const Vec x_scale = set1(*QuantizedRow::scale(row, depth, block));
#pragma GCC unroll 2
  for (int s = 0; s < kLayout.num_scales; ++s) {
    acc = fma({_mm512_cvtepi32_ps(sums[s])}, mul(scale[s], x_scale), acc);
  }
  if constexpr (kLayout.has_minimum) {
    acc = fma(minimum, set1(*QuantizedRow::scaled_sum(row, depth, block)), acc);
  }
  return acc;
}

// -zero times the sum of the activations that meet it, so that the products may be of the unsigned
// quants.
template <PanelFormat kFormat>
inline __m512i initial_sum(const std::byte* row, int64_t depth, int64_t block, int half) {
  constexpr QuantLayout kLayout = quant_layout(kFormat);
  if constexpr (kLayout.zero == 0) return _mm512_setzero_si512();
  constexpr int kShift = kLayout.zero == 8 ? 0 : kLayout.zero == 32 ? 2 : 4;
  const int32_t* offset = kLayout.num_scales == 2
                              ? QuantizedRow::half_offsets(row, depth, block) + half
                              : QuantizedRow::offset(row, depth, block);
  return _mm512_slli_epi32(_mm512_set1_epi32(*offset), kShift);
}

inline __m512i broadcast_four(const std::byte* p) {
  int32_t four;
  __builtin_memcpy(&four, p, sizeof(four));
  return _mm512_set1_epi32(four);
}

template <PanelFormat kFormat>
struct QuantProduct {
  static constexpr int kMaxRows = 12;
  static constexpr int kMaxVecs = 1;
  static constexpr QuantLayout kLayout = quant_layout(kFormat);

  // Two chains of sums: the halves of a block, which formats with two scales keep apart.
  static void sum_block(const std::byte* row, int64_t depth, int64_t block,
                        const __m512i (&w)[kBlockVectors], __m512i (&sums)[2]) {
    const std::byte* x = QuantizedRow::quants(row, block);
    sums[0] = initial_sum<kFormat>(row, depth, block, 0);
    sums[1] = kLayout.num_scales == 2 ? initial_sum<kFormat>(row, depth, block, 1)
                                      : _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      sums[0] = _mm512_dpbusd_epi32(sums[0], w[g], broadcast_four(x + 4 * g));
      sums[1] = _mm512_dpbusd_epi32(sums[1], w[g + 4], broadcast_four(x + 4 * g + 16));
    }
    if constexpr (kLayout.num_scales == 1) sums[0] = _mm512_add_epi32(sums[0], sums[1]);
  }

  template <int kRows, int kVecs>
  static void run(const GemmArgs& args, const std::byte* x, const std::byte* panel,
                  Vec (&acc)[kRows][kVecs]) {
    static_assert(kVecs == 1);
    const int64_t num_blocks = args.depth / kBlockDepth;
    for (int64_t b = 0; b < num_blocks; ++b) {
      const std::byte* record = panel + b * kLayout.record_bytes();
      for (int64_t i = 0; i < kLayout.record_bytes(); i += kCacheLineBytes) {
        _mm_prefetch(record + i + kPrefetchBytes, _MM_HINT_T0);
      }
      __m512i w[kBlockVectors];
      unpack_block<kFormat>(record + kLayout.quants_offset(), w);
      Vec scale[2];
#pragma GCC unroll 2
      for (int s = 0; s < kLayout.num_scales; ++s) {
        scale[s] = load(scales_of(record, s));
      }
      const Vec minimum = kLayout.has_minimum ? load(minima_of<kFormat>(record)) : zero();
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const std::byte* row = x + r * args.x_stride_bytes;
        __m512i sums[2];
        sum_block(row, args.depth, b, w, sums);
        acc[r][0] = add_block<kFormat>(acc[r][0], sums, scale, minimum, row, args.depth, b);
      }
    }
  }
};

template <PanelFormat kFormat>
constexpr void add_quantized_gemm(Kernels& k) {
  k.gemm[static_cast<int>(kFormat)] = gemm<QuantProduct<kFormat>>;
}

constexpr void add_quantized_gemms(Kernels& k) {
  add_quantized_gemm<PanelFormat::kInt8>(k);
  add_quantized_gemm<PanelFormat::kInt4>(k);
  add_quantized_gemm<PanelFormat::kInt4Min>(k);
  add_quantized_gemm<PanelFormat::kInt5Min>(k);
  add_quantized_gemm<PanelFormat::kInt6>(k);
}

}  // namespace
}  // namespace octavo::cpu
