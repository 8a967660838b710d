#include <algorithm>
#include <thread>

#include "base/check.h"
#include "cpu/cpu_testing.h"

namespace octavo::cpu {
namespace {

class LinearTest : public EachIsa {};
OCTAVO_TEST_EACH_ISA(LinearTest);

struct Shape {
  int64_t rows, in, out;
};

// Around every tile boundary: 1 and 6 rows, 16 and 64 columns, pairs and 32 in depth.
const Shape kShapes[] = {{1, 1, 1},    {2, 3, 17},    {3, 48, 48},   {5, 31, 64},   {6, 33, 63},
                         {7, 64, 65},  {1, 576, 960}, {12, 100, 33}, {13, 96, 128}, {16, 32, 32},
                         {17, 65, 31}, {33, 48, 80},  {40, 12, 300}, {64, 130, 16}};

class Twin {
 public:
  Twin(DType dtype, bool rounds_activations) : dtype_(dtype), rounds_(rounds_activations) {}

  // The exact sum of the products, and the sum of their sizes.
  std::pair<double, double> dot(const float* x, const float* w, int64_t size) const {
    double sum = 0, magnitude = 0;
    for (int64_t k = 0; k < size; ++k) {
      const bool rounds = rounds_ && dtype_ == DType::kBFloat16;
      const double product =
          double{rounds ? round_to_bfloat16(x[k]) : x[k]} * round_to(dtype_, w[k]);
      sum += product;
      magnitude += std::abs(product);
    }
    return {sum, magnitude};
  }

 private:
  DType dtype_;
  bool rounds_;
};

TEST_P(LinearTest, MatchesADoublePrecisionTwin) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    const auto backend = create_backend(backend_options(isa(), dtype));
    const Twin twin(dtype, rounds_activations());
    for (const Shape& s : kShapes) {
      auto x = random_floats(s.rows * s.in, 1);
      const auto w = random_floats(s.out * s.in, 2);
      const auto weight = make_linear(*backend, w, s.out, s.in);
      std::vector<float> out(s.rows * s.out, -1);
      backend->linear(*weight, matrix(x, s.rows, s.in), matrix(out, s.rows, s.out));
      for (int64_t r = 0; r < s.rows; ++r) {
        for (int64_t c = 0; c < s.out; ++c) {
          const auto [sum, magnitude] = twin.dot(&x[r * s.in], &w[c * s.in], s.in);
          ASSERT_NEAR(out[r * s.out + c], sum, 1e-6 * magnitude + 1e-30)
              << dtype_info(dtype).name << " " << s.rows << "x" << s.in << "x" << s.out;
        }
      }
    }
  }
}

TEST_P(LinearTest, AddsTheBias) {
  const auto backend = create_backend(backend_options(isa(), DType::kFloat32));
  constexpr int64_t kRows = 9, kIn = 20, kOut = 70;
  auto x = random_floats(kRows * kIn, 1);
  const auto w = random_floats(kOut * kIn, 2), bias = random_floats(kOut, 3);
  auto weight = backend->create_linear(kOut, kIn, true);
  backend->load_rows(*weight, 0, float_view(w, kOut, kIn));
  backend->load_bias(*weight, 0, float_view(bias, 1, 40));
  backend->load_bias(*weight, 40, {bias.data() + 40, DType::kFloat32, 1, 30});
  const auto plain = make_linear(*backend, w, kOut, kIn);
  std::vector<float> out(kRows * kOut), expected(kRows * kOut);
  backend->linear(*weight, matrix(x, kRows, kIn), matrix(out, kRows, kOut));
  backend->linear(*plain, matrix(x, kRows, kIn), matrix(expected, kRows, kOut));
  for (int64_t i = 0; i < kRows * kOut; ++i) expected[i] += bias[i % kOut];
  EXPECT_TRUE(same_bits(out, expected));
}

// Fused projections: row ranges of their own, loaded at once and in any order.
TEST_P(LinearTest, LoadsRowRangesFromSeveralThreads) {
  const auto backend = create_backend(backend_options(isa(), DType::kBFloat16));
  constexpr int64_t kIn = 50, kRows = 4;
  const int64_t begins[] = {0, 30, 47, 48, 110, 131};
  const int64_t out_features = begins[5];
  const auto w = random_floats(out_features * kIn, 2);
  auto weight = backend->create_linear(out_features, kIn, false);
  std::vector<std::thread> threads;
  for (int i = 4; i >= 0; --i) {
    threads.emplace_back([&, i] {
      backend->load_rows(
          *weight, begins[i],
          {w.data() + begins[i] * kIn, DType::kFloat32, begins[i + 1] - begins[i], kIn});
    });
  }
  for (auto& thread : threads) thread.join();
  const auto whole = make_linear(*backend, w, out_features, kIn);
  auto x = random_floats(kRows * kIn, 1);
  std::vector<float> out(kRows * out_features), expected(kRows * out_features);
  backend->linear(*weight, matrix(x, kRows, kIn), matrix(out, kRows, out_features));
  backend->linear(*whole, matrix(x, kRows, kIn), matrix(expected, kRows, out_features));
  EXPECT_TRUE(same_bits(out, expected));
}

TEST_P(LinearTest, ReadsEveryPlainSourceType) {
  const auto backend = create_backend(backend_options(isa(), DType::kFloat32));
  constexpr int64_t kOut = 19, kIn = 24;
  const auto w = random_floats(kOut * kIn, 2);
  std::vector<_Float16> halves(w.size());
  std::ranges::transform(w, halves.begin(), [](float v) { return static_cast<_Float16>(v); });
  auto weight = backend->create_linear(kOut, kIn, false);
  backend->load_rows(*weight, 0, {halves.data(), DType::kFloat16, kOut, kIn});
  std::vector<int32_t> ids(kOut);
  for (int32_t i = 0; i < kOut; ++i) ids[i] = i;
  std::vector<float> rows(kOut * kIn);
  backend->embed(*weight, ids.data(), matrix(rows, kOut, kIn));
  EXPECT_TRUE(same_bits(rows, std::vector<float>(halves.begin(), halves.end())));
}

// A row is the same to the last bit alone, among others, at any place, with any number of threads.
TEST_P(LinearTest, RowsDoNotDependOnTheBatch) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    const auto two = create_backend(backend_options(isa(), dtype, 2));
    const auto one = create_backend(backend_options(isa(), dtype, 1));
    constexpr int64_t kRows = 75, kIn = 301, kOut = 391;
    auto x = random_floats(kRows * kIn, 1);
    const auto w = random_floats(kOut * kIn, 2);
    const auto weight = make_linear(*two, w, kOut, kIn);
    const auto weight_of_one = make_linear(*one, w, kOut, kIn);
    std::vector<float> all(kRows * kOut), all_of_one(kRows * kOut);
    two->linear(*weight, matrix(x, kRows, kIn), matrix(all, kRows, kOut));
    one->linear(*weight_of_one, matrix(x, kRows, kIn), matrix(all_of_one, kRows, kOut));
    EXPECT_TRUE(same_bits(all, all_of_one));
    for (int64_t count = 1; count <= 40; count += count < 20 ? 1 : 7) {
      for (const int64_t first : {int64_t{0}, int64_t{35}}) {
        std::vector<float> part_x(x.begin() + first * kIn, x.begin() + (first + count) * kIn);
        std::vector<float> part(count * kOut);
        two->linear(*weight, matrix(part_x, count, kIn), matrix(part, count, kOut));
        ASSERT_TRUE(
            same_bits(part, {all.begin() + first * kOut, all.begin() + (first + count) * kOut}))
            << dtype_info(dtype).name << " " << count << " rows";
      }
    }
  }
}

TEST_P(LinearTest, TakesStridedRows) {
  const auto backend = create_backend(backend_options(isa(), DType::kBFloat16));
  constexpr int64_t kRows = 5, kIn = 40, kOut = 21;
  auto wide_x = random_floats(kRows * 2 * kIn, 1);
  const auto w = random_floats(kOut * kIn, 2);
  const auto weight = make_linear(*backend, w, kOut, kIn);
  std::vector<float> wide_out(kRows * 3 * kOut, 7.0f), expected(kRows * kOut);
  backend->linear(*weight, matrix(wide_x, kRows, 2 * kIn).columns(kIn, kIn),
                  matrix(wide_out, kRows, 3 * kOut).columns(kOut, kOut));
  std::vector<float> x;
  for (int64_t r = 0; r < kRows; ++r) {
    x.insert(x.end(), &wide_x[(2 * r + 1) * kIn], &wide_x[(2 * r + 1) * kIn] + kIn);
  }
  backend->linear(*weight, matrix(x, kRows, kIn), matrix(expected, kRows, kOut));
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t c = 0; c < 3 * kOut; ++c) {
      const bool inside = c >= kOut && c < 2 * kOut;
      ASSERT_EQ(wide_out[r * 3 * kOut + c], inside ? expected[r * kOut + c - kOut] : 7.0f);
    }
  }
}

TEST_P(LinearTest, ReportsTheBytesItTakes) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    const auto backend = create_backend(backend_options(isa(), dtype));
    const auto weight = make_linear(*backend, random_floats(100 * 48, 1), 100, 48);
    EXPECT_EQ(weight->size_bytes(), backend->linear_bytes(100, 48, DType::kFloat32));
    EXPECT_GE(weight->size_bytes(), 100 * 48 * dtype_info(dtype).block_bytes);
  }
}

TEST_P(LinearTest, RefusesRowsOutsideTheWeight) {
  const auto backend = create_backend(backend_options(isa(), DType::kFloat32));
  auto weight = backend->create_linear(10, 8, false);
  const auto w = random_floats(80, 1);
  EXPECT_THROW(backend->load_rows(*weight, 1, float_view(w, 10, 8)), CheckError);
  EXPECT_THROW(backend->load_rows(*weight, 0, float_view(w, 8, 10)), CheckError);
  EXPECT_THROW(backend->load_bias(*weight, 0, float_view(w, 1, 10)), CheckError);
}

}  // namespace
}  // namespace octavo::cpu
