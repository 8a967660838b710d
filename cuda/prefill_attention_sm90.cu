// Flash attention for sm_90a. Two warps of the first warpgroup feed rings of key and of value tiles
// through the bulk tensor copy engine, one box a cache block; two consumer warpgroups take 64
// packed (token, head) rows each. S = Q K^T of the next tile is issued before O += P V of this one,
// so the tensor cores work while the exponentials of a tile are computed. Shared memory, 128-byte
// swizzled: Q [2 warpgroups][head_dim / 64][64 rows][64], and per stage K and V [head_dim / 64][128
// keys][64]. Bound: arithmetic, 4 * head_dim * num_q_heads operations for each visible (query, key)
// pair.
#include "cuda/common/barrier.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/wgmma.cuh"
#include "cuda/prefill_attention_sm90.h"
#include "cuda/prefill_combine.h"
#include "cuda/prefill_tiles_sm90.cuh"

namespace octavo::cuda {
namespace {

// One warpgroup: 64 packed rows.
template <typename T, int kDim>
struct Consumer {
  using L = Layout<kDim>;
  static constexpr int kScores = kKeys / 8;

  const PagedAttentionArgs<T, T>& args;
  const Tile& tile;
  Barriers barriers;
  uint32_t queries;  // of this warpgroup, in shared memory
  uint32_t shared;
  int group;   // 0 or 1
  int thread;  // in the warpgroup
  int first_row;
  int position[2];  // of rows g and g + 8 of the warp
  int warp_first;   // positions of the warp's first and last row
  int warp_last;
  float score_scale;
  float s[64];
  float o[kDim / 2];
  uint32_t p[kKeys / 16][4];
  float m[2];
  float l[2];

  __device__ int query_of(int row) const { return min(row / args.group, tile.num_queries - 1); }
  __device__ int position_of(int row) const {
    return tile.seq_len - tile.num_queries + query_of(row);
  }
  __device__ int64_t offset(int row, int64_t stride) const {
    const int head = tile.kv_head * args.group + row % args.group;
    return (tile.first_token + query_of(row)) * stride + head * kDim;
  }

  __device__ void load_queries() {
    constexpr int kPieces = kDim / 8;
    for (int i = thread; i < kGroupRows * kPieces; i += kGroupThreads) {
      const int r = i / kPieces;
      const int c = i % kPieces;
      const uint4 v = *reinterpret_cast<const uint4*>(
          args.qkv + offset(first_row + r, args.qkv_stride) + c * 8);
      const uint32_t at = queries + (c / 8 * kGroupRows + r) * kSpanBytes + ((c ^ r) & 7) * 16;
      asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v.x), "r"(v.y),
                   "r"(v.z), "r"(v.w)
                   : "memory");
    }
    fence_shared_for_async();
    named_barrier(1 + group, kGroupThreads);
  }

  __device__ void issue_scores(int stage) {
    const uint32_t keys = shared + L::kKeysAt + stage * L::kTileBytes;
    pin_registers(s);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      const uint32_t span = k / 4;
      const uint32_t in_span = k % 4 * 32;
      wgmma_shared<T>(
          s, wgmma_operand(queries + span * kGroupRows * kSpanBytes + in_span, 16, kAtomBytes),
          wgmma_operand(keys + span * kKeys * kSpanBytes + in_span, 16, kAtomBytes), k > 0);
    }
    wgmma_commit();
  }

  __device__ void issue_values(int stage) {
    const uint32_t values = shared + L::kValuesAt + stage * L::kTileBytes;
    pin_registers(o);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      wgmma_registers<T>(
          o, p[k], wgmma_operand(values + k * 2 * kAtomBytes, kKeys * kSpanBytes, kAtomBytes));
    }
    wgmma_commit();
  }

  __device__ bool is_visible(int key, int at) const {
    return key <= at && (args.window <= 0 || key > at - args.window);
  }

  __device__ void cap_and_mask(int key) {
    if (args.soft_cap > 0.0f) {
#pragma unroll
      for (int i = 0; i < 64; ++i) s[i] = args.soft_cap * tanh_fast(s[i] * args.scale);
    }
    if (is_visible(key + kKeys - 1, warp_first) && is_visible(key, warp_last)) return;
    const int first = key + thread % 4 * 2;
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      const int at = first + i / 4 * 8 + i % 2;
      if (!is_visible(at, position[i / 2 % 2])) s[i] = kMaskedScore;
    }
  }

  // s becomes probabilities; returns the factors that the older output and sums shrink by.
  __device__ float2 softmax_step() {
    float shrink[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float maximum = m[half];
#pragma unroll
      for (int n = 0; n < kScores; ++n) {
        maximum = fmaxf(maximum, fmaxf(s[4 * n + 2 * half], s[4 * n + 2 * half + 1]));
      }
      maximum = fmaxf(maximum, __shfl_xor_sync(kFullMask, maximum, 1));
      maximum = fmaxf(maximum, __shfl_xor_sync(kFullMask, maximum, 2));
      const float base = finite_maximum(maximum) * score_scale;
      shrink[half] = exp2_fast(m[half] * score_scale - base);
      m[half] = maximum;
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < kScores; ++n) {
#pragma unroll
        for (int i = 4 * n + 2 * half; i < 4 * n + 2 * half + 2; ++i) {
          s[i] = exp2_fast(fmaf(s[i], score_scale, -base));
          sum += s[i];
        }
      }
      l[half] = l[half] * shrink[half] + sum;
    }
    return make_float2(shrink[0], shrink[1]);
  }

  __device__ void rescale(float2 shrink) {
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) o[i] *= i / 2 % 2 == 0 ? shrink.x : shrink.y;
  }

  __device__ void pack_probabilities() {
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) p[k][i] = pack2<T>(s[8 * k + 2 * i], s[8 * k + 2 * i + 1]);
    }
  }

  // The warpgroups take turns: while one has its products in the tensor cores, the other computes
  // exponentials. Group 0 begins.
  __device__ void take_turn() const { named_barrier(3 + group, 2 * kGroupThreads); }
  __device__ void pass_turn() const { named_barrier_arrive(4 - group, 2 * kGroupThreads); }

  __device__ void release(uint32_t barrier) {
    if (thread % kWarpSize == 0) barrier_arrive(barrier);
  }

  __device__ void start() {
    first_row = tile.row_begin + group * kGroupRows;
    const int warp_row = first_row + thread / kWarpSize * 16;
    const int row = warp_row + thread % kWarpSize / 4;
    position[0] = position_of(row);
    position[1] = position_of(row + 8);
    warp_first = position_of(warp_row);
    warp_last = position_of(warp_row + 15);
    score_scale = args.soft_cap > 0.0f ? 1.0f : args.scale;
    m[0] = m[1] = kMaskedScore;
    l[0] = l[1] = 0.0f;
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) o[i] = 0.0f;
    load_queries();
  }

  __device__ void run() {
    start();
    if (tile.num_key_tiles == 0) return;  // a split past the last key
    if (group == 1) pass_turn();
    barrier_wait(barriers.keys_full(0), 0);
    take_turn();
    issue_scores(0);
    pass_turn();
    wgmma_wait<0>();
    pin_registers(s);
    release(barriers.keys_empty(0));
    cap_and_mask(tile.first_key_tile * kKeys);
    softmax_step();
    pack_probabilities();
    for (int i = 1; i < tile.num_key_tiles; ++i) {
      const int stage = i % kStages;
      const int before = (i - 1) % kStages;
      barrier_wait(barriers.keys_full(stage), i / kStages % 2);
      take_turn();
      issue_scores(stage);
      barrier_wait(barriers.values_full(before), (i - 1) / kStages % 2);
      issue_values(before);
      pass_turn();
      wgmma_wait<1>();
      pin_registers(s);
      release(barriers.keys_empty(stage));
      cap_and_mask((tile.first_key_tile + i) * kKeys);
      const float2 shrink = softmax_step();
      wgmma_wait<0>();
      pin_registers(o);
      release(barriers.values_empty(before));
      rescale(shrink);
      pack_probabilities();
    }
    const int last = tile.num_key_tiles - 1;
    barrier_wait(barriers.values_full(last % kStages), last / kStages % 2);
    issue_values(last % kStages);
    wgmma_wait<0>();
    pin_registers(o);
  }

  __device__ float row_sum(int half) const {
    float sum = l[half];
    sum += __shfl_xor_sync(kFullMask, sum, 1);
    return sum + __shfl_xor_sync(kFullMask, sum, 2);
  }
  // Of the thread's rows in the tile.
  __device__ int tile_row(int half) const {
    return group * kGroupRows + thread / kWarpSize * 16 + thread % kWarpSize / 4 + half * 8;
  }

  __device__ void write_out() const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = tile.row_begin + tile_row(half);
      const int head = blockIdx.x * args.group + row % args.group;
      const float norm = row_norm(args, head, make_float2(m[half] * score_scale, row_sum(half)));
      if (row / args.group >= tile.num_queries) continue;
      T* out = args.out + offset(row, static_cast<int64_t>(args.num_q_heads) * kDim);
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        *reinterpret_cast<uint32_t*>(out + n * 8 + thread % 4 * 2) =
            pack2<T>(o[4 * n + 2 * half] * norm, o[4 * n + 2 * half + 1] * norm);
      }
    }
  }

  // first_row: of the block among the partial rows.
  __device__ void write_partial(int64_t first_row) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = first_row + tile_row(half);
      const float sum = row_sum(half);
      if (thread % 4 == 0) args.partial_stats[row] = make_float2(m[half] * score_scale, sum);
      float* out = args.partial_out + row * kDim + thread % 4 * 2;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        *reinterpret_cast<float2*>(out + n * 8) =
            make_float2(o[4 * n + 2 * half], o[4 * n + 2 * half + 1]);
      }
    }
  }
};

template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    prefill_kernel(const PagedAttentionArgs<T, T> args, const __grid_constant__ CUtensorMap map,
                   int rows_per_half, int layer, int num_splits) {
#ifdef OCTAVO_SM90A
  using L = Layout<kDim>;
  extern __shared__ char raw[];
  const uint32_t shared = (shared_address(raw) + kAtomBytes - 1) / kAtomBytes * kAtomBytes;
  const Barriers barriers{shared + L::kBarriersAt};
  if (threadIdx.x == 0) barriers.init();
  allow_next_kernel();
  wait_for_previous_kernel();
  __syncthreads();
  const Tile tile = find_tile(args, num_splits);
  const int warpgroup = threadIdx.x / kGroupThreads;
  if (warpgroup == 0) {
    give_registers<24>();
    const Producer<T, kDim> producer{.args = args,
                                     .tile = tile,
                                     .map = &map,
                                     .barriers = barriers,
                                     .shared = shared,
                                     .first_row = 2 * layer * rows_per_half,
                                     .rows_per_half = rows_per_half,
                                     .lane = static_cast<int>(threadIdx.x) % kWarpSize};
    if (threadIdx.x / kWarpSize == 0) {
      producer.copy_keys();
    } else if (threadIdx.x / kWarpSize == 1) {
      producer.copy_values();
    }
  } else {
    take_registers<240>();
    Consumer<T, kDim> consumer{.args = args,
                               .tile = tile,
                               .barriers = barriers,
                               .queries = shared + (warpgroup - 1) * L::kQueryBytes,
                               .shared = shared,
                               .group = warpgroup - 1,
                               .thread = static_cast<int>(threadIdx.x) % kGroupThreads};
    consumer.run();
    if (num_splits == 1) {
      consumer.write_out();
    } else {
      const int64_t index = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
      consumer.write_partial((index * num_splits + blockIdx.z) * kPrefillRowsSm90);
    }
  }
#endif
}

template <typename T, int kDim>
void launch_prefill(const PagedAttentionArgs<T, T>& args, const PrefillGridSm90& grid) {
  launch(prefill_kernel<T, kDim>,
         {.grid = dim3(args.num_kv_heads, grid.num_tiles, grid.num_splits),
          .block = dim3(kThreads),
          .shared_bytes = Layout<kDim>::kSharedBytes},
         grid.stream, args, *grid.tensor_map, grid.rows_per_half, grid.layer, grid.num_splits);
  combine_splits(args, {grid.num_tiles, kPrefillRowsSm90, grid.num_splits}, grid.stream);
}

}  // namespace

template <typename T>
void prefill_attention_sm90(const PagedAttentionArgs<T, T>& args, const PrefillGridSm90& grid) {
  if (grid.num_tiles == 0) return;
  check(args.head_dim == 64 || args.head_dim == 128, "prefill_sm90: head size");
  if (args.head_dim == 64) {
    launch_prefill<T, 64>(args, grid);
  } else {
    launch_prefill<T, 128>(args, grid);
  }
}

template void prefill_attention_sm90(const PagedAttentionArgs<bf16, bf16>&, const PrefillGridSm90&);
template void prefill_attention_sm90(const PagedAttentionArgs<fp16, fp16>&, const PrefillGridSm90&);

}  // namespace octavo::cuda
