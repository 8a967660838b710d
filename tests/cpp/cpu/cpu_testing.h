// What the tests of the CPU backend share: instruction sets to run on, random data, bit equality.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "cpu/cpu_features.h"

namespace octavo::cpu {

inline float round_to_bfloat16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return std::bit_cast<float>((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000u);
}

inline float round_to_float16(float x) { return static_cast<float>(static_cast<_Float16>(x)); }

inline float round_to(DType dtype, float x) {
  if (dtype == DType::kBFloat16) return round_to_bfloat16(x);
  if (dtype == DType::kFloat16) return round_to_float16(x);
  return x;
}

// A key or value as the cache keeps it; int8 has steps of 1/127 of the greatest magnitude.
inline std::vector<float> as_cached(DType dtype, const float* x, int64_t size) {
  std::vector<float> out(x, x + size);
  float greatest = 0.0f;
  for (const float v : out) greatest = std::max(greatest, std::abs(v));
  for (float& v : out) {
    const float step = greatest / 127.0f, factor = greatest > 0 ? 1.0f / step : 0.0f;
    v = dtype == DType::kInt8 ? std::nearbyint(v * factor) * step : round_to(dtype, v);
  }
  return out;
}

// Normal with the given standard deviation.
inline std::vector<float> random_floats(int64_t count, uint32_t seed, float deviation = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

// A weight of a quantised type: every quant occurs, and the halves among its bytes are small
// numbers of both signs.
inline std::vector<uint16_t> random_bits(DType dtype, int64_t num_elements, uint32_t seed) {
  std::mt19937 generator(seed);
  std::vector<uint16_t> bits(dtype_bytes(dtype, num_elements) / 2);
  for (uint16_t& b : bits) b = static_cast<uint16_t>(generator() & 0xA7FF);
  return bits;
}

inline TensorView matrix(std::vector<float>& data, int64_t rows, int64_t cols) {
  return TensorView::matrix(data.data(), DType::kFloat32, rows, cols);
}

inline BackendOptions backend_options(const std::string& isa, DType weight_dtype,
                                      int32_t num_threads = 2) {
  BackendOptions options;
  options.cpu_isa = isa;
  options.weight_dtype = weight_dtype;
  options.num_threads = num_threads;
  return options;
}

inline WeightView float_view(const std::vector<float>& data, int64_t rows, int64_t cols) {
  return {data.data(), DType::kFloat32, rows, cols};
}

inline std::unique_ptr<LinearWeight> make_linear(Backend& backend, const std::vector<float>& data,
                                                 int64_t rows, int64_t cols) {
  auto weight = backend.create_linear(rows, cols, false);
  backend.load_rows(*weight, 0, float_view(data, rows, cols));
  return weight;
}

// Equal to the last bit.
inline testing::AssertionResult same_bits(const std::vector<float>& a,
                                          const std::vector<float>& b) {
  if (a.size() != b.size()) return testing::AssertionFailure() << a.size() << " != " << b.size();
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i])) {
      return testing::AssertionFailure() << "element " << i << ": " << a[i] << " != " << b[i];
    }
  }
  return testing::AssertionSuccess();
}

// A test that runs once for each instruction set, skipped where the processor lacks it.
class EachIsa : public testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (!is_supported(GetParam())) GTEST_SKIP() << "no " << isa() << " here";
  }
  static std::string isa() { return std::string(isa_name(GetParam())); }
  static bool rounds_activations() { return GetParam() != Isa::kAvx2; }
};

inline std::string isa_test_name(const testing::TestParamInfo<Isa>& info) {
  return std::string(isa_name(info.param));
}

#define OCTAVO_TEST_EACH_ISA(Suite)                                                          \
  INSTANTIATE_TEST_SUITE_P(Isa, Suite, testing::Values(Isa::kAvx2, Isa::kAvx512, Isa::kAmx), \
                           isa_test_name)

}  // namespace octavo::cpu
