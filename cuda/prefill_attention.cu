// Flash attention on warp-level matrix instructions (sm_80 and later). A block of four warps takes
// 64 packed rows of one KV head: row r is query r / group, head r % group, so a short chunk still
// fills the tile and keys are read once a group. Keys and values pass through two stages of shared
// memory; queries, scores and the output stay in registers. With few tiles and long contexts the
// keys are split among blocks (grid z) and a second kernel combines.
// Bound: arithmetic, 4 * head_dim * num_q_heads operations for each visible (query, key) pair.
#include "cuda/common/launch.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/prefill_attention.h"
#include "cuda/prefill_combine.h"

namespace octavo::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;

template <typename T, int kDim>
struct Layout {
  static constexpr int kKeys = kDim > 128 ? 32 : 64;  // keys of a stage
  static constexpr int kChunks = kDim / 8;            // 16-byte pieces of a row
  static constexpr int kTileBytes = kKeys * kDim * static_cast<int>(sizeof(T));
  static constexpr int kStages = 2;
  static constexpr int kSharedBytes = kStages * 2 * kTileBytes;
};

template <int kChunks>
__device__ uint32_t swizzled(int row, int chunk) {
  return (row * kChunks + (chunk ^ (row & 7))) * 16;
}

// The block's work.
struct Tile {
  int seq;
  int row_begin;    // packed
  int num_queries;  // of the sequence
  int seq_len;
  int kv_head;
  int64_t first_token;  // row of qkv of the sequence's first query
  int key_begin;        // multiple of Layout::kKeys
  int key_end;
};

template <int kKeys, typename Args>
__device__ Tile find_tile(const Args& args, int num_splits) {
  const PrefillTile planned = args.plan.tiles[blockIdx.y];
  Tile tile;
  tile.seq = planned.seq;
  tile.row_begin = planned.row_begin;
  tile.kv_head = blockIdx.x;
  tile.first_token = args.query_start_loc[tile.seq];
  tile.num_queries = args.query_start_loc[tile.seq + 1] - static_cast<int>(tile.first_token);
  tile.seq_len = args.seq_lens[tile.seq];
  const int first_position = tile.seq_len - tile.num_queries;
  const int last_query =
      min((tile.row_begin + kPrefillRows - 1) / args.group, tile.num_queries - 1);
  const int end = first_position + last_query + 1;
  const int first_query = tile.row_begin / args.group;
  const int visible = args.window > 0 ? max(0, first_position + first_query + 1 - args.window) : 0;
  const int first_key_tile = visible / kKeys;
  const int key_tiles = (end + kKeys - 1) / kKeys - first_key_tile;
  const int per_split = (key_tiles + num_splits - 1) / num_splits;
  const int split_begin = first_key_tile + min(key_tiles, per_split * static_cast<int>(blockIdx.z));
  const int split_end = min(first_key_tile + key_tiles, split_begin + per_split);
  tile.key_begin = split_begin * kKeys;
  tile.key_end = min(split_end * kKeys, end);
  return tile;
}

template <typename T, typename KV, int kDim>
struct Block {
  using L = Layout<T, kDim>;
  static constexpr int kSteps = kDim / 16;
  static constexpr int kScores = L::kKeys / 8;
  static constexpr int kOuts = kDim / 8;

  const PagedAttentionArgs<T, KV>& args;
  const Tile& tile;
  char* shared;
  int lane;
  int warp;
  int position[2];  // of this lane's rows g and g + 8
  uint32_t q[kSteps][4];
  float o[kOuts][4];
  float m[2];
  float l[2];

  __device__ int packed_row(int half) const {
    return tile.row_begin + warp * 16 + half * 8 + lane / 4;
  }
  __device__ bool is_valid(int row) const { return row / args.group < tile.num_queries; }
  __device__ int query_position(int row) const {
    return tile.seq_len - tile.num_queries + min(row / args.group, tile.num_queries - 1);
  }
  // Offset of the packed row's head in a matrix of `stride` elements a token.
  __device__ int64_t offset(int row, int64_t stride) const {
    const int query = min(row / args.group, tile.num_queries - 1);
    const int head = tile.kv_head * args.group + row % args.group;
    return (tile.first_token + query) * stride + head * args.head_dim;
  }

  __device__ void load_queries() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = packed_row(half);
      position[half] = query_position(row);
      const T* source = args.qkv + offset(row, args.qkv_stride);
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const int d = i * 16 + k * 8 + lane % 4 * 2;
          q[i][2 * k + half] =
              d < args.head_dim ? *reinterpret_cast<const uint32_t*>(source + d) : 0;
        }
      }
    }
  }

  // Row of keys and values in elements: those of token `key`.
  __device__ int64_t cached_row(int key) const {
    const int index = key / args.block_size;
    const int64_t block = args.block_tables[tile.seq * args.block_table_stride + index];
    return ((block * args.num_kv_heads + tile.kv_head) * args.block_size +
            (key - index * args.block_size)) *
           args.head_dim;
  }

  // Fills a stage with keys [key, key + kKeys); what lies past the end is zero.
  __device__ void load_stage(int stage, int key) {
    char* target = shared + stage * 2 * L::kTileBytes;
    constexpr int kPieces = L::kKeys * kDim * static_cast<int>(sizeof(KV)) / 16;
    constexpr int kPerRow = kPieces / L::kKeys;
#pragma unroll
    for (int i = 0; i < kPieces / kThreads; ++i) {
      const int index = i * kThreads + threadIdx.x;
      const int r = index / kPerRow;
      const int d = index % kPerRow * (16 / static_cast<int>(sizeof(KV)));
      const bool valid = key + r < tile.key_end && d < args.head_dim;
      const int64_t at = valid ? cached_row(key + r) + d : 0;
      if constexpr (sizeof(KV) == 1) {
        store_wide(target, r, d, args.keys + at, valid);
        store_wide(target + L::kTileBytes, r, d, args.values + at, valid);
      } else {
        const uint32_t address = shared_address(target) + swizzled<L::kChunks>(r, d / 8);
        copy_async_16(address, args.keys + at, valid);
        copy_async_16(address + L::kTileBytes, args.values + at, valid);
      }
    }
  }

  // Sixteen fp8 elements as T.
  __device__ void store_wide(char* target, int r, int d, const fp8* source, bool valid) {
    uint4 raw = make_uint4(0, 0, 0, 0);
    if (valid) raw = *reinterpret_cast<const uint4*>(source);
    const uint32_t quads[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const uint2 low = fp8x4_to_words<T>(quads[2 * j]);
      const uint2 high = fp8x4_to_words<T>(quads[2 * j + 1]);
      *reinterpret_cast<uint4*>(target + swizzled<L::kChunks>(r, d / 8 + j)) =
          make_uint4(low.x, low.y, high.x, high.y);
    }
  }

  __device__ void scores(uint32_t keys, float (&s)[kScores][4]) {
    const int row = lane % 8 + lane / 16 * 8;
#pragma unroll
    for (int n = 0; n < kScores; n += 2) {
#pragma unroll
      for (int i = 0; i < 4; ++i) s[n][i] = s[n + 1][i] = 0.0f;
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        uint32_t b[4];
        ldmatrix_x4(b, keys + swizzled<L::kChunks>(n * 8 + row, 2 * i + lane / 8 % 2));
        mma_16x8x16<T>(s[n], q[i], b[0], b[1]);
        mma_16x8x16<T>(s[n + 1], q[i], b[2], b[3]);
      }
    }
  }

  __device__ bool is_visible(int key, int at) const {
    return key <= at && (args.window <= 0 || key > at - args.window);
  }

  __device__ void mask(int key, float (&s)[kScores][4]) {
    // Rows ascend in position: when the first row sees the last key and the last row the first
    // one, nothing is masked.
    const int first = query_position(tile.row_begin + warp * 16);
    const int last = query_position(tile.row_begin + warp * 16 + 15);
    if (is_visible(key + L::kKeys - 1, first) && is_visible(key, last)) return;
#pragma unroll
    for (int n = 0; n < kScores; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = key + n * 8 + lane % 4 * 2 + i % 2;
        if (!is_visible(at, position[i / 2])) s[n][i] = kMaskedScore;
      }
    }
  }

  __device__ void softmax_step(float (&s)[kScores][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float maximum = m[half];
#pragma unroll
      for (int n = 0; n < kScores; ++n) {
        maximum = fmaxf(maximum, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
      }
      maximum = fmaxf(maximum, __shfl_xor_sync(kFullMask, maximum, 1));
      maximum = fmaxf(maximum, __shfl_xor_sync(kFullMask, maximum, 2));
      const float base = finite_maximum(maximum);
      const float shrink = exp2_fast(m[half] - base);
      m[half] = maximum;
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < kScores; ++n) {
        s[n][2 * half] = exp2_fast(s[n][2 * half] - base);
        s[n][2 * half + 1] = exp2_fast(s[n][2 * half + 1] - base);
        sum += s[n][2 * half] + s[n][2 * half + 1];
      }
      l[half] = l[half] * shrink + sum;
#pragma unroll
      for (int n = 0; n < kOuts; ++n) {
        o[n][2 * half] *= shrink;
        o[n][2 * half + 1] *= shrink;
      }
    }
  }

  __device__ void accumulate(uint32_t values, const float (&s)[kScores][4]) {
    const int row = lane % 8 + lane / 8 % 2 * 8;
#pragma unroll
    for (int k = 0; k < kScores / 2; ++k) {
      const uint32_t a[4] = {pack2<T>(s[2 * k][0], s[2 * k][1]), pack2<T>(s[2 * k][2], s[2 * k][3]),
                             pack2<T>(s[2 * k + 1][0], s[2 * k + 1][1]),
                             pack2<T>(s[2 * k + 1][2], s[2 * k + 1][3])};
#pragma unroll
      for (int n = 0; n < kOuts; n += 2) {
        uint32_t b[4];
        ldmatrix_x4_trans(b, values + swizzled<L::kChunks>(k * 16 + row, n + lane / 16));
        mma_16x8x16<T>(o[n], a, b[0], b[1]);
        mma_16x8x16<T>(o[n + 1], a, b[2], b[3]);
      }
    }
  }

  __device__ void run() {
    load_queries();
    m[0] = m[1] = kMaskedScore;
    l[0] = l[1] = 0.0f;
#pragma unroll
    for (int n = 0; n < kOuts; ++n) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0.0f;
    if (tile.key_begin < tile.key_end) load_stage(0, tile.key_begin);
    copy_async_commit();
    int stage = 0;
    for (int key = tile.key_begin; key < tile.key_end; key += L::kKeys) {
      copy_async_wait<0>();
      __syncthreads();
      if (key + L::kKeys < tile.key_end) load_stage(stage ^ 1, key + L::kKeys);
      copy_async_commit();
      const uint32_t keys = shared_address(shared) + stage * 2 * L::kTileBytes;
      float s[kScores][4];
      scores(keys, s);
#pragma unroll
      for (int n = 0; n < kScores; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) s[n][i] = transform_score(args, s[n][i]);
      }
      mask(key, s);
      softmax_step(s);
      accumulate(keys + L::kTileBytes, s);
      stage ^= 1;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      l[half] += __shfl_xor_sync(kFullMask, l[half], 1);
      l[half] += __shfl_xor_sync(kFullMask, l[half], 2);
    }
  }

  __device__ void write_out() const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = packed_row(half);
      if (!is_valid(row)) continue;
      const int head = blockIdx.x * args.group + row % args.group;
      const float norm = row_norm(args, head, make_float2(m[half], l[half]));
      T* out = args.out + offset(row, static_cast<int64_t>(args.num_q_heads) * args.head_dim);
#pragma unroll
      for (int n = 0; n < kOuts; ++n) {
        const int d = n * 8 + lane % 4 * 2;
        if (d >= args.head_dim) continue;
        *reinterpret_cast<uint32_t*>(out + d) =
            pack2<T>(o[n][2 * half] * norm, o[n][2 * half + 1] * norm);
      }
    }
  }

  // first_row: of this block among the partial rows.
  __device__ void write_partial(int64_t first_row) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = first_row + warp * 16 + half * 8 + lane / 4;
      if (lane % 4 == 0) args.partial_stats[row] = make_float2(m[half], l[half]);
      float* out = args.partial_out + row * args.head_dim;
#pragma unroll
      for (int n = 0; n < kOuts; ++n) {
        const int d = n * 8 + lane % 4 * 2;
        if (d >= args.head_dim) continue;
        *reinterpret_cast<float2*>(out + d) = make_float2(o[n][2 * half], o[n][2 * half + 1]);
      }
    }
  }
};

template <typename T, typename KV, int kDim>
__global__ void __launch_bounds__(kThreads)
    prefill_kernel(PagedAttentionArgs<T, KV> args, int num_splits) {
  extern __shared__ __align__(128) char shared[];
  allow_next_kernel();
  wait_for_previous_kernel();
  const Tile tile = find_tile<Layout<T, kDim>::kKeys>(args, num_splits);
  Block<T, KV, kDim> block{.args = args,
                           .tile = tile,
                           .shared = shared,
                           .lane = static_cast<int>(threadIdx.x) % kWarpSize,
                           .warp = static_cast<int>(threadIdx.x) / kWarpSize};
  block.run();
  if (num_splits == 1) {
    block.write_out();
  } else {
    const int64_t index = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
    block.write_partial((index * num_splits + blockIdx.z) * kPrefillRows);
  }
}

template <typename T, typename KV, int kDim>
void launch_prefill(const PagedAttentionArgs<T, KV>& args, const PrefillGrid& grid) {
  const auto tiles = static_cast<unsigned>(grid.num_tiles);
  const auto heads = static_cast<unsigned>(args.num_kv_heads);
  launch(prefill_kernel<T, KV, kDim>,
         {.grid = dim3(heads, tiles, grid.num_splits),
          .block = dim3(kThreads),
          .shared_bytes = Layout<T, kDim>::kSharedBytes},
         grid.stream, args, grid.num_splits);
  combine_splits(args, {grid.num_tiles, kPrefillRows, grid.num_splits}, grid.stream);
}

}  // namespace

template <typename T, typename KV>
void prefill_attention(const PagedAttentionArgs<T, KV>& args, const PrefillGrid& grid) {
  if (grid.num_tiles == 0) return;
  if (args.head_dim <= 64) {
    launch_prefill<T, KV, 64>(args, grid);
  } else if (args.head_dim <= 128) {
    launch_prefill<T, KV, 128>(args, grid);
  } else {
    launch_prefill<T, KV, 256>(args, grid);
  }
}

template void prefill_attention(const PagedAttentionArgs<bf16, bf16>&, const PrefillGrid&);
template void prefill_attention(const PagedAttentionArgs<bf16, fp8>&, const PrefillGrid&);
template void prefill_attention(const PagedAttentionArgs<fp16, fp16>&, const PrefillGrid&);
template void prefill_attention(const PagedAttentionArgs<fp16, fp8>&, const PrefillGrid&);

}  // namespace octavo::cuda
