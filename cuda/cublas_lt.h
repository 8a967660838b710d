// Matrix products by cuBLASLt, loaded at run time. Never linked: a process that also runs torch
// must use the library that torch uses.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <tuple>

#include "base/tensor_view.h"
#include "cuda/common/device_context.h"
#include "cuda/common/memory.h"
#include "cuda/linear_operand.h"

namespace octavo::cuda {

class CublasLtLibrary;

class Gemm {
 public:
  // Looks for a library that is loaded already, then in the CUDA packages beside this module, then
  // on the system. Throws ConfigError when there is none.
  explicit Gemm(const DeviceContext& context);
  ~Gemm();

  // out = x weight^T + bias. x [M, K] of the matrix's type; out [M, N] of x's type or, without
  // bias, float32; rows of x and out may be strided. With an fp8 matrix x is fp8 too, `x_scales`
  // [M] holds its scales, out is of a half type, and K and N are multiples of 16.
  void run(const DeviceContext& context, const LinearOperand& weight, TensorView x, TensorView out,
           const float* x_scales = nullptr);

 private:
  struct Product;
  // Rows (rounded up above 512), N, K, row strides and types of x and out, bias.
  using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, DType, DType, bool>;

  void run_piece(const DeviceContext& context, const LinearOperand& weight, TensorView x,
                 TensorView out, const float* x_scales);
  Product& find_product(const DeviceContext& context, const LinearOperand& weight, TensorView x,
                        TensorView out);

  std::unique_ptr<CublasLtLibrary> library_;
  DeviceMemory workspace_;
  std::map<Key, std::unique_ptr<Product>> products_;
};

}  // namespace octavo::cuda
