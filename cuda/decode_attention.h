// Attention of single queries over the paged cache.
#pragma once

#include "cuda/paged_attention.cuh"

namespace octavo::cuda {

struct DecodeGrid {
  int max_items = 0;  // upper bound of units times head tiles
  int num_sms = 0;
  int shared_bytes_per_sm = 0;
  bool overlap = true;  // with the kernel before; not directly behind the one that makes the plan
  cudaStream_t stream = nullptr;
};

// Runs every decode unit of args.plan. Heads of a group go through the matrix units together, so
// keys and values are read once a group of up to eight.
// Instantiated for T = bf16, fp16 and KV = T, fp8. Requires: head_dim a multiple of 16, <= 256.
template <typename T, typename KV>
void decode_attention(const PagedAttentionArgs<T, KV>& args, const DecodeGrid& grid);

// Tiles of up to eight query heads that a group of `group` heads makes.
inline constexpr int kDecodeHeadTile = 8;
inline int decode_head_tiles(int group) { return (group + kDecodeHeadTile - 1) / kDecodeHeadTile; }

}  // namespace octavo::cuda
