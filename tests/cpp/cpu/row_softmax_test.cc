// The softmax of attention on tiles and the vector operations it is made of. Compiled for AVX2.
#include "cpu/kernels/row_softmax.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/cpu_testing.h"
#include "cpu/kernels/paired_attention.h"

namespace octavo::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

float exp2_of(float x) {
  const FlushDenormals flush;
  return first_lane(exp2(set1(x)));
}

TEST(RowSoftmaxTest, PowersOfTwoAreWithin3e6) {
  for (float x = -125.999f; x <= 0.01f; x += 0.00137f) {
    ASSERT_NEAR(exp2_of(x) / std::exp2(double{x}), 1.0, 3e-6) << x;
  }
  EXPECT_EQ(exp2_of(0.0f), 1.0f);
  for (const float x : {-126.5f, -1e4f, -3e38f, -kInfinity}) EXPECT_EQ(exp2_of(x), 0.0f) << x;
  EXPECT_TRUE(std::isnan(exp2_of(NAN)));
}

TEST(RowSoftmaxTest, LanesAreSelectedBetweenAnyBounds) {
  for (int64_t first = -20; first < 40; ++first) {
    for (int64_t end = -20; end < 40; ++end) {
      float lanes[kLanes];
      store(lanes, select_lanes(set1(1.0f), set1(2.0f), first, end));
      for (int64_t i = 0; i < kLanes; ++i) {
        ASSERT_EQ(lanes[i], i >= first && i < end ? 1.0f : 2.0f) << first << " to " << end;
      }
    }
  }
}

TEST(RowSoftmaxTest, MaximaOfSixteenRowsAreThoseOfEach) {
  const auto scores = random_floats(kSoftmaxRows * kKeyTile, 1);
  for (const int64_t num_rows : {1, 5, 15, 16}) {
    float maxima[kLanes];
    store(maxima, row_maxima(scores.data(), num_rows));
    for (int64_t r = 0; r < kSoftmaxRows; ++r) {
      const auto row = scores.begin() + r * kKeyTile;
      EXPECT_EQ(maxima[r], r < num_rows ? *std::max_element(row, row + kKeyTile) : -kInfinity);
    }
  }
}

struct Case {
  float soft_cap;
  int64_t sliding_window;
  int64_t group;
};

// Rows of one task over two tiles of keys, the second of which is on the diagonal.
struct Softmax {
  static constexpr int64_t kRows = 16, kWidth = 16;

  explicit Softmax(const Case& c) {
    task.kv.head_dim = kWidth;
    task.group = c.group;
    task.num_rows = kRows;
    task.first_position = kKeyTile + 3;
    task.scale = 0.3f;
    task.soft_cap = c.soft_cap;
    task.sliding_window = c.sliding_window;
    const float unit = c.soft_cap > 0.0f ? 1.0f : task.scale;
    state = {out.data(), sums.data(), greatest.data(), kWidth, unit};
    begin_softmax(task, state, kRows);
    std::fill(out.begin(), out.end(), 1.0f);  // shows the rescaling
  }
  // Probabilities of rows [row, row + num_rows) of a tile.
  std::vector<float> soften(std::vector<float> scores, const ScoredRows& at) {
    const FlushDenormals flush;
    std::vector<uint16_t> bits(kRows * kKeyTile);
    soften_rows(task, state, at, scores.data(), bits.data());
    std::vector<float> p(at.num_rows * kKeyTile);
    for (size_t i = 0; i < p.size(); i += kLanes) store(&p[i], load_bfloat16(&bits[i]));
    return p;
  }

  AttentionTask task;
  SoftmaxState state;
  std::vector<float> out = std::vector<float>(kRows * kWidth);
  std::vector<float> sums = std::vector<float>(kRows * kLanes);
  std::vector<float> greatest = std::vector<float>(kRows);
};

TEST(RowSoftmaxTest, TwoTilesMatchADoublePrecisionTwin) {
  for (const Case& c : {Case{0.0f, 0, 1}, {0.0f, 0, 3}, {2.0f, 0, 3}, {0.0f, 20, 1}}) {
    Softmax softmax(c);
    const std::vector<float> tiles[2] = {random_floats(16 * kKeyTile, 1, 4.0f),
                                         random_floats(16 * kKeyTile, 2, 8.0f)};
    std::vector<float> probabilities;
    for (int64_t t = 0; t < 2; ++t) {
      const auto p = softmax.soften(tiles[t], {0, 16, t * kKeyTile, kKeyTile});
      if (t == 0) std::fill(softmax.out.begin(), softmax.out.end(), 1.0f);
      probabilities = p;
    }
    for (int64_t r = 0; r < 16; ++r) {
      const int64_t position = row_position(softmax.task, r);
      std::vector<double> exact;
      for (int64_t j = 0; j < 2 * kKeyTile; ++j) {
        double s = tiles[j / kKeyTile][r * kKeyTile + j % kKeyTile] * double{softmax.task.scale};
        if (c.soft_cap > 0.0f) s = c.soft_cap * std::tanh(s / c.soft_cap);
        const bool seen =
            j <= position && (c.sliding_window == 0 || j > position - c.sliding_window);
        exact.push_back(seen ? s : -kInfinity);
      }
      const double before = *std::max_element(exact.begin(), exact.begin() + kKeyTile);
      const double now = *std::max_element(exact.begin(), exact.end());
      double sum = 0.0;
      for (const double s : exact) sum += std::exp(s - now);
      for (int64_t j = 0; j < kKeyTile; ++j) {
        const double p = std::exp(exact[kKeyTile + j] - now);
        ASSERT_NEAR(probabilities[r * kKeyTile + j], p, p / 256) << "row " << r << " key " << j;
      }
      EXPECT_NEAR(reduce_add(load(&softmax.sums[r * kLanes])), sum, 1e-5 * sum) << "row " << r;
      EXPECT_NEAR(softmax.out[r * 16], std::exp(before - now), 1e-5) << "row " << r;
    }
  }
}

// The greatest score's exponent is 0 whatever its size; scaled first, it would be off by 2^31 /
// 2^24.
TEST(RowSoftmaxTest, HugeScoresStayFinite) {
  Softmax softmax({0.0f, 0, 1});
  std::vector<float> scores(16 * kKeyTile);
  for (size_t i = 0; i < scores.size(); ++i) {
    scores[i] = i % kKeyTile == 5 ? 3.87e10f + static_cast<float>(i / kKeyTile) * 1e9f : 1.0f;
  }
  const auto p = softmax.soften(scores, {0, 16, 0, kKeyTile});
  for (size_t i = 0; i < p.size(); ++i) EXPECT_EQ(p[i], i % kKeyTile == 5 ? 1.0f : 0.0f);
}

TEST(RowSoftmaxTest, RowsDoNotDependOnEachOther) {
  const Case c{0.0f, 0, 3};
  const auto scores = random_floats(16 * kKeyTile, 3, 4.0f);
  Softmax together(c), apart(c);
  const auto expected = together.soften(scores, {0, 16, kKeyTile, kKeyTile});
  for (int64_t row = 0; row < 16; row += 5) {
    const int64_t count = std::min<int64_t>(5, 16 - row);
    const auto first = scores.begin() + row * kKeyTile;
    const auto p =
        apart.soften({first, first + count * kKeyTile}, {row, count, kKeyTile, kKeyTile});
    EXPECT_TRUE(same_bits(
        p, {expected.begin() + row * kKeyTile, expected.begin() + (row + count) * kKeyTile}));
  }
  EXPECT_TRUE(same_bits(together.sums, apart.sums));
  EXPECT_TRUE(same_bits(together.greatest, apart.greatest));
}

}  // namespace
}  // namespace octavo::cpu
