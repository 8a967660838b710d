// Linear layers: the skinny kernel and cuBLASLt against float64 at sampled elements.
#include "checker.h"
#include "cuda/cublas_lt.h"
#include "cuda/skinny_linear.h"

namespace octavo::cuda::testing {
namespace {

struct LinearCase {
  int64_t rows;
  int64_t in_features;
  int64_t out_features;
  DType dtype = DType::kBFloat16;
  DType out_dtype = DType::kBFloat16;
  bool has_bias = false;
};

void check_linear(const LinearCase& c, Gemm* gemm) {
  const int64_t m = c.rows, k = c.in_features, n = c.out_features;
  const auto x = random_values(m * k, c.dtype), w = random_values(n * k, c.dtype, 0.05f);
  const auto b = random_values(n, c.dtype);
  const Array device_x(c.dtype, x), device_w(c.dtype, w), device_b(c.dtype, b);
  const Array out(c.out_dtype, m * n);
  const void* bias = c.has_bias ? device_b.data() : nullptr;
  const auto run = [&] {
    if (gemm != nullptr) {
      gemm->run(context(), device_w.matrix(n, k), bias, device_x.matrix(m, k), out.matrix(m, n));
    } else {
      skinny_linear(context(), device_w.matrix(n, k), bias, device_x.matrix(m, k),
                    out.matrix(m, n));
    }
    return out.download();
  };
  const auto all = run();
  std::vector<float> got;
  std::vector<double> ref;
  bool has_nan = false;
  for (const float v : all) has_nan |= std::isnan(v);
  for (int i = 0; i < 600; ++i) {
    const int64_t row = i < 2 ? i * (m - 1) : random_int(0, m - 1);
    const int64_t column = i < 2 ? i * (n - 1) : random_int(0, n - 1);
    double sum = c.has_bias ? b[column] : 0.0;
    for (int64_t j = 0; j < k; ++j) sum += double{x[row * k + j]} * w[column * k + j];
    ref.push_back(sum);
    got.push_back(all[row * n + column]);
  }
  const std::string name = std::string(gemm != nullptr ? "gemm " : "skinny ") + std::to_string(m) +
                           "x" + std::to_string(k) + "x" + std::to_string(n) + " " +
                           name_of(c.dtype);
  expect_close(got, ref, tolerance_of(c.out_dtype), name);
  expect(!has_nan, name + ": NaN");
  expect(run() == all, name + ": differs from run to run");
}

CUDA_TEST(skinny_linear_matches_reference) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (int64_t rows = 1; rows <= kMaxSkinnyRows; ++rows) {
      check_linear({rows, 576, 1536, dtype, dtype}, nullptr);
      check_linear({rows, 4096, 1000, dtype, DType::kFloat32, rows % 2 == 0}, nullptr);
    }
    for (const int64_t in_features : {8, 72, 296, 1536, 2048, 14336}) {
      check_linear({random_int(1, 16), in_features, random_int(1, 700), dtype, dtype, true},
                   nullptr);
    }
    check_linear({3, 4096, 28672, dtype, dtype}, nullptr);
    check_linear({16, 2048, 49152, dtype, DType::kFloat32}, nullptr);
  }
}

CUDA_TEST(gemm_matches_reference) {
  Gemm gemm(context());
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (const int64_t rows : {1, 17, 64, 100, 300, 513, 700, 1100}) {
      check_linear({rows, 576, 960, dtype, dtype}, &gemm);
      check_linear({rows, 1536, 576, dtype, dtype, true}, &gemm);
      check_linear({rows, 512, 1000, dtype, DType::kFloat32}, &gemm);
    }
  }
}

}  // namespace
}  // namespace octavo::cuda::testing
