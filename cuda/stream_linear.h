// Linear layers for few rows, at the speed of reading the weights.
#pragma once

#include <cstdint>

#include "base/tensor_view.h"
#include "cuda/common/device_context.h"
#include "cuda/common/memory.h"
#include "cuda/linear_operand.h"
#include "cuda/stream_maps.h"

namespace octavo::cuda {

class StreamLinear {
 public:
  static constexpr int64_t kMaxRows = 128;
  // Up to so many it is faster than cuBLASLt: bench/results/2026-11-22-cuda-kernels.md. Between the
  // two they have not been compared.
  static constexpr int64_t kFasterRows = 64;
  static constexpr int64_t kMaxFp8Rows = 64;  // of fp8 weights: above, activations become fp8 too

  explicit StreamLinear(const DeviceContext& context);

  // Whether such rows can be taken: their number, and that the copy engine can address them.
  static bool accepts(const LinearOperand& weight, TensorView x);

  // out = x weight^T + bias. x [M, K], out [M, N] of x's type or float32; rows of x and out may be
  // strided. Requires: accepts(weight, x), N even.
  void run(const DeviceContext& context, const LinearOperand& weight, TensorView x, TensorView out);

  // out = silu(gate) * up where gate and up are the halves of x weight^T + bias, each rounded to
  // x's type. weight [2 * I, K], out [M, I] of x's type. Requires: accepts(weight, x), I a
  // multiple of 8.
  void run_gated(const DeviceContext& context, const LinearOperand& weight, TensorView x,
                 TensorView out);

 private:
  struct Call;

  void run_call(const DeviceContext& context, const Call& call);

  StreamMapCache maps_;
  DeviceMemory partials_;
  DeviceMemory flags_;
};

}  // namespace octavo::cuda
