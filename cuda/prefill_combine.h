// Merges the partial results of prefill tiles whose keys were split among blocks.
#pragma once

#include "cuda/paged_attention.cuh"

namespace octavo::cuda {

// Partial rows lie as [tile][KV head][split][tile_rows].
struct SplitTiles {
  int num_tiles = 0;
  int tile_rows = 0;
  int num_splits = 1;

  int64_t num_rows(int num_kv_heads) const {
    return num_splits == 1 ? 0 : int64_t{num_tiles} * num_kv_heads * num_splits * tile_rows;
  }
};

// Writes args.out from args.partial_out and args.partial_stats. Nothing to do without splits.
template <typename T, typename KV>
void combine_splits(const PagedAttentionArgs<T, KV>& args, const SplitTiles& splits,
                    cudaStream_t stream);

}  // namespace octavo::cuda
