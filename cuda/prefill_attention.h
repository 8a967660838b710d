// Attention of several queries a sequence over the paged cache, on any head size and cache type.
#pragma once

#include "cuda/paged_attention.cuh"

namespace octavo::cuda {

inline constexpr int kPrefillRows = 64;  // packed (token, head) rows of a tile

struct PrefillGrid {
  int num_tiles = 0;
  int num_splits = 1;  // ranges of keys that separate blocks work on
  cudaStream_t stream = nullptr;
};

// Runs every tile of args.plan (made with tile_rows = kPrefillRows).
// Instantiated for T = bf16, fp16 and KV = T, fp8. Requires: head_dim a multiple of 16, <= 256.
template <typename T, typename KV>
void prefill_attention(const PagedAttentionArgs<T, KV>& args, const PrefillGrid& grid);

}  // namespace octavo::cuda
