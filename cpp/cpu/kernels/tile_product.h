// Products of bfloat16 tiles: up to two tiles of rows times two tiles of columns, the shape that
// loads four tiles for four products. Tiles 0-3 accumulate (rows 0 | rows 1) x (columns 0 |
// columns 1), 4-5 hold rows, 6-7 hold columns.
#pragma once

#include "cpu/kernels/tile_shape.h"
#include "cpu/kernels/vec_math.h"

namespace octavo::cpu {
namespace {

// A matrix in memory, cut into tiles. All in bytes.
struct TileMatrix {
  const std::byte* data = nullptr;
  int64_t stride = 0;     // between rows of a tile
  int64_t next_tile = 0;  // to the second tile of rows or columns
  int64_t next_step = 0;  // to the next 32 values of the depth
};

enum class TilePrefetch : uint8_t { kNone, kToL1, kToL2 };

// Rows [rows, 32 a step] times columns [16 pairs a step, 16, 2].
struct TileProduct {
  TileMatrix rows, columns;
  int64_t num_steps = 0;
  TilePrefetch prefetch = TilePrefetch::kNone;  // of the columns
  int64_t prefetch_bytes = 0;                   // how far ahead
};

// The accumulators' place in memory. All in bytes.
struct TileOutput {
  float* data = nullptr;
  int64_t stride = 0;
  int64_t next_rows = 0;
  int64_t next_columns = 0;

  float* at(int row_tile, int column_tile) const {
    return data + (row_tile * next_rows + column_tile * next_columns) / int64_t{sizeof(float)};
  }
};

// Every tile of rows has `tile_rows`.
template <typename Tiles>
inline void configure_product(int64_t tile_rows) {
  const TileShape few{tile_rows, kTileRowBytes}, full{kMaxTileRows, kTileRowBytes};
  Tiles::configure({few, few, few, few, few, few, full, full});
}

template <typename Tiles, int kRowTiles, int kColumnTiles>
inline void zero_tiles() {
  Tiles::template zero<0>();
  if constexpr (kColumnTiles == 2) Tiles::template zero<1>();
  if constexpr (kRowTiles == 2) Tiles::template zero<2>();
  if constexpr (kRowTiles == 2 && kColumnTiles == 2) Tiles::template zero<3>();
}

template <typename Tiles, int kRowTiles, int kColumnTiles>
inline void load_tiles(const TileOutput& out) {
  Tiles::template load<0>(out.at(0, 0), out.stride);
  if constexpr (kColumnTiles == 2) Tiles::template load<1>(out.at(0, 1), out.stride);
  if constexpr (kRowTiles == 2) Tiles::template load<2>(out.at(1, 0), out.stride);
  if constexpr (kRowTiles == 2 && kColumnTiles == 2) {
    Tiles::template load<3>(out.at(1, 1), out.stride);
  }
}

template <typename Tiles, int kRowTiles, int kColumnTiles>
inline void store_tiles(const TileOutput& out) {
  Tiles::template store<0>(out.at(0, 0), out.stride);
  if constexpr (kColumnTiles == 2) Tiles::template store<1>(out.at(0, 1), out.stride);
  if constexpr (kRowTiles == 2) Tiles::template store<2>(out.at(1, 0), out.stride);
  if constexpr (kRowTiles == 2 && kColumnTiles == 2) {
    Tiles::template store<3>(out.at(1, 1), out.stride);
  }
}

template <_mm_hint kHint>
inline void prefetch_lines(const std::byte* tile) {
#pragma GCC unroll 16
  for (int64_t i = 0; i < kTileBytes; i += kTileRowBytes) _mm_prefetch(tile + i, kHint);
}

inline void prefetch_tile(const std::byte* tile, TilePrefetch prefetch) {
  if (prefetch == TilePrefetch::kToL1) {
    prefetch_lines<_MM_HINT_T0>(tile);
  } else {
    prefetch_lines<_MM_HINT_T1>(tile);
  }
}

template <typename Tiles, int kRowTiles, int kColumnTiles>
inline void add_product(const TileProduct& p) {
  const std::byte *a = p.rows.data, *b = p.columns.data;
  for (int64_t step = 0; step < p.num_steps; ++step) {
    Tiles::template load<4>(a, p.rows.stride);
    Tiles::template load<6>(b, p.columns.stride);
    Tiles::template add_bfloat16<0, 4, 6>();
    if constexpr (kColumnTiles == 2) {
      Tiles::template load<7>(b + p.columns.next_tile, p.columns.stride);
      Tiles::template add_bfloat16<1, 4, 7>();
    }
    if constexpr (kRowTiles == 2) {
      Tiles::template load<5>(a + p.rows.next_tile, p.rows.stride);
      Tiles::template add_bfloat16<2, 5, 6>();
      if constexpr (kColumnTiles == 2) Tiles::template add_bfloat16<3, 5, 7>();
    }
    if (p.prefetch != TilePrefetch::kNone) {
      const std::byte* ahead = b + p.prefetch_bytes;
      prefetch_tile(ahead, p.prefetch);
      if constexpr (kColumnTiles == 2) prefetch_tile(ahead + p.columns.next_tile, p.prefetch);
    }
    a += p.rows.next_step;
    b += p.columns.next_step;
  }
}

}  // namespace
}  // namespace octavo::cpu
