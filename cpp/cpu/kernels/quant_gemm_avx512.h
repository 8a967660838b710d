// Quantised weights times int8 activations with vpdpbusd. The 32 products of a block are added
// exactly; each block then adds scale * activation scale * sum, rounded twice, and the minimum's
// share, in ascending order: the same roundings for any number of rows and on every instruction
// set. Bound: memory for few rows, and for many the two ports that take vector instructions: of 11
// for a row and a block (12 with minima, 14 with two scales) vpdpbusd is 8.
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
inline __m512i initial_sum(const std::byte* row, int64_t depth, int64_t block, int s) {
  constexpr QuantLayout kLayout = quant_layout(kFormat);
  if constexpr (kLayout.zero == 0) {
    return _mm512_setzero_si512();
  } else {
    return _mm512_set1_epi32(*QuantizedRow::offset<kFormat>(row, depth, block, s));
  }
}

inline __m512i broadcast_four(const std::byte* p) {
  int32_t four;
  __builtin_memcpy(&four, p, sizeof(four));
  return _mm512_set1_epi32(four);
}

template <PanelFormat kFormat>
struct QuantProduct {
  // One vector of sums a row leaves registers for so many accumulators.
  static constexpr int kMaxRows = 16;
  static constexpr int kMaxVecs = 1;
  static constexpr QuantLayout kLayout = quant_layout(kFormat);

  // One chain a scale: to join two would take one more instruction, and the rows hide the latency.
  static void sum_block(const std::byte* row, int64_t depth, int64_t block,
                        const __m512i (&w)[kBlockVectors], __m512i (&sums)[2]) {
    constexpr int kVectors = kBlockVectors / static_cast<int>(kLayout.num_scales);
    const std::byte* x = QuantizedRow::quants(row, block);
#pragma GCC unroll 2
    for (int s = 0; s < kLayout.num_scales; ++s) {
      sums[s] = initial_sum<kFormat>(row, depth, block, s);
#pragma GCC unroll 8
      for (int g = s * kVectors; g < (s + 1) * kVectors; ++g) {
        sums[s] = _mm512_dpbusd_epi32(sums[s], w[g], broadcast_four(x + kVectorDepth * g));
      }
    }
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
