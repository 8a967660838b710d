// Block (KV head, tile, group of rows); a warp a row, two dimensions a lane and turn.
// Bound: memory, the partial rows once.
#include "cuda/common/launch.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/prefill_combine.h"

namespace octavo::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;

template <typename T, typename KV>
__global__ void __launch_bounds__(kThreads)
    combine_kernel(PagedAttentionArgs<T, KV> args, int tile_rows, int num_splits) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const PrefillTile tile = args.plan.tiles[blockIdx.y];
  const int first_token = args.query_start_loc[tile.seq];
  const int num_queries = args.query_start_loc[tile.seq + 1] - first_token;
  const int r = blockIdx.z * kWarps + threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  const int query = (tile.row_begin + r) / args.group;
  if (query >= num_queries) return;
  const int head = blockIdx.x * args.group + (tile.row_begin + r) % args.group;
  const int64_t index = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
  const int64_t first = index * num_splits * tile_rows + r;
  float maximum = kMaskedScore;
  for (int i = 0; i < num_splits; ++i) {
    maximum = fmaxf(maximum, args.partial_stats[first + i * tile_rows].x);
  }
  for (int d = lane * 2; d < args.head_dim; d += kWarpSize * 2) {
    float2 sum = make_float2(0.0f, 0.0f);
    float weight_sum = 0.0f;
#pragma unroll 4
    for (int i = 0; i < num_splits; ++i) {
      const int64_t row = first + i * tile_rows;
      const float2 stats = args.partial_stats[row];
      const float2 v = *reinterpret_cast<const float2*>(args.partial_out + row * args.head_dim + d);
      const float weight = exp2_fast(stats.x - maximum);
      weight_sum += weight * stats.y;
      sum.x += weight * v.x;
      sum.y += weight * v.y;
    }
    const float norm = row_norm(args, head, make_float2(maximum, weight_sum));
    T* out = args.out +
             (static_cast<int64_t>(first_token + query) * args.num_q_heads + head) * args.head_dim;
    *reinterpret_cast<uint32_t*>(out + d) = pack2<T>(sum.x * norm, sum.y * norm);
  }
}

}  // namespace

template <typename T, typename KV>
void combine_splits(const PagedAttentionArgs<T, KV>& args, const SplitTiles& splits,
                    cudaStream_t stream) {
  if (splits.num_splits == 1) return;
  launch(combine_kernel<T, KV>,
         {.grid = dim3(args.num_kv_heads, splits.num_tiles, splits.tile_rows / kWarps),
          .block = dim3(kThreads)},
         stream, args, splits.tile_rows, splits.num_splits);
}

template void combine_splits(const PagedAttentionArgs<bf16, bf16>&, const SplitTiles&,
                             cudaStream_t);
template void combine_splits(const PagedAttentionArgs<bf16, fp8>&, const SplitTiles&, cudaStream_t);
template void combine_splits(const PagedAttentionArgs<fp16, fp16>&, const SplitTiles&,
                             cudaStream_t);
template void combine_splits(const PagedAttentionArgs<fp16, fp8>&, const SplitTiles&, cudaStream_t);

}  // namespace octavo::cuda
