// Activations in bfloat16 times bfloat16 panels on tiles. Every row count uses them, because their
// order of accumulation (two chains of 16 products a step of 32, added to the total) is not that of
// vdpbf16ps and a row's result must not depend on how many rows come with it.
// Roof: 16 cycles for 16 x 16 x 32 products, 1,024 flop a cycle. A step of 2 x 2 tiles takes 64
// cycles of products and loads 4 KB, so the rows (36 KB at a depth of 576) should be in L1 and the
// panels in L2. One row still loads its panels at 1 KB in 16 cycles, several times what a core gets
// from memory: bound by memory up to about 16 rows, hence the prefetch in the first pass over the
// rows.
#pragma once

#include "cpu/kernels.h"
#include "cpu/kernels/tile_product.h"
#include "cpu/kernels/vec_math.h"

namespace octavo::cpu {
namespace {

// Panels that are multiplied with all rows before the next ones, so that they are read from L2 for
// each group of rows after the first.
constexpr int64_t kPanelGroupBytes = int64_t{1} << 20;
// Latency of DRAM at one core's rate, and past a page's end, where the hardware prefetcher stops.
constexpr int64_t kPanelPrefetchBytes = 4096;

template <typename Tiles>
struct TileGemmBFloat16 {
  const GemmArgs& args;
  const int64_t tile_rows;  // of every tile
  // Later passes find the panels in L2, where more prefetches only take the place of loads. The
  // first of several leaves L1 to the rows; a single one is bound by memory.
  const TilePrefetch first_pass =
      args.num_rows > 2 * kMaxTileRows ? TilePrefetch::kToL2 : TilePrefetch::kToL1;

  // The second tile of rows ends with the last row: rows that both cover are computed twice and are
  // the same, and no other shape has to be configured.
  // Whole tiles without a bias are stored where they belong: a buffer in between covers a whole
  // page, and whatever is loaded next then waits for stores to the same place in another page.
  template <int kRowTiles, int kPanels>
  void multiply(int64_t row, int64_t rows, int64_t col) const {
    TileProduct product;
    product.rows = {args.x + row * args.x_stride_bytes, args.x_stride_bytes,
                    (rows - tile_rows) * args.x_stride_bytes, kTileRowBytes};
    product.columns = {args.panels + col / kPanelRows * args.panel_bytes, kTileRowBytes,
                       args.panel_bytes, kTileBytes};
    product.num_steps = (args.depth + kTileDepth - 1) / kTileDepth;
    product.prefetch = row == 0 ? first_pass : TilePrefetch::kNone;
    product.prefetch_bytes = kPanelPrefetchBytes;
    zero_tiles<Tiles, kRowTiles, kPanels>();
    add_product<Tiles, kRowTiles, kPanels>(product);
    const int64_t out_bytes = args.out_stride * int64_t{sizeof(float)};
    if (args.bias == nullptr && col + kPanels * kPanelRows <= args.num_cols) {
      store_tiles<Tiles, kRowTiles, kPanels>({args.out + row * args.out_stride + col, out_bytes,
                                              (rows - tile_rows) * out_bytes, kTileRowBytes});
      return;
    }
    alignas(64) float tiles[kRowTiles * kPanels * kMaxTileRows * kPanelRows];
    store_tiles<Tiles, kRowTiles, kPanels>(
        {tiles, kTileRowBytes, kPanels * kTileBytes, kTileBytes});
    for (int r = 0; r < kRowTiles; ++r) {
      const int64_t first = r == 0 ? row : row + rows - tile_rows;
      for (int p = 0; p < kPanels; ++p) {
        write(tiles + (r * kPanels + p) * kMaxTileRows * kPanelRows, first, col + p * kPanelRows);
      }
    }
  }

  void write(const float* tile, int64_t row, int64_t col) const {
    const int64_t width = smaller(kPanelRows, args.num_cols - col);
    const Vec bias = args.bias == nullptr ? zero() : load_first(args.bias + col, width);
    for (int64_t r = 0; r < tile_rows; ++r) {
      const Vec y = load(tile + r * kPanelRows);
      store_first(args.out + (row + r) * args.out_stride + col,
                  args.bias == nullptr ? y : add(y, bias), width);
    }
  }

  template <int kPanels>
  void multiply_rows(int64_t row, int64_t rows, int64_t col) const {
    if (rows > tile_rows) {
      multiply<2, kPanels>(row, rows, col);
    } else {
      multiply<1, kPanels>(args.num_rows - row < tile_rows ? args.num_rows - tile_rows : row,
                           tile_rows, col);
    }
  }

  void run() const {
    const int64_t pairs = larger(1, kPanelGroupBytes / (2 * args.panel_bytes));
    const int64_t group = 2 * kPanelRows * pairs;
    configure_product<Tiles>(tile_rows);
    for (int64_t begin = 0; begin < args.num_cols; begin += group) {
      const int64_t end = smaller(args.num_cols, begin + group);
      for (int64_t row = 0; row < args.num_rows; row += 2 * kMaxTileRows) {
        const int64_t rows = smaller(2 * kMaxTileRows, args.num_rows - row);
        for (int64_t col = begin; col < end; col += 2 * kPanelRows) {
          if (col + kPanelRows < end) {
            multiply_rows<2>(row, rows, col);
          } else {
            multiply_rows<1>(row, rows, col);
          }
        }
      }
    }
    Tiles::release();
  }
};

template <typename Tiles>
void tile_gemm_bfloat16(const GemmArgs& args) {
  TileGemmBFloat16<Tiles>{args, smaller(kMaxTileRows, args.num_rows)}.run();
}

}  // namespace
}  // namespace octavo::cpu
