// Quantised weights times int8 activations on tiles: the exact block sums of quant_gemm_avx512.h
// and the same float32 roundings in the same order, so the results are the same bits and the number
// of rows may choose between the two.
//
// A scale for every 32 features means a tile of sums for every 32 features: TDPBSSD on half-filled
// rows (K = 32), then convert, scale and add in vector registers. For 16 rows x 16 columns x 32:
//   tiles    16 cycles (K = 64 takes the same), 12 to load rows and columns, 16 to store the sums
//   vectors  16 x (convert, scale * scale, fma) on two ports = 24 cycles; 32 with minima
// The two overlap, so the roof is 8,192 products in 24 (32) cycles, a third (a quarter) of what the
// tiles could do with one scale a row, and four (three) times that of vpdpbusd. That is computed
// and far from reached: of the 10,374 Gop/s of TDPBSSD on two cores `bench_gemm` gives 280 to 430
// from 128 rows on, vpdpbusd 280 to 370 of 1,202 (bench/results/2026-11-29-cpu.md). What is done
// for it:
// - A step is kStepBlocks blocks of two panels, unpacked to signed bytes in L1 once for all rows.
// - An accumulator is loaded and stored once a step, so tiles of 16 rows x 2 panels need no
//   registers for them and the scales of a step stay in registers while the rows go by.
// - The tiles of one group of rows are started before the vectors of the group before it.
#pragma once

#include "cpu/kernels.h"
#include "cpu/kernels/quant_row.h"
#include "cpu/kernels/tile_shape.h"
#include "cpu/kernels/vec_math.h"

namespace octavo::cpu {
namespace {

constexpr int kStepBlocks = 4;
// Rows whose accumulators stay in L1 while a pair of panels goes by.
constexpr int64_t kRowGroup = 128;
// As in quant_gemm_avx512.h.
constexpr int64_t kRecordPrefetchBytes = 4096;

template <typename Tiles, PanelFormat kFormat, int kPanels>
class TileGemmQuantized {
 public:
  // Rows [row, row + num_rows) against the panels from column `col` on.
  // Requires: the tiles are configured for tile_rows rows; num_rows <= kRowGroup, and at least
  // tile_rows.
  TileGemmQuantized(const GemmArgs& args, int64_t tile_rows, int64_t row, int64_t num_rows,
                    int64_t col)
      : args_(args),
        x_(args.x + row * args.x_stride_bytes),
        panels_(args.panels + col / kPanelRows * args.panel_bytes),
        tile_rows_(tile_rows),
        num_rows_(num_rows) {}

  void run(float* out, const float* bias, int64_t num_cols) {
    __builtin_memset(acc_, 0, static_cast<size_t>(num_rows_) * sizeof(acc_[0]));
    const int64_t num_blocks = args_.depth / kBlockDepth;
    for (int64_t block = 0; block < num_blocks; block += kStepBlocks) {
      const int count = static_cast<int>(smaller(kStepBlocks, num_blocks - block));
      Step& step = steps_[block / kStepBlocks % 2];
      unpack(block, count, step);
      for (int64_t row = 0; row < num_rows_; row += tile_rows_) {
        const Part next{block, count, row, &step, &sums_[num_parts_++ % 2]};
        multiply(next);
        if (last_.step != nullptr) add_sums(last_);
        last_ = next;
      }
    }
    add_sums(last_);
    write(out, bias, num_cols);
  }

 private:
  static constexpr QuantLayout kLayout = quant_layout(kFormat);
  static constexpr int kScales = static_cast<int>(kLayout.num_scales);
  static constexpr int64_t kSumFeatures = kBlockDepth / kScales;

  struct alignas(64) Step {
    int8_t quants[kStepBlocks][kPanels][kBlockWeights];
    float scales[kStepBlocks][kPanels][kScales][kPanelRows];
    float minima[kStepBlocks][kPanels][kPanelRows];
  };
  struct alignas(64) Sums {
    int32_t at[kStepBlocks][kPanels][kScales][kMaxTileRows][kPanelRows];
  };
  // The blocks of a step against one tile of rows. The last tile ends with the last row; rows that
  // the tile before it has are left out when the sums are added.
  struct Part {
    int64_t block = 0;
    int num_blocks = 0;
    int64_t row = 0;
    const Step* step = nullptr;
    Sums* sums = nullptr;
  };

  int64_t tile_begin(const Part& part) const { return smaller(part.row, num_rows_ - tile_rows_); }

  void unpack(int64_t block, int count, Step& step) const {
    for (int i = 0; i < count; ++i) {
      for (int p = 0; p < kPanels; ++p) {
        const std::byte* record =
            panels_ + p * args_.panel_bytes + (block + i) * kLayout.record_bytes();
        for (int64_t at = 0; at < kLayout.record_bytes(); at += kTileRowBytes) {
          _mm_prefetch(record + at + kRecordPrefetchBytes, _MM_HINT_T0);
        }
        Tiles::template unpack_signed<kFormat>(record + kLayout.quants_offset(), step.quants[i][p]);
        for (int s = 0; s < kScales; ++s) {
          store(step.scales[i][p][s], load(scales_of(record, s)));
        }
        if constexpr (kLayout.has_minimum) {
          store(step.minima[i][p], load(minima_of<kFormat>(record)));
        }
      }
    }
  }

  // Two blocks at a time, so that the products of one hide the latency of the other's.
  void multiply(const Part& part) const {
    const int64_t stride = args_.x_stride_bytes;
    const std::byte* x = QuantizedRow::quants(x_ + tile_begin(part) * stride, part.block);
    for (int i = 0; i < part.num_blocks; i += 2) {
      const bool has_second = i + 1 < part.num_blocks;
      for (int s = 0; s < kScales; ++s) {
        multiply_block<0>(part, x, stride, i, s);
        if (has_second) multiply_block<2>(part, x, stride, i + 1, s);
        store_block<0>(part, i, s);
        if (has_second) store_block<2>(part, i + 1, s);
      }
    }
  }

  // Into tiles kAcc and kAcc + 1.
  template <int kAcc>
  static void multiply_block(const Part& part, const std::byte* x, int64_t stride, int i, int s) {
    constexpr int kX = kAcc == 0 ? 4 : 5;
    constexpr int64_t kBytes = kBlockWeights / kScales;
    Tiles::template load<kX>(x + i * kBlockDepth + s * kSumFeatures, stride);
    Tiles::template load<6>(part.step->quants[i][0] + s * kBytes, kTileRowBytes);
    Tiles::template zero<kAcc>();
    Tiles::template add_int8<kAcc, kX, 6>();
    if constexpr (kPanels == 2) {
      Tiles::template load<7>(part.step->quants[i][1] + s * kBytes, kTileRowBytes);
      Tiles::template zero<kAcc + 1>();
      Tiles::template add_int8<kAcc + 1, kX, 7>();
    }
  }

  template <int kAcc>
  static void store_block(const Part& part, int i, int s) {
    Tiles::template store<kAcc>(part.sums->at[i][0][s], kTileRowBytes);
    if constexpr (kPanels == 2) {
      Tiles::template store<kAcc + 1>(part.sums->at[i][1][s], kTileRowBytes);
    }
  }

  template <int kBlocks = kStepBlocks>
  void add_sums(const Part& part) {
    if (part.num_blocks == kBlocks) {
      add_blocks<kBlocks>(part);
    } else if constexpr (kBlocks > 1) {
      add_sums<kBlocks - 1>(part);
    }
  }

  // The order of add_block() in quant_gemm_avx512.h. The weights' scales stay in registers.
  template <int kBlocks>
  void add_blocks(const Part& part) {
    Vec scale[kBlocks][kPanels][kScales], minimum[kBlocks][kPanels];
#pragma GCC unroll 4
    for (int i = 0; i < kBlocks; ++i) {
#pragma GCC unroll 2
      for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 2
        for (int s = 0; s < kScales; ++s) scale[i][p][s] = load(part.step->scales[i][p][s]);
        minimum[i][p] = kLayout.has_minimum ? load(part.step->minima[i][p]) : zero();
      }
    }
    const int64_t begin = tile_begin(part), end = smaller(part.row + tile_rows_, num_rows_);
    const int64_t stride = args_.x_stride_bytes, depth = args_.depth, block = part.block;
    const Sums& sums = *part.sums;
    const std::byte* x = x_ + part.row * stride;
    for (int64_t r = part.row; r < end; ++r, x += stride) {
      const float* x_scales = QuantizedRow::scale(x, depth, block);
      const float* x_sums = QuantizedRow::scaled_sum(x, depth, block);
      Vec acc[kPanels];
#pragma GCC unroll 2
      for (int p = 0; p < kPanels; ++p) acc[p] = load(acc_[r][p]);
#pragma GCC unroll 4
      for (int i = 0; i < kBlocks; ++i) {
        const Vec x_scale = set1(x_scales[i]), x_sum = set1(x_sums[i]);
#pragma GCC unroll 2
        for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 2
          for (int s = 0; s < kScales; ++s) {
            const Vec sum = load(sums.at[i][p][s][r - begin]);
            acc[p] = fma(sum, mul(scale[i][p][s], x_scale), acc[p]);
          }
          if constexpr (kLayout.has_minimum) acc[p] = fma(minimum[i][p], x_sum, acc[p]);
        }
      }
#pragma GCC unroll 2
      for (int p = 0; p < kPanels; ++p) store(acc_[r][p], acc[p]);
    }
  }

  void write(float* out, const float* bias, int64_t num_cols) const {
    for (int p = 0; p < kPanels; ++p) {
      const int64_t col = p * kPanelRows, width = smaller(kPanelRows, num_cols - col);
      const Vec b = bias == nullptr ? zero() : load_first(bias + col, width);
      for (int64_t r = 0; r < num_rows_; ++r) {
        const Vec y = load(acc_[r][p]);
        store_first(out + r * args_.out_stride + col, bias == nullptr ? y : add(y, b), width);
      }
    }
  }

  alignas(64) float acc_[kRowGroup][kPanels][kPanelRows];
  Step steps_[2];
  Sums sums_[2];
  const GemmArgs& args_;
  const std::byte* x_;
  const std::byte* panels_;
  const int64_t tile_rows_;
  const int64_t num_rows_;
  int64_t num_parts_ = 0;
  Part last_;
};

template <typename Tiles, PanelFormat kFormat, int kPanels>
void tile_gemm_panels(const GemmArgs& args, int64_t tile_rows, int64_t row, int64_t rows,
                      int64_t col) {
  TileGemmQuantized<Tiles, kFormat, kPanels> gemm(args, tile_rows, row, rows, col);
  gemm.run(args.out + row * args.out_stride + col, args.bias == nullptr ? nullptr : args.bias + col,
           args.num_cols - col);
}

template <typename Tiles, PanelFormat kFormat>
void tile_gemm_quantized(const GemmArgs& args) {
  const int64_t tile_rows = smaller(kMaxTileRows, args.num_rows);
  constexpr int64_t kDepth = kBlockDepth / quant_layout(kFormat).num_scales;
  const TileShape sums{tile_rows, kTileRowBytes}, rows{tile_rows, kDepth},
      columns{kDepth / kVectorDepth, kTileRowBytes};
  Tiles::configure({sums, sums, sums, sums, rows, rows, columns, columns});
  // Groups as even as possible, so that each has a tile of rows.
  const int64_t num_groups = (args.num_rows + kRowGroup - 1) / kRowGroup;
  int64_t row = 0;
  for (int64_t g = 0; g < num_groups; ++g) {
    const int64_t count = (args.num_rows - row + num_groups - g - 1) / (num_groups - g);
    int64_t col = 0;
    for (; col + kPanelRows < args.num_cols; col += 2 * kPanelRows) {
      tile_gemm_panels<Tiles, kFormat, 2>(args, tile_rows, row, count, col);
    }
    if (col < args.num_cols) {
      tile_gemm_panels<Tiles, kFormat, 1>(args, tile_rows, row, count, col);
    }
    row += count;
  }
  Tiles::release();
}

}  // namespace
}  // namespace octavo::cpu
