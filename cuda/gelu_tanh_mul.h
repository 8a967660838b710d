// The gated activation of Gemma's MLP.
#pragma once

#include "base/tensor_view.h"
#include "cuda/common/device_context.h"

namespace octavo::cuda {

// out = gelu(gate) * up in the tanh approximation. gate_up [T, 2 * intermediate], gate first; out
// [T, intermediate]; one half type. Requires: intermediate a multiple of 8.
void gelu_tanh_mul(const DeviceContext& context, TensorView gate_up, TensorView out);

}  // namespace octavo::cuda
