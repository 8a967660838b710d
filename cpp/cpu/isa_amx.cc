// The kernels on the AMX tile registers: GEMMs of bfloat16 weights, which from some rows on take
// quantised ones too, and attention over a bfloat16 cache. Everything else is the AVX-512 table's.
#include "cpu/isa_tables.h"
#include "cpu/kernels/paired_cache.h"
#include "cpu/kernels/tile_attention.h"
#include "cpu/kernels/tile_gemm_bfloat16.h"
#include "cpu/kernels/tiles_amx.h"
#include "cpu/kernels/widen_panel.h"

namespace octavo::cpu {

void add_amx_kernels(Kernels& k) {
  k.gemm[static_cast<int>(PanelFormat::kBFloat16)] = tile_gemm_bfloat16<AmxTiles>;
  add_widenings(k);
  k.min_widen_rows = 16;
  k.write_kv[static_cast<int>(KVFormat::kBFloat16)] = write_paired_kv;
  k.attention[static_cast<int>(KVFormat::kBFloat16)] = tile_attention<AmxTiles>;
}

}  // namespace octavo::cpu
