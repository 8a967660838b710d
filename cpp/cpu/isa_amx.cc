// GEMM on the AMX tile registers: two tiles of up to 16 rows times two panels of 16 columns. Every
// row count uses the tiles, because their order of accumulation (32 products at a time) is not that
// of vdpbf16ps and a row's result must not depend on how many rows come with it.
// Layout: tiles 0-3 accumulate (rows 0 | rows 1) x (panel 0 | panel 1), 4-5 hold activations
// [rows, 32] bfloat16, 6-7 hold weights [16 pairs, 16 columns, 2].
// Source: Intel SDM volume 2, TDPBF16PS.
#include "cpu/isa_tables.h"
#include "cpu/kernels/vec_math.h"

namespace octavo::cpu {
namespace {

constexpr int64_t kTileSize = 16;   // rows of an activation tile, columns of a panel
constexpr int64_t kTileDepth = 32;  // bfloat16 values of a tile row
constexpr int64_t kTileBytes = 1024;
constexpr int kRowBytes = 64;

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

void configure(int64_t rows0, int64_t rows1) {
  TileConfig config;
  const int64_t rows[8] = {rows0, rows0, rows1, rows1, rows0, rows1, kTileSize, kTileSize};
  for (int tile = 0; tile < 8; ++tile) {
    config.rows[tile] = static_cast<uint8_t>(rows[tile]);
    config.row_bytes[tile] = rows[tile] == 0 ? 0 : kRowBytes;
  }
  _tile_loadconfig(&config);
}

struct Block {
  int64_t row, rows0, rows1;  // rows1 = 0: one activation tile
  int64_t col;
  bool two_panels;
};

void store_tile(const GemmArgs& args, int64_t row, int64_t rows, int64_t col, const float* tile) {
  const int64_t width = smaller(kPanelRows, args.num_cols - col);
  const Vec bias = args.bias == nullptr ? zero() : load_first(args.bias + col, width);
  for (int64_t r = 0; r < rows; ++r) {
    const Vec y = load(tile + r * kTileSize);
    store_first(args.out + (row + r) * args.out_stride + col,
                args.bias == nullptr ? y : add(y, bias), width);
  }
}

void accumulate(const GemmArgs& args, const Block& b) {
  const std::byte* x0 = args.x + b.row * args.x_stride_bytes;
  const std::byte* x1 = x0 + kTileSize * args.x_stride_bytes;
  const int x_bytes = static_cast<int>(args.x_stride_bytes);
  const std::byte* panel0 = args.panels + b.col / kPanelRows * args.panel_bytes;
  const std::byte* panel1 = panel0 + args.panel_bytes;
  _tile_zero(0);
  if (b.two_panels) _tile_zero(1);
  if (b.rows1 > 0) _tile_zero(2);
  if (b.rows1 > 0 && b.two_panels) _tile_zero(3);
  for (int64_t k = 0; k < args.depth; k += kTileDepth) {
    _tile_loadd(6, panel0 + k / kTileDepth * kTileBytes, kRowBytes);
    _tile_loadd(4, x0 + 2 * k, x_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if (b.rows1 > 0) {
      _tile_loadd(5, x1 + 2 * k, x_bytes);
      _tile_dpbf16ps(2, 5, 6);
    }
    if (b.two_panels) {
      _tile_loadd(7, panel1 + k / kTileDepth * kTileBytes, kRowBytes);
      _tile_dpbf16ps(1, 4, 7);
      if (b.rows1 > 0) _tile_dpbf16ps(3, 5, 7);
    }
  }
}

void gemm_block(const GemmArgs& args, const Block& b) {
  alignas(64) float tile[kTileSize * kTileSize];
  accumulate(args, b);
  _tile_stored(0, tile, kRowBytes);
  store_tile(args, b.row, b.rows0, b.col, tile);
  if (b.two_panels) {
    _tile_stored(1, tile, kRowBytes);
    store_tile(args, b.row, b.rows0, b.col + kPanelRows, tile);
  }
  if (b.rows1 > 0) {
    _tile_stored(2, tile, kRowBytes);
    store_tile(args, b.row + kTileSize, b.rows1, b.col, tile);
  }
  if (b.rows1 > 0 && b.two_panels) {
    _tile_stored(3, tile, kRowBytes);
    store_tile(args, b.row + kTileSize, b.rows1, b.col + kPanelRows, tile);
  }
}

// The tile shapes change only between the full groups of 32 rows and the remainder, so the rows
// are the outer loop: the panels stay in L2.
void gemm_rows(const GemmArgs& args, int64_t row, int64_t rows) {
  for (int64_t col = 0; col < args.num_cols; col += 2 * kPanelRows) {
    gemm_block(args, {row, smaller(rows, kTileSize), larger(0, rows - kTileSize), col,
                      col + kPanelRows < args.num_cols});
  }
}

void gemm_bfloat16(const GemmArgs& args) {
  const int64_t full = args.num_rows / (2 * kTileSize) * (2 * kTileSize);
  if (full > 0) configure(kTileSize, kTileSize);
  for (int64_t row = 0; row < full; row += 2 * kTileSize) gemm_rows(args, row, 2 * kTileSize);
  const int64_t rest = args.num_rows - full;
  if (rest > 0) {
    configure(smaller(rest, kTileSize), larger(0, rest - kTileSize));
    gemm_rows(args, full, rest);
  }
  _tile_release();
}

}  // namespace

const GemmKernel kAmxGemmBFloat16 = gemm_bfloat16;

}  // namespace octavo::cpu
