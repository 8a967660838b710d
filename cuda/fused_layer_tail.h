// What follows attention in a layer, for few rows, as one kernel at the speed of reading the
// weights.
#pragma once

#include <cstdint>

#include "base/tensor_view.h"
#include "cuda/common/device_context.h"
#include "cuda/common/memory.h"
#include "cuda/linear_operand.h"
#include "cuda/stream_maps.h"

namespace octavo::cuda {

// Views of T rows, contiguous; see Backend::finish_layer.
struct LayerTailCall {
  LinearOperand output;
  LinearOperand gate_up;
  LinearOperand down;
  LinearOperand next;               // without a matrix: none
  const float* mlp_norm = nullptr;  // float32 [hidden]
  const float* next_norm = nullptr;
  float eps = 0.0f;
  TensorView attended;  // [T, attended]
  TensorView residual;  // [T, hidden]
  TensorView normed;    // [T, hidden]
  TensorView gated;     // [T, I]
  TensorView next_out;  // [T, N] where there is a next linear

  bool has_next() const { return next.matrix.data != nullptr; }
};

class FusedLayerTail {
 public:
  static constexpr int64_t kMaxRows = 128;
  static constexpr int64_t kMaxFp8Rows = 64;  // with fp8 weights

  explicit FusedLayerTail(const DeviceContext& context);

  // bfloat16, weights of one kind (all bfloat16 or all fp8), at most so many rows, sizes that are
  // multiples of 8.
  static bool accepts(const LayerTailCall& call);

  // residual += attended output^T; residual += down(silu(gate) * up) of norm(residual); then, with
  // a next linear, next_out = norm(residual) next^T and normed is scratch; without one normed =
  // norm(residual). The first norm takes mlp_norm, the second next_norm. Requires: accepts(call).
  void run(const DeviceContext& context, const LayerTailCall& call);

 private:
  StreamMapCache maps_;
  DeviceMemory partials_;
  DeviceMemory squares_;
  DeviceMemory counters_;
};

}  // namespace octavo::cuda
