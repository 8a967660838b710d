// x W^T over packed panels. A tile of kRows x kVecs accumulators stays in registers over the whole
// depth; the panels of a tile are read once for each group of rows, from L2 after the first.
// Bound: memory for few rows, fused multiply-add (or bf16 dot product) issue for many.
#pragma once

#include "cpu/kernels.h"
#include "cpu/kernels/vec_math.h"

namespace octavo::cpu {
namespace {

// Products that are summed before they join the total. One running sum over the whole depth loses
// half a digit more than this, and more than the libraries that results are compared with.
constexpr int64_t kSumDepth = 128;

template <int kRows, int kVecs>
inline void fill_zero(Vec (&acc)[kRows][kVecs]) {
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) acc[r][v] = zero();
  }
}

// acc for activations in float32 against elements that widen exactly to float32.
template <typename T>
struct WideProduct {
  static constexpr int kMaxRows = kTileRows;
  static constexpr int kMaxVecs = kTileVecs;

  template <int kRows, int kVecs>
  static void run(const GemmArgs& args, const std::byte* x, const std::byte* panel,
                  Vec (&acc)[kRows][kVecs]) {
    const int64_t vec_stride = args.panel_bytes / static_cast<int64_t>(sizeof(T));
    const T* b = reinterpret_cast<const T*>(panel);
    for (int64_t k = 0; k < args.depth; k += kSumDepth) {
      Vec part[kRows][kVecs];
      fill_zero(part);
      multiply_add(reinterpret_cast<const float*>(x) + k, args.x_stride_bytes / 4,
                   b + k * kPanelRows, kPanelRows, vec_stride, smaller(kSumDepth, args.depth - k),
                   part);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) acc[r][v] = add(acc[r][v], part[r][v]);
      }
    }
  }
};

template <typename Product, int kRows, int kVecs>
void gemm_tile(const GemmArgs& args, int64_t row, int64_t col) {
  Vec acc[kRows][kVecs];
  fill_zero(acc);
  Product::run(args, args.x + row * args.x_stride_bytes,
               args.panels + col / kPanelRows * args.panel_bytes, acc);
#pragma GCC unroll 8
  for (int v = 0; v < kVecs; ++v) {
    const int64_t begin = col + v * kPanelRows;
    const int64_t width = smaller(kPanelRows, args.num_cols - begin);
    const Vec bias = args.bias == nullptr ? zero() : load_first(args.bias + begin, width);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec y = args.bias == nullptr ? acc[r][v] : add(acc[r][v], bias);
      store_first(args.out + (row + r) * args.out_stride + begin, y, width);
    }
  }
}

// Calls the tile for `rows` rows, a number only known at run time, in [1, kRows].
template <typename Product, int kVecs, int kRows = Product::kMaxRows>
void gemm_rows(const GemmArgs& args, int64_t row, int64_t rows, int64_t col) {
  if (rows == kRows) {
    gemm_tile<Product, kRows, kVecs>(args, row, col);
  } else if constexpr (kRows > 1) {
    gemm_rows<Product, kVecs, kRows - 1>(args, row, rows, col);
  }
}

// All rows against kVecs panels, in groups of rows as even as possible.
template <typename Product, int kVecs>
void gemm_panels(const GemmArgs& args, int64_t col) {
  const int64_t num_groups = (args.num_rows + Product::kMaxRows - 1) / Product::kMaxRows;
  int64_t row = 0;
  for (int64_t g = 0; g < num_groups; ++g) {
    const int64_t rows = (args.num_rows - row + num_groups - g - 1) / (num_groups - g);
    gemm_rows<Product, kVecs>(args, row, rows, col);
    row += rows;
  }
}

template <typename Product>
void gemm(const GemmArgs& args) {
  constexpr int64_t kTileCols = Product::kMaxVecs * kPanelRows;
  int64_t col = 0;
  for (; col + kTileCols <= args.num_cols; col += kTileCols) {
    gemm_panels<Product, Product::kMaxVecs>(args, col);
  }
  for (; col < args.num_cols; col += kPanelRows) gemm_panels<Product, 1>(args, col);
}

}  // namespace
}  // namespace octavo::cpu
