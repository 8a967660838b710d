// Quantised weights times int8 activations on tiles: the exact block sums of quant_gemm_avx512.h
// and the same float32 roundings in the same order, so the results are the same bits and the number
// of rows may choose between the two.
//
// A scale for every 32 features means a tile of sums for every 32 features: TDPBSSD on half-filled
// rows (K = 32), then convert, scale and add in vector registers. For 16 rows x 16 columns x 32:
//   tiles    16 cycles (K = 64 takes the same), 12 to load rows and columns, 16 to store the sums
//   vectors  16 x (convert, scale * scale, fma) on two ports = 24 cycles; 32 with minima
// The two overlap, so the roof is 8,192 products in 24 (32) cycles, a third (a quarter) of what the
// tiles could do with one scale a row, and four (three) times that of vpdpbusd. What is done for
// it:
// - The accumulators of 16 rows and one panel stay in vector registers over the depth.
// - A step multiplies one tile, stores the sums of an earlier one and adds those of one still
//   earlier, so that nothing waits for what was just begun. The steps run on from panel to panel.
// - A group of panels is unpacked to signed bytes in L2 once for all rows; meanwhile the next group
//   comes from memory. The first group is one panel, because nothing hides its way; each one after
//   it is up to twice as large.
#pragma once

#include "cpu/kernels.h"
#include "cpu/kernels/quant_row.h"
#include "cpu/kernels/tile_shape.h"
#include "cpu/kernels/vec_math.h"

namespace octavo::cpu {
namespace {

// Blocks of 32 features whose products are added up in registers: 16 rows and a panel of them share
// L1. Longer depths continue from the results so far.
constexpr int64_t kMaxSpanBlocks = 48;
// Blocks of the largest group of panels that is unpacked together: 120 KB.
constexpr int64_t kGroupBlocks = 192;
static_assert(kGroupBlocks >= kMaxSpanBlocks);
// As in quant_gemm_avx512.h.
constexpr int64_t kRecordPrefetchBytes = 4096;

constexpr int kSumTiles = 4;
// Steps from a product to the store of its sums, which is past the latency of TDPBSSD, and to the
// addition.
constexpr int kStoreDistance = 3;
constexpr int kAddDistance = 4;
static_assert(kAddDistance == kSumTiles);
// Two suffice when each is read one step after it was stored. More would cover a whole page, and
// then every load has the page offset of a store that is still on its way, and waits for it.
constexpr int kSumBuffers = 2;

template <int kValue>
struct StepPhase {
  static constexpr int value = kValue;
};

template <typename Tiles, PanelFormat kFormat>
class TileGemmQuantized {
 public:
  explicit TileGemmQuantized(const GemmArgs& args)
      : args_(args),
        num_panels_((args.num_cols + kPanelRows - 1) / kPanelRows),
        num_blocks_(args.depth / kBlockDepth),
        span_blocks_(even_span(num_blocks_)),
        num_row_tiles_((args.num_rows + kMaxTileRows - 1) / kMaxTileRows) {}

  void run() {
    const TileShape sums{kMaxTileRows, kTileRowBytes}, rows{kMaxTileRows, kUnitDepth},
        columns{kUnitDepth / kVectorDepth, kTileRowBytes};
    Tiles::configure({sums, sums, sums, sums, rows, rows, columns, columns});
    for (Part part = first_part(); part.num_panels > 0;) {
      const Part next = part_after(part);
      unpack(part);
      for (int64_t tile = 0; tile < num_row_tiles_; ++tile) multiply(part, tile, next);
      part = next;
    }
    Tiles::release();
  }

 private:
  static constexpr QuantLayout kLayout = quant_layout(kFormat);
  static constexpr int64_t kScales = kLayout.num_scales;
  // What has one scale is a unit: a block, or half of one.
  static constexpr int64_t kUnitDepth = kBlockDepth / kScales;
  static constexpr int64_t kUnitWeights = kBlockWeights / kScales;

  // A group of panels, a span of their blocks.
  struct Part {
    int64_t first_panel = 0;
    int64_t num_panels = 0;
    int64_t first_block = 0;
    int64_t num_blocks = 0;
  };

  static int64_t even_span(int64_t num_blocks) {
    const int64_t num_spans = (num_blocks + kMaxSpanBlocks - 1) / kMaxSpanBlocks;
    return (num_blocks + num_spans - 1) / num_spans;
  }

  Part first_part() const { return {0, 1, 0, span_blocks_}; }

  // Without panels after the last one.
  Part part_after(const Part& part) const {
    Part next = part;
    next.first_block += part.num_blocks;
    if (next.first_block == num_blocks_) {
      next.first_block = 0;
      next.first_panel += part.num_panels;
      next.num_panels = smaller(smaller(2 * part.num_panels, kGroupBlocks / span_blocks_),
                                num_panels_ - next.first_panel);
    }
    next.num_blocks = smaller(span_blocks_, num_blocks_ - next.first_block);
    return next;
  }

  const std::byte* records(const Part& part, int64_t panel) const {
    return args_.panels + (part.first_panel + panel) * args_.panel_bytes +
           part.first_block * kLayout.record_bytes();
  }

  void unpack(const Part& part) {
    int64_t to = 0;
    for (int64_t p = 0; p < part.num_panels; ++p) {
      const std::byte* record = records(part, p);
      for (int64_t b = 0; b < part.num_blocks; ++b, ++to, record += kLayout.record_bytes()) {
        for (int64_t at = 0; at < kLayout.record_bytes(); at += kTileRowBytes) {
          _mm_prefetch(record + at + kRecordPrefetchBytes, _MM_HINT_T0);
        }
        Tiles::template unpack_signed<kFormat>(record + kLayout.quants_offset(), quants_[to]);
        for (int64_t s = 0; s < kScales; ++s) store(scales_[to][s], load(scales_of(record, s)));
        if constexpr (kLayout.has_minimum) store(minima_[to], load(minima_of<kFormat>(record)));
      }
    }
  }

  // out[block][r] = in[r][block] for 16 rows, four by four. Reads and writes whole fours of blocks:
  // every array that is read here has others behind it in its record.
  static void transpose(const float* in, int64_t stride_bytes, int64_t num_blocks,
                        float (*out)[kMaxTileRows]) {
    const auto row = [&](int64_t r) {
      return reinterpret_cast<const float*>(reinterpret_cast<const std::byte*>(in) +
                                            r * stride_bytes);
    };
    for (int64_t r = 0; r < kMaxTileRows; r += 4) {
      for (int64_t b = 0; b < num_blocks; b += 4) {
        __m128 first = _mm_loadu_ps(row(r) + b), second = _mm_loadu_ps(row(r + 1) + b);
        __m128 third = _mm_loadu_ps(row(r + 2) + b), fourth = _mm_loadu_ps(row(r + 3) + b);
        _MM_TRANSPOSE4_PS(first, second, third, fourth);
        _mm_store_ps(out[b] + r, first);
        _mm_store_ps(out[b + 1] + r, second);
        _mm_store_ps(out[b + 2] + r, third);
        _mm_store_ps(out[b + 3] + r, fourth);
      }
    }
  }

  // What the next product takes, and what it fetches of the next part.
  struct Products {
    const std::byte* x = nullptr;
    int64_t stride = 0;
    int64_t num_units = 0;  // of a panel
    int64_t unit = 0;
    int64_t turn = 0;  // of num_turns: panels of all tiles of rows
    int64_t num_turns = 0;
    const std::byte* fetch = nullptr;  // a unit
    int64_t num_fetched = 0;           // panels
  };

  // The panels of the next part are divided among the turns.
  void choose_fetch(const Part& next, Products& p) const {
    const int64_t first = next.num_panels * p.turn / p.num_turns;
    p.num_fetched = next.num_panels * (p.turn + 1) / p.num_turns - first;
    p.fetch = records(next, first);
  }

  // Into tile kAcc.
  template <int kAcc>
  [[gnu::always_inline]] void multiply_unit(const Part& next, Products& p, int64_t step) const {
    constexpr int kX = 4 + kAcc % 2, kW = 6 + kAcc % 2;
    Tiles::template load<kX>(p.x + p.unit * kUnitDepth, p.stride);
    Tiles::template load<kW>(quants_[0] + step * kUnitWeights, kTileRowBytes);
    Tiles::template zero<kAcc>();
    Tiles::template add_int8<kAcc, kX, kW>();
    constexpr int64_t kBytes = kLayout.record_bytes() / kScales;
    for (int64_t i = 0; i < p.num_fetched; ++i) {
#pragma GCC unroll 9
      for (int64_t at = 0; at < kBytes; at += kTileRowBytes) {
        _mm_prefetch(p.fetch + i * args_.panel_bytes + at, _MM_HINT_T1);
      }
    }
    p.fetch += kBytes;
    if (++p.unit == p.num_units) {
      p.unit = 0;
      ++p.turn;
      choose_fetch(next, p);
    }
  }

  // The order of add_block() in quant_gemm_avx512.h.
  [[gnu::always_inline]] void add_unit(const int32_t (&sums)[kMaxTileRows][kPanelRows],
                                       int64_t step, int64_t block,
                                       Vec (&acc)[kMaxTileRows]) const {
    const Vec scale = load(scales_[0][0] + step * kPanelRows);
    const Vec minimum = kLayout.has_minimum ? load(minima_[0] + step * kPanelRows) : zero();
#pragma GCC unroll 16
    for (int64_t r = 0; r < kMaxTileRows; ++r) {
      acc[r] = fma(load(sums[r]), mul(scale, set1(x_scales_[block][r])), acc[r]);
      if constexpr (kLayout.has_minimum) acc[r] = fma(minimum, set1(x_sums_[block][r]), acc[r]);
    }
  }

  // A tile of rows against the unpacked panels. The last tile ends with the last row and leaves out
  // the rows that the one before it has.
  void multiply(const Part& part, int64_t tile, const Part& next) {
    const int64_t row = smaller(tile * kMaxTileRows, args_.num_rows - kMaxTileRows);
    const int64_t stride = args_.x_stride_bytes, num_units = part.num_blocks * kScales;
    const int64_t num_steps = part.num_panels * num_units;
    const std::byte* x = args_.x + row * stride;
    transpose(QuantizedRow::scale(x, args_.depth, part.first_block), stride, part.num_blocks,
              x_scales_);
    if constexpr (kLayout.has_minimum) {
      transpose(QuantizedRow::scaled_sum(x, args_.depth, part.first_block), stride, part.num_blocks,
                x_sums_);
    }
    Products products;
    products.x = QuantizedRow::quants(x, part.first_block);
    products.stride = stride;
    products.num_units = num_units;
    products.turn = tile * part.num_panels;
    products.num_turns = num_row_tiles_ * part.num_panels;
    choose_fetch(next, products);

    Output out(args_, part, row, tile * kMaxTileRows - row);
    Vec acc[kMaxTileRows];
    out.begin(acc);
    int64_t unit = 0;  // of the panel whose sums are added
    const auto run_step = [&](auto phase, int64_t step) __attribute__((always_inline)) {
      constexpr int kAcc = phase.value;
      constexpr int kStored = (kAcc + kSumTiles - kStoreDistance) % kSumTiles;
      Tiles::template store<kStored>(sums_[kStored % kSumBuffers], kTileRowBytes);
      if (step < num_steps) multiply_unit<kAcc>(next, products, step);
      const int64_t before = step - kAddDistance;
      if (before < 0 || before >= num_steps) return;
      add_unit(sums_[kAcc % kSumBuffers], before, unit / kScales, acc);
      if (++unit == num_units) {
        unit = 0;
        out.end(acc);
        out.begin(acc);
      }
    };
    for (int64_t step = 0; step < num_steps + kAddDistance; step += kSumTiles) {
      run_step(StepPhase<0>{}, step);
      run_step(StepPhase<1>{}, step + 1);
      run_step(StepPhase<2>{}, step + 2);
      run_step(StepPhase<3>{}, step + 3);
    }
  }

  // Where the accumulators of a tile of rows go, panel after panel.
  class Output {
   public:
    // The first `num_left_out` rows are not written.
    Output(const GemmArgs& args, const Part& part, int64_t row, int64_t num_left_out)
        : args_(args),
          col_(part.first_panel * kPanelRows),
          to_(args.out + row * args.out_stride + col_),
          num_left_out_(num_left_out),
          is_first_(part.first_block == 0),
          has_bias_(args.bias != nullptr &&
                    part.first_block + part.num_blocks == args.depth / kBlockDepth) {}

    // The spans before this one left their results where the sums go.
    [[gnu::always_inline]] void begin(Vec (&acc)[kMaxTileRows]) const {
      const int64_t width = smaller(kPanelRows, args_.num_cols - col_);
      if (is_first_ || width <= 0) {
#pragma GCC unroll 16
        for (int64_t r = 0; r < kMaxTileRows; ++r) acc[r] = zero();
        return;
      }
#pragma GCC unroll 16
      for (int64_t r = 0; r < kMaxTileRows; ++r) {
        acc[r] = load_first(to_ + r * args_.out_stride, width);
      }
    }

    // x + -0 is x, whatever its sign.
    [[gnu::always_inline]] void end(const Vec (&acc)[kMaxTileRows]) {
      const int64_t width = smaller(kPanelRows, args_.num_cols - col_);
      const Vec bias = has_bias_ ? load_first(args_.bias + col_, width) : set1(-0.0f);
#pragma GCC unroll 16
      for (int64_t r = 0; r < kMaxTileRows; ++r) {
        if (r < num_left_out_) continue;
        store_first(to_ + r * args_.out_stride, add(acc[r], bias), width);
      }
      to_ += kPanelRows;
      col_ += kPanelRows;
    }

   private:
    const GemmArgs& args_;
    int64_t col_;
    float* to_;
    const int64_t num_left_out_;
    const bool is_first_;
    const bool has_bias_;
  };

  // Of the part, by panel and block.
  alignas(64) int8_t quants_[kGroupBlocks][kBlockWeights];
  alignas(64) float scales_[kGroupBlocks][kScales][kPanelRows];
  alignas(64) float minima_[kLayout.has_minimum ? kGroupBlocks : 1][kPanelRows];
  // Of the tile of rows, by block.
  alignas(64) float x_scales_[kMaxSpanBlocks][kMaxTileRows];
  alignas(64) float x_sums_[kLayout.has_minimum ? kMaxSpanBlocks : 1][kMaxTileRows];
  alignas(64) int32_t sums_[kSumBuffers][kMaxTileRows][kPanelRows];
  const GemmArgs& args_;
  const int64_t num_panels_;
  const int64_t num_blocks_;
  const int64_t span_blocks_;
  const int64_t num_row_tiles_;
};

// Requires: at least kMaxTileRows rows.
template <typename Tiles, PanelFormat kFormat>
void tile_gemm_quantized(const GemmArgs& args) {
  TileGemmQuantized<Tiles, kFormat>(args).run();
}

}  // namespace
}  // namespace octavo::cpu
