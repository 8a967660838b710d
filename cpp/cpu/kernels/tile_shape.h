// What the tile kernels and every set of tile operations agree on.
#pragma once

#include <cstdint>

namespace octavo::cpu {

inline constexpr int kNumTiles = 8;
inline constexpr int64_t kTileRowBytes = 64;
inline constexpr int64_t kMaxTileRows = 16;
inline constexpr int64_t kTileDepth = 32;  // bfloat16 values of a row
inline constexpr int64_t kTileBytes = kTileRowBytes * kMaxTileRows;

struct TileShape {
  int64_t rows = 0;
  int64_t row_bytes = 0;
};

}  // namespace octavo::cpu
