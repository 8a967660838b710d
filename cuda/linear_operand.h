// The weight of a linear layer as kernels see it.
#pragma once

#include "base/tensor_view.h"

namespace octavo::cuda {

// `matrix` [N, K] of a half type, or float8_e4m3 in the order of quantize.h with a scale a row;
// `bias` [N] of the activations' type, or null.
struct LinearOperand {
  TensorView matrix;
  const void* bias = nullptr;
  const float* scales = nullptr;  // [N], of an fp8 matrix
};

}  // namespace octavo::cuda
