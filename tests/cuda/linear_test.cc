// Linear layers: the streaming kernel and cuBLASLt against float64 at sampled elements.
#include <algorithm>

#include "checker.h"
#include "cuda/cublas_lt.h"
#include "cuda/stream_linear.h"
#include "quantized.h"

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

// Gemm and StreamLinear.
template <typename Linear>
void check_linear(const LinearCase& c, Linear& linear) {
  const int64_t m = c.rows, k = c.in_features, n = c.out_features;
  const auto x = random_values(m * k, c.dtype), w = random_values(n * k, c.dtype, 0.05f);
  const auto b = random_values(n, c.dtype);
  const Array device_x(c.dtype, x), device_w(c.dtype, w), device_b(c.dtype, b);
  const Array out(c.out_dtype, m * n);
  const void* bias = c.has_bias ? device_b.data() : nullptr;
  const auto run = [&] {
    linear.run(context(), {device_w.matrix(n, k), bias}, device_x.matrix(m, k), out.matrix(m, n));
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
  const std::string name = "linear " + std::to_string(m) + "x" + std::to_string(k) + "x" +
                           std::to_string(n) + " " + name_of(c.dtype);
  expect_close(got, ref, tolerance_of(c.out_dtype), name);
  expect(!has_nan, name + ": NaN");
  expect(run() == all, name + ": differs from run to run");
}

CUDA_TEST(stream_linear_matches_reference) {
  StreamLinear linear(context());
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (const int64_t rows : {1, 2, 7, 8, 9, 15, 16, 17, 32, 33, 63, 64}) {
      check_linear({rows, 576, 1536, dtype, dtype}, linear);
      check_linear({rows, 4096, 1000, dtype, DType::kFloat32, rows % 2 == 0}, linear);
    }
    for (const int64_t in_features : {8, 72, 296, 1536, 2048, 14336}) {
      const int64_t out_features = 2 * random_int(1, 350);
      check_linear({random_int(1, 64), in_features, out_features, dtype, dtype, true}, linear);
    }
    check_linear({3, 4096, 28672, dtype, dtype}, linear);
    check_linear({64, 4096, 6144, dtype, dtype}, linear);
    check_linear({64, 14336, 4096, dtype, dtype}, linear);
    check_linear({60, 2048, 49152, dtype, DType::kFloat32}, linear);
    check_linear({16, 2048, 49152, dtype, DType::kFloat32}, linear);
  }
}

void check_gated(int64_t m, int64_t k, int64_t n, DType dtype, bool has_bias) {
  const auto x = random_values(m * k, dtype), w = random_values(2 * n * k, dtype, 0.05f);
  const auto b = random_values(2 * n, dtype);
  const Array device_x(dtype, x), device_w(dtype, w), device_b(dtype, b), out(dtype, m * n);
  StreamLinear linear(context());
  linear.run_gated(context(), {device_w.matrix(2 * n, k), has_bias ? device_b.data() : nullptr},
                   device_x.matrix(m, k), out.matrix(m, n));
  const auto all = out.download();
  std::vector<float> got;
  std::vector<double> ref;
  for (int i = 0; i < 600; ++i) {
    const int64_t row = i < 2 ? i * (m - 1) : random_int(0, m - 1);
    const int64_t column = i < 2 ? i * (n - 1) : random_int(0, n - 1);
    double gate = has_bias ? b[column] : 0.0, up = has_bias ? b[n + column] : 0.0;
    for (int64_t j = 0; j < k; ++j) {
      gate += double{x[row * k + j]} * w[column * k + j];
      up += double{x[row * k + j]} * w[(n + column) * k + j];
    }
    ref.push_back(gate / (1.0 + std::exp(-gate)) * up);
    got.push_back(all[row * n + column]);
  }
  const std::string name =
      "gated " + std::to_string(m) + "x" + std::to_string(k) + "x" + std::to_string(n);
  // Gate and up are rounded as well as their product.
  expect_close(got, ref, 2 * tolerance_of(dtype), name);
  expect(std::ranges::none_of(all, [](float v) { return std::isnan(v); }), name + ": NaN");
}

CUDA_TEST(stream_gated_matches_reference) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (const int64_t rows : {1, 2, 7, 8, 9, 16, 31, 64}) {
      check_gated(rows, 576, 1536, dtype, rows % 2 == 0);
      check_gated(rows, 1032, 8 * random_int(1, 80), dtype, rows % 2 == 1);
    }
    check_gated(3, 4096, 7168, dtype, false);
    check_gated(64, 4096, 14336, dtype, false);
  }
}

CUDA_TEST(quantize_rows_matches_reference) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (const int64_t columns : {16, 576, 4096, 14336}) {
      const int64_t rows = random_int(1, 40);
      auto values = random_values(rows * columns, dtype, 3.0f);
      std::fill_n(values.begin(), columns, 0.0f);
      const Quantized expected(values, rows, columns);
      const DeviceQuantized got(values, rows, columns, dtype);
      const auto bytes = got.matrix.download();
      int64_t differing = 0;
      for (int64_t i = 0; i < rows * columns; ++i) {
        const int64_t group = i / 16 * 16, place = i % 16;
        const int64_t column = place / 4 * 2 + place % 2 + (place % 4 / 2) * 8;
        differing += bytes[i] != expected.bytes[group + column] ? 1 : 0;
      }
      // The device's quotient may round the other way in the last bit.
      expect(differing <= rows * columns / 1000, "quantize_rows: values");
      expect(got.scales.download() == expected.scales, "quantize_rows: scales");
    }
  }
}

struct Fp8Case {
  int64_t rows, in_features, out_features;
  DType dtype;
  bool has_bias = false;
  bool is_gated = false;
};

// Through StreamLinear, whose activations stay in half precision, or Gemm, whose become fp8 too.
void check_fp8(const Fp8Case& c, Gemm* gemm) {
  const int64_t m = c.rows, k = c.in_features, n = c.out_features;
  const int64_t width = c.is_gated ? 2 * n : n;
  const auto x = random_values(m * k, c.dtype), w = random_values(width * k, c.dtype, 0.05f);
  const auto b = random_values(width, c.dtype);
  const Quantized wq(w, width, k), xq(x, m, k);
  const DeviceQuantized device_w(w, width, k, c.dtype), device_xq(x, m, k, c.dtype);
  const Array device_x(c.dtype, x), device_b(c.dtype, b), out(c.dtype, m * n);
  const LinearOperand operand{device_w.matrix.matrix(width, k),
                              c.has_bias ? device_b.data() : nullptr, device_w.scale_data()};
  StreamLinear stream(context());
  if (gemm != nullptr) {
    gemm->run(context(), operand, device_xq.matrix.matrix(m, k), out.matrix(m, n),
              device_xq.scale_data());
  } else if (c.is_gated) {
    stream.run_gated(context(), operand, device_x.matrix(m, k), out.matrix(m, n));
  } else {
    stream.run(context(), operand, device_x.matrix(m, k), out.matrix(m, n));
  }
  const auto all = out.download();
  const auto product = [&](int64_t row, int64_t column) {
    double sum = c.has_bias ? b[column] : 0.0;
    for (int64_t j = 0; j < k; ++j) {
      sum += (gemm != nullptr ? xq.at(row, j) : double{x[row * k + j]}) * wq.at(column, j);
    }
    return sum;
  };
  std::vector<float> got;
  std::vector<double> ref;
  for (int i = 0; i < 500; ++i) {
    const int64_t row = i < 2 ? i * (m - 1) : random_int(0, m - 1);
    const int64_t column = i < 2 ? i * (n - 1) : random_int(0, n - 1);
    const double first = product(row, column);
    ref.push_back(c.is_gated ? first / (1.0 + std::exp(-first)) * product(row, n + column) : first);
    got.push_back(all[row * n + column]);
  }
  const std::string name = "fp8 " + std::to_string(m) + "x" + std::to_string(k) + "x" +
                           std::to_string(n) + " " + name_of(c.dtype) +
                           (gemm != nullptr ? " gemm" : "") + (c.is_gated ? " gated" : "");
  // The matrix units keep some 14 bits of a sum of fp8 products.
  const double slack = gemm != nullptr ? 2e-3 : 5e-4;
  expect_close(got, ref, 2 * tolerance_of(c.dtype) + slack, name);
  expect(std::ranges::none_of(all, [](float v) { return std::isnan(v); }), name + ": NaN");
}

CUDA_TEST(fp8_linear_matches_reference) {
  Gemm gemm(context());
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (const int64_t rows : {1, 5, 8, 16, 17, 33, 64}) {
      check_fp8({rows, 576, 1536, dtype, rows % 2 == 0}, nullptr);
      check_fp8({rows, 1040, 16 * random_int(1, 40), dtype, rows % 2 == 1, true}, nullptr);
    }
    check_fp8({3, 4096, 6144, dtype}, nullptr);
    check_fp8({16, 14336, 1024, dtype}, nullptr);
    for (const int64_t rows : {65, 100, 256, 513}) {
      check_fp8({rows, 576, 1536, dtype}, &gemm);
      check_fp8({rows, 4096, 512, dtype, true}, &gemm);
    }
  }
}

// Small enough for compute-sanitizer.
CUDA_TEST(small_linears) {
  StreamLinear linear(context());
  for (const int64_t rows : {1, 16, 50, 100}) {
    check_linear({rows, 1032, 70}, linear);
    check_linear({rows, 4096, 260}, linear);
    check_gated(rows, 584, 72, DType::kBFloat16, true);
    if (rows > StreamLinear::kMaxRows) continue;
    check_fp8({rows, 592, 144, DType::kBFloat16, true}, nullptr);
  }
}

CUDA_TEST(gemm_matches_reference) {
  Gemm gemm(context());
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (const int64_t rows : {1, 17, 64, 100, 300, 513, 700, 4200}) {
      check_linear({rows, 576, 960, dtype, dtype}, gemm);
      check_linear({rows, 1536, 576, dtype, dtype, true}, gemm);
      check_linear({rows, 512, 1000, dtype, DType::kFloat32}, gemm);
    }
  }
}

}  // namespace
}  // namespace octavo::cuda::testing
