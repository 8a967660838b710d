// Split-KV decode attention. A block of four warps works on (unit, KV head, tile of eight query
// heads); each warp streams its own tiles of 16 keys through a private ring of shared memory, so
// the only block-wide barriers are at the end of a unit. Transposed products keep the tensor cores'
// padding small: S^T = K Q^T has 16 keys x 8 heads, O^T = V^T P^T has 16 dimensions x 8 heads.
// Blocks are persistent, and the rings run on from unit to unit: while a unit is finished, the keys
// of the next are on their way. The last block of a sequence to finish combines the chunks in their
// order, so the result does not depend on timing.
// The plan and every key but the newest are older than the kernel before: the rings start to fill
// before it has finished.
// Bound: memory, 2 * sum(seq_len) * num_kv_heads * head_dim * sizeof(KV) bytes.
#include <algorithm>

#include "cuda/common/launch.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/decode_attention.h"
#include "cuda/decode_stream.cuh"

namespace octavo::cuda {
namespace {

// The computation of one warp.
template <typename T, typename KV, int kDim>
struct Warp {
  using L = Layout<T, KV, kDim>;
  static constexpr int kSteps = kDim / 16;

  const PagedAttentionArgs<T, KV>& args;
  char* shared;  // this warp's
  int lane;
  int warp;
  int slot = 0;
  Item item;
  uint32_t q[kSteps][2];
  float o[kSteps][4];
  float m[2];
  float l[2];

  // First dimension of the pair that half `half` of q[i] holds. The order of the dimensions is free
  // as long as queries and keys agree: with fp8 keys a lane takes 16 consecutive ones.
  __device__ int dimension(int i, int half) const {
    if constexpr (sizeof(KV) == 1) return i / 4 * 64 + lane % 4 * 16 + i % 4 * 4 + half * 2;
    return i * 16 + half * 8 + lane % 4 * 2;
  }

  __device__ void load_queries() {
    const int head = lane / 4;
    const T* source =
        args.qkv + item.unit.row * args.qkv_stride + (item.first_head + head) * args.head_dim;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int d = dimension(i, half);
        const bool valid = head < item.num_heads && d < args.head_dim;
        q[i][half] = valid ? *reinterpret_cast<const uint32_t*>(source + d) : 0;
      }
    }
  }

  // Products of the tile's keys with the queries.
  __device__ void multiply_keys(float (&s)[4]) const {
    const int stage = slot * L::kStageBytes;
    if constexpr (sizeof(KV) == 1) {
#pragma unroll
      for (int j = 0; j < kSteps / 4; ++j) {
        const int chunk = j * 4 + lane % 4;
        const uint4 low =
            *reinterpret_cast<const uint4*>(shared + stage + swizzled<L::kChunks>(lane / 4, chunk));
        const uint4 high = *reinterpret_cast<const uint4*>(
            shared + stage + swizzled<L::kChunks>(lane / 4 + 8, chunk));
        const uint32_t quads[2][4] = {{low.x, low.y, low.z, low.w},
                                      {high.x, high.y, high.z, high.w}};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint2 a = fp8x4_to_words<T>(quads[0][i]);
          const uint2 b = fp8x4_to_words<T>(quads[1][i]);
          mma_16x8x16<T>(s, {a.x, b.x, a.y, b.y}, q[4 * j + i][0], q[4 * j + i][1]);
        }
      }
    } else {
      const uint32_t keys = shared_address(shared) + stage;
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        uint32_t a[4];
        ldmatrix_x4(a, keys + swizzled<L::kChunks>(lane % 16, 2 * i + lane / 16));
        mma_16x8x16<T>(s, a, q[i][0], q[i][1]);
      }
    }
  }

  // s: keys (g, g + 8) x heads (2q, 2q + 1).
  __device__ void scores(int key, float (&s)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) s[i] = 0.0f;
    multiply_keys(s);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = key + lane / 4 + (i < 2 ? 0 : 8);
      s[i] = at >= item.window_begin && at < item.end ? transform_score(args, s[i]) : kMaskedScore;
    }
  }

  // One step of the running softmax: updates m, l and the scale of o; s becomes probabilities.
  __device__ void softmax_step(float (&s)[4]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float maximum = fmaxf(s[h], s[h + 2]);
#pragma unroll
      for (int offset = 4; offset < kWarpSize; offset *= 2) {
        maximum = fmaxf(maximum, __shfl_xor_sync(kFullMask, maximum, offset));
      }
      maximum = fmaxf(maximum, m[h]);
      const float base = finite_maximum(maximum);
      const float shrink = exp2_fast(m[h] - base);
      m[h] = maximum;
      s[h] = exp2_fast(s[h] - base);
      s[h + 2] = exp2_fast(s[h + 2] - base);
      l[h] = l[h] * shrink + s[h] + s[h + 2];
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        o[i][h] *= shrink;
        o[i][h + 2] *= shrink;
      }
    }
  }

  // Adds the tile's values, weighted: o[i] holds dimensions out_dimension(i, 0 and 1) x heads.
  __device__ void accumulate(const float (&s)[4]) {
    const uint32_t b0 = transpose_8x8(pack2<T>(s[0], s[1]));
    const uint32_t b1 = transpose_8x8(pack2<T>(s[2], s[3]));
    const uint32_t values = shared_address(shared) + slot * L::kStageBytes + L::kTileBytes;
    const int key = lane % 8 + lane / 16 * 8;
    if constexpr (sizeof(KV) == 1) {
      // Transposed as pairs of fp8: a word holds two keys' values of two neighbouring dimensions.
#pragma unroll
      for (int i = 0; i < kSteps; i += 2) {
        uint32_t quads[4];  // dimensions of i and i + 1 with keys 0 - 7, then with keys 8 - 15
        ldmatrix_x4_trans(quads, values + swizzled<L::kChunks>(key, i + lane / 8 % 2));
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const uint2 first = fp8x4_to_words<T>(__byte_perm(quads[j], 0, 0x3120));
          const uint2 second = fp8x4_to_words<T>(__byte_perm(quads[j + 2], 0, 0x3120));
          mma_16x8x16<T>(o[i + j], {first.x, first.y, second.x, second.y}, b0, b1);
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        uint32_t a[4];
        ldmatrix_x4_trans(a, values + swizzled<L::kChunks>(key, 2 * i + lane / 8 % 2));
        mma_16x8x16<T>(o[i], a, b0, b1);
      }
    }
  }
  __device__ int out_dimension(int i, int half) const {
    if constexpr (sizeof(KV) == 1) return i * 16 + lane / 4 * 2 + half;
    return i * 16 + lane / 4 + half * 8;
  }

  // Works through the item's tiles; the loader runs on ahead.
  template <typename LoaderT>
  __device__ void run(LoaderT& loader) {
    load_queries();
    m[0] = m[1] = kMaskedScore;
    l[0] = l[1] = 0.0f;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0.0f;
    const int tiles = item.num_tiles(warp);
    for (int tile = 0; tile < tiles; ++tile) {
      copy_async_wait<kStages - 2>();
      __syncwarp();
      loader.issue();
      float s[4];
      scores(item.first_key(tile, warp), s);
      softmax_step(s);
      accumulate(s);
      __syncwarp();
      slot = slot + 1 == kStages ? 0 : slot + 1;
    }
#pragma unroll
    for (int offset = 4; offset < kWarpSize; offset *= 2) {
      l[0] += __shfl_xor_sync(kFullMask, l[0], offset);
      l[1] += __shfl_xor_sync(kFullMask, l[1], offset);
    }
  }

  // Writes the warp's result for the merge: rows [warp][head] of kDim floats, then (m, l) pairs.
  __device__ void publish(float* rows, float2* stats) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = warp * kDecodeHeadTile + lane % 4 * 2 + h;
      if (lane < 4) stats[row] = make_float2(m[h], l[h]);
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        rows[row * kDim + out_dimension(i, 0)] = o[i][h];
        rows[row * kDim + out_dimension(i, 1)] = o[i][h + 2];
      }
    }
  }
};

// Sum of weighted rows and its statistics.
struct Merged {
  float4 value;
  float2 stats;
};

// Merges `count` rows of one head at four dimensions; row i at values + i * value_stride.
__device__ Merged merge_rows(const float* values, int64_t value_stride, const float2* stats,
                             int64_t stats_stride, int count) {
  float maximum = kMaskedScore;
  for (int i = 0; i < count; ++i) maximum = fmaxf(maximum, __ldcg(&stats[i * stats_stride]).x);
  const float base = finite_maximum(maximum);
  Merged merged{make_float4(0.0f, 0.0f, 0.0f, 0.0f), make_float2(maximum, 0.0f)};
  for (int i = 0; i < count; ++i) {
    const float2 s = __ldcg(&stats[i * stats_stride]);
    const float4 v = __ldcg(reinterpret_cast<const float4*>(values + i * value_stride));
    const float weight = exp2_fast(s.x - base);
    merged.stats.y += weight * s.y;
    merged.value.x += weight * v.x;
    merged.value.y += weight * v.y;
    merged.value.z += weight * v.z;
    merged.value.w += weight * v.w;
  }
  return merged;
}

template <typename Args>
__device__ void write_out(const Args& args, const Item& item, int head, int d,
                          const Merged& merged) {
  using T = std::remove_cvref_t<decltype(*args.out)>;
  const float norm = row_norm(args, item.first_head + head, merged.stats);
  const int64_t row = item.unit.row;
  T* out = args.out + (row * args.num_q_heads + item.first_head + head) * args.head_dim + d;
  *reinterpret_cast<uint2*>(out) =
      make_uint2(pack2<T>(merged.value.x * norm, merged.value.y * norm),
                 pack2<T>(merged.value.z * norm, merged.value.w * norm));
}

// True in the block that finishes the item's sequence last; its counter is then zero again.
__device__ bool finishes_sequence(int32_t* counter, int num_chunks) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(counter, 1) == num_chunks - 1;
    if (last) *counter = 0;
  }
  __syncthreads();
  if (last) __threadfence();
  return last;
}

// Merges the warps' results, then, in the last block of the sequence, the chunks' results.
template <int kDim, typename Args>
__device__ void finish_item(const Args& args, const Item& item, int chunk_size, const float* rows,
                            const float2* stats) {
  const bool whole = item.unit.first_partial < 0;
  const int64_t first = static_cast<int64_t>(item.unit.first_partial) * args.num_q_heads;
  const int total = item.num_heads * args.head_dim;
  for (int i = threadIdx.x * 4; i < total; i += kThreads * 4) {
    const int head = i / args.head_dim;
    const int d = i % args.head_dim;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float maximum = kMaskedScore;
    float weight_sum = 0.0f;
    for (int w = 0; w < kWarps; ++w) {
      maximum = fmaxf(maximum, stats[w * kDecodeHeadTile + head].x);
    }
    const float base = finite_maximum(maximum);
    for (int w = 0; w < kWarps; ++w) {
      const int row = w * kDecodeHeadTile + head;
      const float4 v = *reinterpret_cast<const float4*>(rows + row * kDim + d);
      const float weight = exp2_fast(stats[row].x - base);
      weight_sum += weight * stats[row].y;
      sum.x += weight * v.x;
      sum.y += weight * v.y;
      sum.z += weight * v.z;
      sum.w += weight * v.w;
    }
    if (whole) {
      write_out(args, item, head, d, {sum, make_float2(maximum, weight_sum)});
    } else {
      const int64_t slot =
          first + static_cast<int64_t>(item.unit.chunk) * args.num_q_heads + item.first_head + head;
      *reinterpret_cast<float4*>(args.partial_out + slot * args.head_dim + d) = sum;
      if (d == 0) args.partial_stats[slot] = make_float2(maximum, weight_sum);
    }
  }
  if (whole) return;
  const int num_chunks = (item.unit.seq_len + chunk_size - 1) / chunk_size;
  if (!finishes_sequence(args.counters + item.counter, num_chunks)) return;
  for (int i = threadIdx.x * 4; i < total; i += kThreads * 4) {
    const int head = i / args.head_dim;
    const int d = i % args.head_dim;
    const int64_t slot = first + item.first_head + head;
    write_out(args, item, head, d,
              merge_rows(args.partial_out + slot * args.head_dim + d,
                         static_cast<int64_t>(args.num_q_heads) * args.head_dim,
                         args.partial_stats + slot, args.num_q_heads, num_chunks));
  }
}

template <typename T, typename KV, int kDim>
__global__ void __launch_bounds__(kThreads) decode_kernel(PagedAttentionArgs<T, KV> args) {
  using L = Layout<T, KV, kDim>;
  extern __shared__ __align__(128) char shared[];
  allow_next_kernel();
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  char* mine = shared + warp * L::kWarpBytes;
  const Items<PagedAttentionArgs<T, KV>> items(args);
  Loader<T, KV, kDim> loader{
      .items = items, .shared = shared_address(mine), .lane = lane, .warp = warp};
  loader.start();
  bool has_waited = false;
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (!has_waited && !loader.is_next_old()) {
      wait_for_previous_kernel();
      has_waited = true;
    }
    loader.issue();
  }
  if (!has_waited) wait_for_previous_kernel();

  auto* rows = reinterpret_cast<float*>(shared + L::kRowsAt);
  auto* stats = reinterpret_cast<float2*>(shared + L::kStatsAt);
  Warp<T, KV, kDim> state{.args = args, .shared = mine, .lane = lane, .warp = warp};
  DecodeUnit unit = items.unit(blockIdx.x);
  for (int index = blockIdx.x; index < items.count; index += gridDim.x) {
    state.item = items.make(index, unit);
    unit = items.unit(index + gridDim.x);
    state.run(loader);
    state.publish(rows, stats);
    __syncthreads();
    finish_item<kDim>(args, state.item, items.chunk_size, rows, stats);
    __syncthreads();
  }
}

template <typename T, typename KV, int kDim>
void launch_decode(const PagedAttentionArgs<T, KV>& args, const DecodeGrid& grid) {
  using L = Layout<T, KV, kDim>;
  constexpr int kReservedPerBlock = 1024;
  const int blocks_per_sm =
      std::min(8, grid.shared_bytes_per_sm / (L::kSharedBytes + kReservedPerBlock));
  const int blocks = std::min(grid.max_items, grid.num_sms * blocks_per_sm);
  launch(decode_kernel<T, KV, kDim>,
         {.grid = dim3(blocks),
          .block = dim3(kThreads),
          .shared_bytes = L::kSharedBytes,
          .overlap = grid.overlap},
         grid.stream, args);
}

}  // namespace

template <typename T, typename KV>
void decode_attention(const PagedAttentionArgs<T, KV>& args, const DecodeGrid& grid) {
  if (grid.max_items == 0) return;
  if (args.head_dim <= 64) {
    launch_decode<T, KV, 64>(args, grid);
  } else if (args.head_dim <= 128) {
    launch_decode<T, KV, 128>(args, grid);
  } else {
    launch_decode<T, KV, 256>(args, grid);
  }
}

template void decode_attention(const PagedAttentionArgs<bf16, bf16>&, const DecodeGrid&);
template void decode_attention(const PagedAttentionArgs<bf16, fp8>&, const DecodeGrid&);
template void decode_attention(const PagedAttentionArgs<fp16, fp16>&, const DecodeGrid&);
template void decode_attention(const PagedAttentionArgs<fp16, fp8>&, const DecodeGrid&);

}  // namespace octavo::cuda
