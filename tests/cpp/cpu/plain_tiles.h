// The tile operations of kernels/tiles_amx.h in plain C++, number for number as the SDM defines
// them, so that the tile kernels run on any processor.
// Source: Intel SDM volume 2, TILELOADD, TILESTORED, TDPBF16PS.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "cpu/kernels/tile_shape.h"

namespace octavo::cpu {

class PlainTiles {
 public:
  static void configure(const TileShape (&shapes)[kNumTiles]) {
    for (int i = 0; i < kNumTiles; ++i) {
      if (shapes[i].rows < 1 || shapes[i].rows > kMaxTileRows || shapes[i].row_bytes < 4 ||
          shapes[i].row_bytes > kTileRowBytes || shapes[i].row_bytes % 4 != 0) {
        throw std::logic_error("no such tile");
      }
      tiles_[i] = {shapes[i], {}};
    }
    is_configured_ = true;
  }
  static void release() { is_configured_ = false; }

  template <int kTile>
  static void zero() {
    std::memset(tile(kTile).bytes, 0, sizeof(Tile::bytes));
  }
  template <int kTile>
  static void load(const void* rows, int64_t stride_bytes) {
    Tile& t = tile(kTile);
    std::memset(t.bytes, 0, sizeof(t.bytes));
    for (int64_t r = 0; r < t.shape.rows; ++r) {
      std::memcpy(t.bytes[r], static_cast<const std::byte*>(rows) + r * stride_bytes,
                  t.shape.row_bytes);
    }
  }
  template <int kTile>
  static void store(void* rows, int64_t stride_bytes) {
    const Tile& t = tile(kTile);
    for (int64_t r = 0; r < t.shape.rows; ++r) {
      std::memcpy(static_cast<std::byte*>(rows) + r * stride_bytes, t.bytes[r], t.shape.row_bytes);
    }
  }

  // The even and the odd elements of the pairs are two chains of rounded-once products from 0,
  // which are added to each other and then to the total; denormals are zero.
  template <int kAcc, int kA, int kB>
  static void add_bfloat16() {
    check_shapes(kAcc, kA, kB);
    const Wide a(tile(kA)), b(tile(kB));
    Tile& acc = tile(kAcc);
    const int64_t num_pairs = tile(kA).shape.row_bytes / 4;
    for (int64_t m = 0; m < acc.shape.rows; ++m) {
      for (int64_t n = 0; n < acc.shape.row_bytes / 4; ++n) {
        float chains[2] = {0.0f, 0.0f};
        for (int64_t k = 0; k < num_pairs; ++k) {
          for (int half = 0; half < 2; ++half) {
            chains[half] =
                flushed(std::fma(a.at[m][2 * k + half], b.at[k][2 * n + half], chains[half]));
          }
        }
        const float sum = flushed(chains[0] + chains[1]);
        put(acc.bytes[m] + 4 * n, flushed(flushed(get<float>(acc.bytes[m] + 4 * n)) + sum));
      }
    }
  }

 private:
  struct Tile {
    TileShape shape;
    std::byte bytes[kMaxTileRows][kTileRowBytes];
  };

  static Tile& tile(int index) {
    if (!is_configured_) throw std::logic_error("tiles are not configured");
    return tiles_[index];
  }
  static void check_shapes(int acc, int a, int b) {
    const TileShape &c = tile(acc).shape, &x = tile(a).shape, &y = tile(b).shape;
    if (c.rows != x.rows || c.row_bytes != y.row_bytes || x.row_bytes != 4 * y.rows) {
      throw std::logic_error("tiles of these shapes cannot be multiplied");
    }
  }
  template <typename T>
  static T get(const std::byte* p) {
    T value;
    std::memcpy(&value, p, sizeof(value));
    return value;
  }
  template <typename T>
  static void put(std::byte* p, T value) {
    std::memcpy(p, &value, sizeof(value));
  }
  static float flushed(float x) {
    return std::abs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
  }
  // A tile of bfloat16 as float32.
  struct Wide {
    explicit Wide(const Tile& tile) {
      for (int64_t r = 0; r < kMaxTileRows; ++r) {
        for (int64_t i = 0; i < kTileDepth; ++i) {
          const uint32_t bits = get<uint16_t>(tile.bytes[r] + 2 * i);
          at[r][i] = flushed(std::bit_cast<float>(bits << 16));
        }
      }
    }
    float at[kMaxTileRows][kTileDepth];
  };

  static inline thread_local Tile tiles_[kNumTiles];
  static inline thread_local bool is_configured_ = false;
};

}  // namespace octavo::cpu
