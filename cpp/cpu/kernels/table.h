// Fills a Kernels table with this instruction set's copies. Included last by isa_*.cc.
#pragma once

#include "cpu/kernels.h"
#include "cpu/kernels/attention.h"
#include "cpu/kernels/elementwise.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/pack.h"
#include "cpu/kernels/quant_row.h"
#include "cpu/kernels/row_scan.h"

namespace octavo::cpu {
namespace {

// All but the GEMMs of bfloat16 and quantised weights, which differ most between the sets.
constexpr Kernels common_kernels() {
  Kernels k{};
  constexpr int kF32 = static_cast<int>(PanelFormat::kFloat32);
  constexpr int kF16 = static_cast<int>(PanelFormat::kFloat16);
  constexpr int kBF16 = static_cast<int>(PanelFormat::kBFloat16);
  k.gemm[kF32] = gemm<WideProduct<float>>;
  k.gemm[kF16] = gemm<WideProduct<uint16_t>>;
  k.pack_panel[kF32] = pack_panel<float>;
  k.pack_panel[kF16] = pack_panel<uint16_t>;
  k.pack_panel[kBF16] = pack_panel_bfloat16;
  for (int format = 0; format < kNumPanelFormats; ++format) {
    if (is_quantized(static_cast<PanelFormat>(format))) {
      k.activation_format[format] = ActivationFormat::kInt8;
    }
  }
  k.convert_row[static_cast<int>(ActivationFormat::kInt8)] = quantize_row;
  k.convert_blocks[static_cast<int>(ActivationFormat::kInt8)] = quantize_blocks;
  k.unpack_row[kF32] = unpack_row<float>;
  k.unpack_row[kF16] = unpack_row<uint16_t>;
  k.unpack_row[kBF16] = unpack_row_bfloat16;
  k.unpack_row[static_cast<int>(PanelFormat::kInt8)] = unpack_quantized<PanelFormat::kInt8>;
  k.unpack_row[static_cast<int>(PanelFormat::kInt4)] = unpack_quantized<PanelFormat::kInt4>;
  k.unpack_row[static_cast<int>(PanelFormat::kInt4Min)] = unpack_quantized<PanelFormat::kInt4Min>;
  k.unpack_row[static_cast<int>(PanelFormat::kInt5Min)] = unpack_quantized<PanelFormat::kInt5Min>;
  k.unpack_row[static_cast<int>(PanelFormat::kInt6)] = unpack_quantized<PanelFormat::kInt6>;

  k.rms_norm = rms_norm;
  k.add = add_to;
  k.silu_mul = silu_mul;
  k.gelu_tanh_mul = gelu_tanh_mul;
  k.scale = scale;
  k.soft_cap = soft_cap_row;
  k.rope_half = rope_half;
  k.rope_interleaved = rope_interleaved;

  k.write_kv[static_cast<int>(KVFormat::kFloat32)] = write_kv<float>;
  k.write_kv[static_cast<int>(KVFormat::kFloat16)] = write_kv<uint16_t>;
  k.write_kv[static_cast<int>(KVFormat::kBFloat16)] = write_kv<BFloat16>;
  k.write_kv[static_cast<int>(KVFormat::kInt8)] = write_kv<Int8>;
  k.attention[static_cast<int>(KVFormat::kFloat32)] = attention<float>;
  k.attention[static_cast<int>(KVFormat::kFloat16)] = attention<uint16_t>;
  k.attention[static_cast<int>(KVFormat::kBFloat16)] = attention<BFloat16>;
  k.attention[static_cast<int>(KVFormat::kInt8)] = attention<Int8>;

  k.max_or_nan = max_or_nan;
  k.run_maxima = run_maxima;
  k.find_equal = find_equal;
  k.count_greater = count_greater;
  k.count_equal = count_equal;
  k.collect_at_least = collect_at_least;
  k.exp_sums = exp_sums;
  k.exp_terms = exp_terms;
  return k;
}

}  // namespace
}  // namespace octavo::cpu
