// The kernels for AVX2, FMA and F16C. Activations stay float32 against bfloat16 weights, which are
// widened in registers.
#include "cpu/isa_tables.h"
#include "cpu/kernels/quant_gemm_avx2.h"
#include "cpu/kernels/table.h"

namespace octavo::cpu {
namespace {

// Element 2k of a pair is the low half of a 32-bit lane, so one shift or one mask widens it.
struct PairedProduct {
  static constexpr int kMaxRows = kTileRows;
  static constexpr int kMaxVecs = kTileVecs;

  static Vec even(const uint32_t* pairs) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(load_pairs(pairs), 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(load_pairs(pairs + 8), 16))};
  }
  static Vec odd(const uint32_t* pairs) {
    const __m256i high = _mm256_set1_epi32(static_cast<int>(0xFFFF0000));
    return {_mm256_castsi256_ps(_mm256_and_si256(load_pairs(pairs), high)),
            _mm256_castsi256_ps(_mm256_and_si256(load_pairs(pairs + 8), high))};
  }
  static __m256i load_pairs(const uint32_t* pairs) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pairs));
  }

  template <int kRows, int kVecs>
  static void run(const GemmArgs& args, const std::byte* row, const std::byte* panel,
                  Vec (&acc)[kRows][kVecs]) {
    static_assert(kVecs == 1);
    const auto* x = reinterpret_cast<const float*>(row);
    const int64_t x_stride = args.x_stride_bytes / 4;
    const auto* pairs = reinterpret_cast<const uint32_t*>(panel);
    int64_t k = 0;
    for (; k + 2 <= args.depth; k += 2, pairs += kPanelRows) {
      const Vec first = even(pairs);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        acc[r][0] = fma(set1(x[r * x_stride + k]), first, acc[r][0]);
      }
      // The widest tile takes all sixteen registers, so operands of the second half that are loaded
      // early would push accumulators out to memory: their place is not known until the first half
      // is done.
      int64_t next = k + 1;
      if constexpr (kRows == kMaxRows) {
        asm("" : "+r"(next) : "x"(acc[kRows - 1][0].lo), "x"(acc[kRows - 1][0].hi));
      }
      const Vec second = odd(pairs);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        acc[r][0] = fma(set1(x[r * x_stride + next]), second, acc[r][0]);
      }
    }
    if (k == args.depth) return;
    const Vec last = even(pairs);
    for (int r = 0; r < kRows; ++r) {
      acc[r][0] = fma(set1(x[r * x_stride + k]), last, acc[r][0]);
    }
  }
};

constexpr Kernels make_table() {
  Kernels k = common_kernels();
  k.gemm[static_cast<int>(PanelFormat::kBFloat16)] = gemm<PairedProduct>;
  add_quantized_gemms(k);
  return k;
}

}  // namespace

constexpr Kernels kAvx2Kernels = make_table();

}  // namespace octavo::cpu
