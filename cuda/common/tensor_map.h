// Descriptors for the bulk tensor copy engine.
#pragma once

#include <cuda.h>

#include <array>
#include <cstdint>
#include <optional>

#include "base/dtype.h"

namespace octavo::cuda {

// A tensor in device memory and the box of it that one copy takes; dimension 0 is contiguous.
// Boxes lie in shared memory with the 128-byte swizzle, so box[0] elements are 128 bytes; what lies
// outside of the tensor arrives as zeros.
struct TensorBox {
  const void* data = nullptr;
  DType dtype = DType::kBFloat16;  // bfloat16, float16 or float8_e4m3
  int rank = 2;
  std::array<int64_t, 4> sizes{};
  std::array<int64_t, 4> strides{};  // in elements; strides[0] is 1
  std::array<int64_t, 4> box{};
};

// Nothing where the engine cannot address the tensor, or the driver is too old to know it.
// Requires: data 16-byte aligned, strides multiples of 16 bytes.
std::optional<CUtensorMap> make_tensor_map(const TensorBox& tensor);

}  // namespace octavo::cuda
