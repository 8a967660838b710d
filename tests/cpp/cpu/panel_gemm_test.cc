// Quantised panels widened in cache, as on AMX but with plain C++ in the place of tiles. Compiled
// for AVX2.
#include "cpu/panel_gemm.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "base/dequantize.h"
#include "cpu/cpu_testing.h"
#include "cpu/experts.h"
#include "cpu/layer.h"
#include "cpu/tile_table.h"

namespace octavo::cpu {
namespace {

constexpr DType kTypes[] = {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1,
                            DType::kQ4_K, DType::kQ5_K, DType::kQ6_K};

// A random weight of a checkpoint's type.
struct Checkpoint {
  Checkpoint(DType dtype, int64_t rows, int64_t cols, uint32_t seed)
      : dtype(dtype), rows(rows), cols(cols), bits(random_bits(dtype, rows * cols, seed)) {}
  WeightView view() const { return {bits.data(), dtype, rows, cols}; }
  std::vector<float> values() const {
    std::vector<float> out(rows * cols);
    dequantize(dtype, bits.data(), rows * cols, out.data());
    return out;
  }

  DType dtype;
  int64_t rows, cols;
  std::vector<uint16_t> bits;
};

std::vector<float> run(const Kernels& kernels, const WeightView& view,
                       const std::vector<float>& x) {
  return Layer(kernels, view, 2).run(x);
}

Kernels always_widening() {
  Kernels k = plain_tile_kernels();
  k.min_widen_rows = 0;
  return k;
}

// More panels than are widened together, and a part of one at the end.
TEST(PanelGemmTest, ManyRowsMeetTheWeightsInBFloat16) {
  constexpr int64_t kIn = 2048, kOut = 183;
  for (const DType dtype : {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1}) {
    const Checkpoint w(dtype, kOut, kIn, 3);
    const auto values = w.values();
    for (const int64_t rows : {kPlainWidenRows, int64_t{40}}) {
      const auto x = random_floats(rows * kIn, 1);
      EXPECT_TRUE(same_bits(run(plain_tile_kernels(), w.view(), x),
                            run(plain_tile_kernels(), float_view(values, kOut, kIn), x)))
          << dtype_info(dtype).name << " " << rows << " rows";
    }
  }
}

TEST(PanelGemmTest, FewRowsAreMultipliedAsThePanelsAre) {
  constexpr int64_t kIn = 512, kOut = 70, kRows = kPlainWidenRows - 1;
  for (const DType dtype : kTypes) {
    const Checkpoint w(dtype, kOut, kIn, 3);
    const auto x = random_floats(kRows * kIn, 1);
    const auto expected = run(kernels_for(Isa::kAvx2), w.view(), x);
    EXPECT_TRUE(same_bits(run(plain_tile_kernels(), w.view(), x), expected));
    EXPECT_FALSE(same_bits(run(always_widening(), w.view(), x), expected));
  }
}

TEST(PanelGemmTest, RowsDoNotDependOnTheBatchWhereAllAreWidened) {
  constexpr int64_t kIn = 1536, kOut = 200, kRows = 50;
  for (const DType dtype : kTypes) {
    const Checkpoint w(dtype, kOut, kIn, 3);
    const auto x = random_floats(kRows * kIn, 1);
    const auto all = run(always_widening(), w.view(), x);
    for (const int64_t count : {1, 5, 17}) {
      const std::vector<float> some(x.begin() + 9 * kIn, x.begin() + (9 + count) * kIn);
      EXPECT_TRUE(same_bits(run(always_widening(), w.view(), some),
                            {all.begin() + 9 * kOut, all.begin() + (9 + count) * kOut}));
    }
  }
}

// Segments of every type in one weight, float32 ones among them.
TEST(PanelGemmTest, SegmentsOfSeveralTypesAreWhatEachIsAlone) {
  constexpr int64_t kIn = 256, kEach = 24, kRows = 20;
  const auto x = random_floats(kRows * kIn, 1), plain = random_floats(kEach * kIn, 2);
  Layer all(plain_tile_kernels(), kEach * (std::ssize(kTypes) + 1), kIn, 2);
  std::vector<Checkpoint> parts;
  for (const DType dtype : kTypes) parts.emplace_back(dtype, kEach, kIn, 3);
  std::vector<WeightView> views;
  for (const Checkpoint& part : parts) views.push_back(part.view());
  views.push_back(float_view(plain, kEach, kIn));
  for (int64_t i = 0; i < std::ssize(views); ++i) all.load(i * kEach, views[i]);
  const auto out = all.run(x);
  const int64_t width = kEach * std::ssize(views);
  const auto bias = random_floats(width, 77);
  for (int64_t i = 0; i < std::ssize(views); ++i) {
    PackedWeight weight(kEach, kIn, true);
    WeightArena arena;
    ThreadPool pool(1);
    weight.load_rows({plain_tile_kernels(), kKeepQuantized, arena}, 0, views[i]);
    weight.load_bias(0, {&bias[i * kEach], DType::kFloat32, 1, kEach});
    std::vector<float> in = x, expected(kRows * kEach);
    Linear(plain_tile_kernels(), pool)
        .run(weight, matrix(in, kRows, kIn), matrix(expected, kRows, kEach));
    for (int64_t r = 0; r < kRows; ++r) {
      const auto begin = out.begin() + r * width + i * kEach;
      ASSERT_TRUE(same_bits({begin, begin + kEach},
                            {expected.begin() + r * kEach, expected.begin() + (r + 1) * kEach}));
    }
  }
}

// Two experts of Q4_1; `rows` tokens that all choose both.
std::vector<float> run_experts(const Kernels& kernels, int64_t rows, int num_threads) {
  constexpr int64_t kHidden = 64, kInner = 96, kExperts = 2;
  ThreadPool pool(num_threads);
  WeightArena arena;
  PackedWeight gate_up(kExperts * 2 * kInner, kHidden, false);
  PackedWeight down(kExperts * kHidden, kInner, false);
  for (int64_t e = 0; e < kExperts; ++e) {
    const auto seed = static_cast<uint32_t>(e);
    gate_up.load_rows({kernels, kKeepQuantized, arena}, e * 2 * kInner,
                      Checkpoint(DType::kQ4_1, 2 * kInner, kHidden, seed).view());
    down.load_rows({kernels, kKeepQuantized, arena}, e * kHidden,
                   Checkpoint(DType::kQ4_1, kHidden, kInner, seed + 9).view());
  }
  auto x = random_floats(rows * kHidden, 1, 5.0f), logits = random_floats(rows * kExperts, 2);
  const int64_t pairs = rows * kExperts;
  std::vector<int32_t> plan(expert_plan_size(pairs, kExperts));
  std::vector<float> wide(pairs * 2 * kInner), gated(pairs * kInner), each(pairs * kHidden);
  std::vector<float> out(rows * kHidden);
  Experts(kernels, pool)
      .run(matrix(x, rows, kHidden), matrix(logits, rows, kExperts),
           {gate_up, down, kExperts, kExperts, true},
           {TensorView::matrix(plan.data(), DType::kInt32, 1, std::ssize(plan)),
            matrix(wide, pairs, 2 * kInner), matrix(gated, pairs, kInner),
            matrix(each, pairs, kHidden)},
           matrix(out, rows, kHidden));
  return out;
}

TEST(PanelGemmTest, ExpertsWidenFromTheSameNumberOfRowsEach) {
  constexpr int64_t kFew = kPlainWidenRows - 1, kMany = kPlainWidenRows;
  EXPECT_TRUE(same_bits(run_experts(plain_tile_kernels(), kFew, 1),
                        run_experts(kernels_for(Isa::kAvx2), kFew, 1)));
  const auto wide = run_experts(plain_tile_kernels(), kMany, 1);
  EXPECT_TRUE(same_bits(wide, run_experts(always_widening(), kMany, 3)));
  const auto narrow = run_experts(kernels_for(Isa::kAvx2), kMany, 1);
  EXPECT_FALSE(same_bits(wide, narrow));
  double error = 0, size = 0;
  for (size_t i = 0; i < wide.size(); ++i) {
    error += (wide[i] - narrow[i]) * (wide[i] - narrow[i]);
    size += narrow[i] * narrow[i];
  }
  EXPECT_LE(std::sqrt(error / size), 0.02);
}

// The kernel of AMX against the values of each row, rounded with ties away from zero. Where there
// is a minimum, it is 2^15 steps of the quant's scale, both round more than once.
TEST(WidenPanelTest, GivesEveryWeightRounded) {
  if (!is_supported(Isa::kAmx)) GTEST_SKIP() << "no amx here";
  const Kernels& kernels = kernels_for(Isa::kAmx);
  constexpr int64_t kIn = 512;
  for (const DType dtype : kTypes) {
    PackedWeight weight(kPanelRows, kIn, false);
    WeightArena arena;
    weight.load_rows({kernels, kKeepQuantized, arena}, 0,
                     Checkpoint(dtype, kPanelRows, kIn, 5).view());
    const PanelSegment& segment = weight.segments()[0];
    const int format = static_cast<int>(segment.format);
    alignas(64) static std::byte wide[kIn * kPanelRows * 2];
    kernels.widen_panel[format](segment.panel(0), kIn, wide);
    const bool is_exact = !quant_layout(segment.format).has_minimum;
    for (int64_t lane = 0; lane < kPanelRows; ++lane) {
      std::vector<float> row(kIn);
      kernels.unpack_row[format](segment.panel(0), lane, kIn, row.data());
      const float greatest = std::abs(*std::ranges::max_element(row, {}, fabsf));
      for (int64_t k = 0; k < kIn; ++k) {
        const auto expected = (std::bit_cast<uint32_t>(row[k]) + 0x8000u) >> 16;
        uint16_t found;
        std::memcpy(&found, wide + paired_index(k, lane) * 2, sizeof(found));
        const float value = std::bit_cast<float>(uint32_t{found} << 16);
        const float rounded = std::bit_cast<float>(expected << 16);
        const float slack = is_exact ? 0.0f : std::abs(row[k]) / 128 + greatest * 4e-4f;
        ASSERT_NEAR(value, rounded, slack) << dtype_info(dtype).name << " " << row[k];
      }
    }
  }
}

TEST(WidenPanelTest, ANaNOrInfiniteScaleMakesItsColumnNaN) {
  if (!is_supported(Isa::kAmx)) GTEST_SKIP() << "no amx here";
  const Kernels& kernels = kernels_for(Isa::kAmx);
  for (const uint16_t bad : {0x7FFF, 0xFFFF, 0x7C00, 0xFC01}) {
    constexpr int64_t kIn = 64;
    alignas(64) std::byte panel[panel_bytes(PanelFormat::kInt8, kIn)] = {};
    std::memcpy(panel + 2 * 3, &bad, sizeof(bad));  // the scale of column 3 in the first block
    alignas(64) std::byte wide[kIn * kPanelRows * 2];
    kernels.widen_panel[static_cast<int>(PanelFormat::kInt8)](panel, kIn, wide);
    for (int64_t k = 0; k < kIn; ++k) {
      for (int64_t lane = 0; lane < kPanelRows; ++lane) {
        uint16_t bits;
        std::memcpy(&bits, wide + paired_index(k, lane) * 2, sizeof(bits));
        EXPECT_EQ((bits & 0x7FFF) > 0x7F80, lane == 3 && k < kBlockDepth);
      }
    }
  }
}

}  // namespace
}  // namespace octavo::cpu
