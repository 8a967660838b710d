// A test runner without dependencies, for machines that have a GPU and little else: named cases,
// device arrays, random values, comparison with a reference.
#pragma once

#include <cuda_runtime_api.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "base/tensor_view.h"
#include "cuda/common/device_context.h"
#include "cuda/common/memory.h"
#include "cuda/common/stream.h"

namespace octavo::cuda::testing {

// Registered cases; see CUDA_TEST.
struct Case {
  const char* name;
  void (*run)();
};
std::vector<Case>& cases();
struct Registration {
  Registration(const char* name, void (*run)()) { cases().push_back({name, run}); }
};
#define CUDA_TEST(name)                                                         \
  static void name();                                                           \
  static const ::octavo::cuda::testing::Registration name##_case(#name, &name); \
  static void name()

// Counts a failure of the running case and prints it.
void fail(const std::string& what);
inline void expect(bool holds, const std::string& what) {
  if (!holds) fail(what);
}

// The context that the cases share; synchronise before reading results.
const DeviceContext& context();
void synchronize();

inline float from_bits(uint16_t bits, DType dtype) {
  if (dtype == DType::kBFloat16) return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  return static_cast<float>(std::bit_cast<_Float16>(bits));
}
inline uint16_t to_bits(float value, DType dtype) {
  if (dtype == DType::kFloat16) return std::bit_cast<uint16_t>(static_cast<_Float16>(value));
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
// The value that storing in `dtype` leaves.
float rounded(float value, DType dtype);

// Values of any floating type on the device, as floats on the host.
class Array {
 public:
  // Poisoned: every element is NaN.
  Array(DType dtype, int64_t size);
  Array(DType dtype, const std::vector<float>& values);

  void upload(const std::vector<float>& values);
  std::vector<float> download() const;

  void* data() const { return memory_.data(); }
  DType dtype() const { return dtype_; }
  TensorView matrix(int64_t rows, int64_t cols) const {
    return TensorView::matrix(memory_.data(), dtype_, rows, cols);
  }

 private:
  DType dtype_;
  int64_t size_;
  DeviceMemory memory_;
};

template <typename T>
DeviceMemory upload(const std::vector<T>& values) {
  DeviceMemory memory(static_cast<int64_t>(values.size() * sizeof(T)));
  check_cuda(
      cudaMemcpy(memory.data(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  check_cuda(cudaDeviceSynchronize());  // a copy from pageable memory may still be on its way
  return memory;
}

// The generator of all cases; its seed is an argument of the program.
std::mt19937_64& generator();
int64_t random_int(int64_t low, int64_t high);  // inclusive
// Normal values, rounded to `dtype`.
std::vector<float> random_values(int64_t size, DType dtype, float scale = 1.0f);

// Fails unless |out - ref| / |ref| (Euclidean) is at most `tolerance` and no element is NaN.
void expect_close(const std::vector<float>& out, const std::vector<double>& ref, double tolerance,
                  const std::string& what);
// Tolerance of a result rounded once to `dtype` after accumulation in float32.
inline double tolerance_of(DType dtype) {
  if (dtype == DType::kBFloat16) return 4e-3;
  return dtype == DType::kFloat16 ? 6e-4 : 2e-5;
}
inline const char* name_of(DType dtype) { return dtype_info(dtype).name.data(); }

}  // namespace octavo::cuda::testing
