// The kernels on the AMX tile registers: GEMMs and attention over a bfloat16 cache. Everything else
// is the AVX-512 table's.
#include "cpu/isa_tables.h"
#include "cpu/kernels/paired_cache.h"
#include "cpu/kernels/tile_attention.h"
#include "cpu/kernels/tile_gemm_bfloat16.h"
#include "cpu/kernels/tile_gemm_quantized.h"
#include "cpu/kernels/tiles_amx.h"

namespace octavo::cpu {
namespace {

// From this many rows on the tiles are faster than vpdpbusd; both give the same bits.
constexpr int64_t kMinTileRows = 32;
static_assert(kMinTileRows >= kMaxTileRows);

template <PanelFormat kFormat>
void gemm_quantized(const GemmArgs& args) {
  if (args.num_rows < kMinTileRows) {
    kAvx512Kernels.gemm[static_cast<int>(kFormat)](args);
  } else {
    tile_gemm_quantized<AmxTiles, kFormat>(args);
  }
}

template <PanelFormat kFormat>
void add_quantized_gemm(Kernels& k) {
  k.gemm[static_cast<int>(kFormat)] = gemm_quantized<kFormat>;
}

}  // namespace

void add_amx_kernels(Kernels& k) {
  k.gemm[static_cast<int>(PanelFormat::kBFloat16)] = tile_gemm_bfloat16<AmxTiles>;
  add_quantized_gemm<PanelFormat::kInt8>(k);
  add_quantized_gemm<PanelFormat::kInt4>(k);
  add_quantized_gemm<PanelFormat::kInt4Min>(k);
  add_quantized_gemm<PanelFormat::kInt5Min>(k);
  add_quantized_gemm<PanelFormat::kInt6>(k);
  k.write_kv[static_cast<int>(KVFormat::kBFloat16)] = write_paired_kv;
  k.attention[static_cast<int>(KVFormat::kBFloat16)] = tile_attention<AmxTiles>;
}

}  // namespace octavo::cpu
