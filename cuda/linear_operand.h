// The weight of a linear layer as kernels see it.
#pragma once

#include "base/tensor_view.h"

namespace octavo::cuda {

// `matrix` [N, K] is of a half type; or float8_e4m3 in the order of quantize.h with a scale a row;
// or of a type kInt4G* or kFloat8Blocks, in the units of coded_units.h. `bias` [N] is of the
// activations' type, or null.
struct LinearOperand {
  TensorView matrix;
  const void* bias = nullptr;
  const float* scales = nullptr;  // [N], of a float8_e4m3 matrix
};

// Whether a matrix lies in units.
constexpr bool has_units(DType dtype) { return is_int4(dtype) || dtype == DType::kFloat8Blocks; }

}  // namespace octavo::cuda
