// How prefill_attention_sm90.cu places its tiles in shared memory, finds its work and has its
// copying warps feed the rings. Included there only.
#pragma once

#include "cuda/common/barrier.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/prefill_attention_sm90.h"

namespace octavo::cuda {
namespace {

constexpr int kGroupThreads = 128;  // of a warpgroup
constexpr int kConsumers = 2;
constexpr int kConsumerWarps = kConsumers * kGroupThreads / kWarpSize;
constexpr int kThreads = kGroupThreads * (1 + kConsumers);
constexpr int kGroupRows = 64;
constexpr int kKeys = 128;  // of a stage
constexpr int kStages = 2;
constexpr int kSpanBytes = 128;  // of the swizzle: 64 elements
constexpr int kAtomBytes = 8 * kSpanBytes;

template <int kDim>
struct Layout {
  static constexpr int kSpans = kDim / 64;
  static constexpr int kQueryBytes = kSpans * kGroupRows * kSpanBytes;  // of a warpgroup
  static constexpr int kTileBytes = kSpans * kKeys * kSpanBytes;
  static constexpr int kKeysAt = kConsumers * kQueryBytes;
  static constexpr int kValuesAt = kKeysAt + kStages * kTileBytes;
  static constexpr int kBarriersAt = kValuesAt + kStages * kTileBytes;
  static constexpr int kSharedBytes = kBarriersAt + 128 + kAtomBytes;  // alignment included
};

// Barriers in shared memory: filled by the copy engine, emptied by the consumers.
struct Barriers {
  uint32_t base;
  __device__ uint32_t keys_full(int stage) const { return base + stage * 8; }
  __device__ uint32_t keys_empty(int stage) const { return base + (kStages + stage) * 8; }
  __device__ uint32_t values_full(int stage) const { return base + (2 * kStages + stage) * 8; }
  __device__ uint32_t values_empty(int stage) const { return base + (3 * kStages + stage) * 8; }
  __device__ uint32_t tail() const { return base + 4 * kStages * 8; }

  __device__ void init() const {
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(keys_full(stage), 1);
      barrier_init(values_full(stage), 1);
      barrier_init(keys_empty(stage), kConsumerWarps);
      barrier_init(values_empty(stage), kConsumerWarps);
    }
    barrier_init(tail(), 1);
    barrier_init_fence();
  }
};

struct Tile {
  int seq;
  int row_begin;  // packed
  int num_queries;
  int seq_len;
  int kv_head;
  int64_t first_token;
  int first_key_tile;
  int num_key_tiles;
};

template <typename Args>
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
  const int first_query = tile.row_begin / args.group;
  const int last_query =
      min((tile.row_begin + kPrefillRowsSm90 - 1) / args.group, tile.num_queries - 1);
  const int visible = args.window > 0 ? max(0, first_position + first_query + 1 - args.window) : 0;
  const int first_key_tile = visible / kKeys;
  const int key_tiles = (first_position + last_query + kKeys) / kKeys - first_key_tile;
  const int per_split = (key_tiles + num_splits - 1) / num_splits;
  const int skipped = min(key_tiles, per_split * static_cast<int>(blockIdx.z));
  tile.first_key_tile = first_key_tile + skipped;
  tile.num_key_tiles = min(per_split, key_tiles - skipped);
  return tile;
}

// One warp each: copy key tiles, and value tiles, into their rings. Each lane owns a box of the
// tile, 64 columns of the keys of one cache block, and looks its block up one tile ahead.
template <typename T, int kDim>
struct Producer {
  using L = Layout<kDim>;

  const PagedAttentionArgs<T, T>& args;
  const Tile& tile;
  const CUtensorMap* map;
  Barriers barriers;
  uint32_t shared;
  int first_row;  // of the layer's keys in the tensor map
  int rows_per_half;
  int lane;

  __device__ int box_rows() const { return min(args.block_size, kKeys); }
  __device__ int num_boxes(int key) const {
    return (min(kKeys, tile.seq_len - key) + box_rows() - 1) / box_rows();
  }
  __device__ bool owns_box(int key) const { return lane / L::kSpans < num_boxes(key); }

  // Row of the lane's box of keys in the tensor map.
  __device__ int find_row(int key) const {
    const int at = key + lane / L::kSpans * box_rows();
    if (at >= tile.seq_len) return 0;
    const int index = at / args.block_size;
    const int block = args.block_tables[tile.seq * args.block_table_stride + index];
    return first_row + (block * args.num_kv_heads + tile.kv_head) * args.block_size +
           (at - index * args.block_size);
  }

  __device__ void copy(uint32_t target, uint32_t barrier, int key, int row) const {
    if (lane == 0) {
      barrier_expect(barrier, num_boxes(key) * box_rows() * L::kSpans * kSpanBytes);
    }
    __syncwarp();
    if (!owns_box(key)) return;
    const int span = lane % L::kSpans;
    const int offset = (span * kKeys + lane / L::kSpans * box_rows()) * kSpanBytes;
    copy_box(target + offset, map, barrier, span * 64, row);
  }

  // The tile with the sequence's last token: what its blocks hold beyond must not reach the
  // product as a NaN, so it is cleared before the consumers may look.
  __device__ void copy_last_values(uint32_t target, uint32_t full, int key, int row) const {
    copy(target, barriers.tail(), key, row);
    barrier_wait(barriers.tail(), 0);
    const int first = tile.seq_len - key;
    constexpr int kPieces = kSpanBytes / 16;
    const int count = (kKeys - first) * kPieces;
    for (int span = 0; span < L::kSpans; ++span) {
      for (int i = lane; i < count; i += kWarpSize) {
        const uint32_t at = target + (span * kKeys + first) * kSpanBytes + i * 16;
        asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(at), "r"(0) : "memory");
      }
    }
    fence_shared_for_async();
    __syncwarp();
    if (lane == 0) barrier_arrive(full);
  }

  // Calls f(stage, key, row) for each tile, once its stage is free.
  template <typename F>
  __device__ void for_each_tile(uint32_t first_empty, F&& f) const {
    int key = tile.first_key_tile * kKeys;
    int next_row = find_row(key);
    for (int i = 0; i < tile.num_key_tiles; ++i, key += kKeys) {
      const int stage = i % kStages;
      const int row = next_row;
      next_row = find_row(key + kKeys);
      barrier_wait(first_empty + stage * 8, (i / kStages + 1) % 2);
      f(stage, key, row);
    }
  }

  __device__ void copy_keys() const {
    for_each_tile(barriers.keys_empty(0), [&](int stage, int key, int row) {
      copy(shared + L::kKeysAt + stage * L::kTileBytes, barriers.keys_full(stage), key, row);
    });
  }

  __device__ void copy_values() const {
    for_each_tile(barriers.values_empty(0), [&](int stage, int key, int row) {
      const uint32_t values = shared + L::kValuesAt + stage * L::kTileBytes;
      if (key + kKeys > tile.seq_len) {
        copy_last_values(values, barriers.values_full(stage), key, row + rows_per_half);
      } else {
        copy(values, barriers.values_full(stage), key, row + rows_per_half);
      }
    });
  }
};

}  // namespace
}  // namespace octavo::cuda
