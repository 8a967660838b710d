// The kernels for AVX-512 with BF16 and VNNI. Activations are rounded to bfloat16 against bfloat16
// weights; vdpbf16ps adds the two products of a pair, without rounding in between where the
// processor has it so, to a float32 accumulator.
#include "cpu/isa_tables.h"
#include "cpu/kernels/quant_gemm_avx512.h"
#include "cpu/kernels/table.h"

namespace octavo::cpu {
namespace {

struct PairedProduct {
  static constexpr int kMaxRows = kTileRows;
  static constexpr int kMaxVecs = kTileVecs;

  static __m512bh load_pairs(const std::byte* p) {
    return reinterpret_cast<__m512bh>(_mm512_loadu_si512(p));
  }
  static __m512bh broadcast_pair(const std::byte* p) {
    int pair;
    __builtin_memcpy(&pair, p, sizeof(pair));
    return reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
  }

  template <int kRows, int kVecs>
  static void run(const GemmArgs& args, const std::byte* x, const std::byte* panel,
                  Vec (&acc)[kRows][kVecs]) {
    for (int64_t k = 0; k < args.depth; k += 2, x += 4, panel += kVectorBytes) {
      __m512bh column[kVecs];
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) column[v] = load_pairs(panel + v * args.panel_bytes);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m512bh pair = broadcast_pair(x + r * args.x_stride_bytes);
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) {
          acc[r][v].v = _mm512_dpbf16_ps(acc[r][v].v, pair, column[v]);
        }
      }
    }
  }
};

constexpr Kernels make_table() {
  Kernels k = common_kernels();
  constexpr int kBF16 = static_cast<int>(PanelFormat::kBFloat16);
  k.gemm[kBF16] = gemm<PairedProduct>;
  k.activation_format[kBF16] = ActivationFormat::kBFloat16;
  k.convert_row[static_cast<int>(ActivationFormat::kBFloat16)] = round_row_bfloat16;
  k.convert_blocks[static_cast<int>(ActivationFormat::kBFloat16)] = round_blocks_bfloat16;
  add_quantized_gemms(k);
  return k;
}

}  // namespace

constexpr Kernels kAvx512Kernels = make_table();

}  // namespace octavo::cpu
