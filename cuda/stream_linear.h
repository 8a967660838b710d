// Linear layers for few rows, at the speed of reading the weights.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <map>
#include <tuple>

#include "base/tensor_view.h"
#include "cuda/common/device_context.h"
#include "cuda/common/memory.h"
#include "cuda/linear_operand.h"

namespace octavo::cuda {

class StreamLinear {
 public:
  static constexpr int64_t kMaxRows = 64;  // above, cuBLASLt is faster

  explicit StreamLinear(const DeviceContext& context);

  // Whether such rows can be taken: their number, and that the copy engine can address them.
  static bool accepts(TensorView x);

  // out = x weight^T + bias. x [M, K], out [M, N] of x's type or float32; rows of x and out may be
  // strided. Requires: accepts(x), N even.
  void run(const DeviceContext& context, const LinearOperand& weight, TensorView x, TensorView out);

  // out = silu(gate) * up where gate and up are the halves of x weight^T + bias, each rounded to
  // x's type. weight [2 * I, K], out [M, I] of x's type. Requires: accepts(x), I a multiple of 8.
  void run_gated(const DeviceContext& context, const LinearOperand& weight, TensorView x,
                 TensorView out);

 private:
  // Address, rows, columns, row stride, rows of a box, gated.
  using MapKey = std::tuple<const void*, int64_t, int64_t, int64_t, int64_t, bool>;

  struct Call;

  const CUtensorMap& find_map(TensorView matrix, int64_t box_rows, bool is_gated);
  void run_call(const DeviceContext& context, const Call& call);

  std::map<MapKey, CUtensorMap> maps_;
  DeviceMemory partials_;
  DeviceMemory flags_;
};

}  // namespace octavo::cuda
