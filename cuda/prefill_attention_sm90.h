// Attention of several queries a sequence on Hopper's warpgroup matrix instructions.
#pragma once

#include <cuda.h>

#include "cuda/paged_attention.cuh"

namespace octavo::cuda {

inline constexpr int kPrefillRowsSm90 = 128;  // packed (token, head) rows of a tile

struct PrefillGridSm90 {
  int num_tiles = 0;
  int num_splits = 1;                       // ranges of keys that separate blocks work on
  const CUtensorMap* tensor_map = nullptr;  // of the whole cache, see CudaKVCache
  int rows_per_half = 0;                    // of the tensor map
  int layer = 0;
  cudaStream_t stream = nullptr;
};

// Runs every tile of args.plan (made with tile_rows = kPrefillRowsSm90).
// Instantiated for bf16 and fp16. Requires: head_dim 64 or 128, a cache that has a tensor map.
template <typename T>
void prefill_attention_sm90(const PagedAttentionArgs<T, T>& args, const PrefillGridSm90& grid);

}  // namespace octavo::cuda
