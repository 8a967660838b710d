// Linear layers for many rows whose weights have no form that cuBLASLt takes: four bits, or fp8
// with a scale for a block of columns.
#pragma once

#include "base/tensor_view.h"
#include "cuda/common/device_context.h"
#include "cuda/common/memory.h"
#include "cuda/cublas_lt.h"
#include "cuda/linear_operand.h"

namespace octavo::cuda {

class CodedGemm {
 public:
  // out = x weight^T + bias: rows of the weight are decoded to x's type, as many as stay in the L2
  // cache, multiplied by `gemm`, and so on. x [M, K] and out [M, N] of one half type, rows may be
  // strided. Requires: has_units(weight).
  void run(const DeviceContext& context, Gemm& gemm, const LinearOperand& weight, TensorView x,
           TensorView out);

 private:
  DeviceMemory decoded_;  // taken by the first call
};

}  // namespace octavo::cuda
