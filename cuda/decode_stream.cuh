// The work list of decode_attention.cu and the rings of shared memory that its warps stream keys
// and values through. Included there only.
#pragma once

#include "cuda/common/launch.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/decode_attention.h"

namespace octavo::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kStages = 3;
constexpr int kTileKeys = 16;

template <typename T, typename KV, int kDim>
struct Layout {
  static constexpr int kChunks = kDim * sizeof(KV) / 16;  // 16-byte pieces of a cached row
  static constexpr int kTileBytes = kTileKeys * kDim * sizeof(KV);
  static constexpr int kStageBytes = 2 * kTileBytes;  // keys, then values
  static constexpr int kWarpBytes = kStages * kStageBytes;
  static constexpr int kRowsAt = kWarps * kWarpBytes;  // the warps' results, to be merged
  static constexpr int kStatsAt = kRowsAt + kWarps * kDecodeHeadTile * kDim * 4;
  static constexpr int kSharedBytes = kStatsAt + kWarps * kDecodeHeadTile * 8;
};

// Byte offset of 16-byte piece `chunk` of row `row`; rows spread over the banks.
template <int kChunks>
__device__ uint32_t swizzled(int row, int chunk) {
  constexpr int kMask = kChunks >= 8 ? 7 : kChunks - 1;
  const int shift = kChunks >= 8 ? 0 : 1;  // two rows of 64 bytes span the banks
  return (row * kChunks + (chunk ^ (row >> shift & kMask))) * 16;
}

// The part of a unit that one block works on.
struct Item {
  DecodeUnit unit;
  int kv_head;
  int first_head;  // query head
  int num_heads;   // valid ones of the tile
  int counter;     // index into args.counters
  int begin;       // keys [begin, end), begin a multiple of 16
  int end;
  int window_begin;

  // Tiles of one of the block's warps.
  __device__ int num_tiles(int warp) const {
    const int tiles = (end - begin + kTileKeys - 1) / kTileKeys;
    return max(0, (tiles - warp + kWarps - 1) / kWarps);
  }
  __device__ int first_key(int tile, int warp) const {
    return begin + (tile * kWarps + warp) * kTileKeys;
  }
};

// The items of this launch.
template <typename Args>
struct Items {
  const Args& args;
  int chunk_size;
  int per_unit;
  int count;

  __device__ explicit Items(const Args& a) : args(a) {
    const AttentionPlanHeader header = *args.plan.header;
    chunk_size = header.chunk_size;
    per_unit = args.num_kv_heads * ((args.group + kDecodeHeadTile - 1) / kDecodeHeadTile);
    count = header.num_units * per_unit;
  }

  __device__ DecodeUnit unit(int index) const {
    return index < count ? args.plan.units[index / per_unit] : DecodeUnit{};
  }

  __device__ Item make(int index, const DecodeUnit& unit) const {
    const int head_tiles = per_unit / args.num_kv_heads;
    const int rest = index % per_unit;
    Item item;
    item.unit = unit;
    item.kv_head = rest / head_tiles;
    const int head_begin = rest % head_tiles * kDecodeHeadTile;
    item.first_head = item.kv_head * args.group + head_begin;
    item.num_heads = min(kDecodeHeadTile, args.group - head_begin);
    item.counter = unit.seq * per_unit + rest;
    item.window_begin = args.window > 0 ? max(0, unit.seq_len - args.window) : 0;
    item.begin = max(unit.chunk * chunk_size, item.window_begin / kTileKeys * kTileKeys);
    item.end = min((unit.chunk + 1) * chunk_size, unit.seq_len);
    return item;
  }
};

// Fills the ring of one warp with the tiles of one item after the other.
template <typename T, typename KV, int kDim>
struct Loader {
  using L = Layout<T, KV, kDim>;
  using Args = PagedAttentionArgs<T, KV>;

  const Items<Args>& items;
  uint32_t shared;  // this warp's
  int lane;
  int warp;
  int index;  // of the item
  DecodeUnit upcoming;
  int tile = 0;
  int num_tiles = 0;
  int kv_head = 0;
  int begin = 0;
  int end = 0;
  int newest = 0;  // key of the item's sequence
  const int32_t* table = nullptr;
  int32_t blocks = 0;  // lane i: the block of this warp's tile i of the current 32
  int slot = 0;

  __device__ void start() {
    index = static_cast<int>(blockIdx.x) - static_cast<int>(gridDim.x);
    upcoming = items.unit(blockIdx.x);
  }

  __device__ int first_key(int t) const { return begin + (t * kWarps + warp) * kTileKeys; }

  __device__ void look_up_blocks() {
    const int key = first_key(tile + lane);
    blocks = key < end ? table[key / items.args.block_size] : 0;
  }

  // Moves on to the next item that has a tile for this warp; false when there is none.
  __device__ bool find_tile() {
    while (tile == num_tiles) {
      index += gridDim.x;
      if (index >= items.count) return false;
      const Item item = items.make(index, upcoming);
      upcoming = items.unit(index + gridDim.x);
      tile = 0;
      num_tiles = item.num_tiles(warp);
      kv_head = item.kv_head;
      begin = item.begin;
      end = item.end;
      newest = item.unit.seq_len - 1;
      table = items.args.block_tables + item.unit.seq * items.args.block_table_stride;
      if (num_tiles > 0) look_up_blocks();
    }
    return true;
  }

  // Whether the next tile was written by an earlier step.
  __device__ bool is_next_old() { return find_tile() && first_key(tile) + kTileKeys <= newest; }

  // Starts the copy of the next tile into the next slot, and closes its group.
  __device__ void issue() {
    if (find_tile()) {
      copy_tile();
      ++tile;
      if (tile % kWarpSize == 0 && tile < num_tiles) look_up_blocks();
    }
    slot = slot + 1 == kStages ? 0 : slot + 1;
    copy_async_commit();
  }

  __device__ void copy_tile() const {
    const Args& args = items.args;
    const int key = first_key(tile);
    const int64_t block = __shfl_sync(kFullMask, blocks, tile % kWarpSize);
    const int64_t row =
        (block * args.num_kv_heads + kv_head) * args.block_size + key % args.block_size;
    const uint32_t stage = shared + slot * L::kStageBytes;
    const int valid_keys = end - key;
#pragma unroll
    for (int i = 0; i < L::kChunks * kTileKeys / kWarpSize; ++i) {
      const int piece = i * kWarpSize + lane;
      const int r = piece / L::kChunks;
      const int c = piece % L::kChunks;
      const int d = c * 16 / static_cast<int>(sizeof(KV));
      const bool valid = r < valid_keys && d < args.head_dim;
      const int64_t at = valid ? (row + r) * args.head_dim + d : 0;
      const uint32_t target = swizzled<L::kChunks>(r, c);
      copy_async_16(stage + target, args.keys + at, valid);
      copy_async_16(stage + L::kTileBytes + target, args.values + at, valid);
    }
  }
};

}  // namespace
}  // namespace octavo::cuda
