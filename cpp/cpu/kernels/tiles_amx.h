// The AMX tile registers behind the few operations that the tile kernels need. The kernels take
// this set as a template parameter, so that the tests can compile them against plain C++.
// A tile is named by its number, which the instructions carry; loads and stores are barriers to the
// compiler, because tiles are filled from buffers that vector code has just written.
// Source: Intel SDM volume 2, LDTILECFG, TILELOADD, TDPBF16PS.
#pragma once

#include "cpu/kernels.h"
#include "cpu/kernels/tile_shape.h"
#include "cpu/kernels/vec_math.h"

namespace octavo::cpu {
namespace {

struct AmxTiles {
  // Zeroes the tiles; `shapes` holds until the next configure() or release().
  static void configure(const TileShape (&shapes)[kNumTiles]) {
    struct alignas(64) {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int tile = 0; tile < kNumTiles; ++tile) {
      config.rows[tile] = static_cast<uint8_t>(shapes[tile].rows);
      config.row_bytes[tile] = static_cast<uint16_t>(shapes[tile].row_bytes);
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
  }
  static void release() { __asm__ volatile("tilerelease"); }

  template <int kTile>
  static void zero() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
  }
  template <int kTile>
  static void load(const void* rows, int64_t stride_bytes) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2"
                     :
                     : "r"(rows), "r"(stride_bytes), "i"(kTile)
                     : "memory");
  }
  template <int kTile>
  static void store(void* rows, int64_t stride_bytes) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)"
                     :
                     : "r"(rows), "r"(stride_bytes), "i"(kTile)
                     : "memory");
  }
  // acc [rows, 16] float32 += a [rows, pairs] x b [pairs, 16] of bfloat16 pairs.
  template <int kAcc, int kA, int kB>
  static void add_bfloat16() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kAcc), "i"(kA), "i"(kB));
  }
};

}  // namespace
}  // namespace octavo::cpu
