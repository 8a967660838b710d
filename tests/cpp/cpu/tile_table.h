// The AMX table's ways over plain C++: bfloat16 products and attention on PlainTiles, quantised
// panels widened a weight at a time; the rest is the AVX2 table's. For files that are compiled for
// AVX2.
#pragma once

#include <vector>

#include "cpu/kernels.h"
#include "cpu/kernels/pack.h"
#include "cpu/kernels/tile_attention.h"
#include "cpu/kernels/tile_gemm_bfloat16.h"
#include "cpu/plain_tiles.h"

namespace octavo::cpu {

template <PanelFormat kFormat>
void plain_widen_panel(const std::byte* panel, int64_t depth, std::byte* out) {
  std::vector<float> rows(kPanelRows * depth);
  for (int64_t lane = 0; lane < kPanelRows; ++lane) {
    kernels_for(Isa::kAvx2)
        .unpack_row[static_cast<int>(kFormat)](panel, lane, depth, &rows[lane * depth]);
  }
  pack_panel_bfloat16(rows.data(), kPanelRows, depth, out);
}

template <PanelFormat kFormat>
void add_plain_widening(Kernels& k) {
  k.widen_panel[static_cast<int>(kFormat)] = plain_widen_panel<kFormat>;
}

inline constexpr int64_t kPlainWidenRows = 16;

inline const Kernels& plain_tile_kernels() {
  static const Kernels table = [] {
    Kernels k = kernels_for(Isa::kAvx2);
    constexpr int kPanels = static_cast<int>(PanelFormat::kBFloat16);
    constexpr int kRows = static_cast<int>(ActivationFormat::kBFloat16);
    k.activation_format[kPanels] = ActivationFormat::kBFloat16;
    k.convert_row[kRows] = round_row_bfloat16;
    k.convert_blocks[kRows] = round_blocks_bfloat16;
    k.gemm[kPanels] = tile_gemm_bfloat16<PlainTiles>;
    add_plain_widening<PanelFormat::kInt8>(k);
    add_plain_widening<PanelFormat::kInt4>(k);
    add_plain_widening<PanelFormat::kInt4Min>(k);
    add_plain_widening<PanelFormat::kInt5Min>(k);
    add_plain_widening<PanelFormat::kInt6>(k);
    k.min_widen_rows = kPlainWidenRows;
    k.write_kv[static_cast<int>(KVFormat::kBFloat16)] = write_paired_kv;
    k.attention[static_cast<int>(KVFormat::kBFloat16)] = tile_attention<PlainTiles>;
    return k;
  }();
  return table;
}

}  // namespace octavo::cpu
