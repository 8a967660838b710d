// The gated activation of the MLP.
#pragma once

#include "base/tensor_view.h"
#include "cuda/common/device_context.h"

namespace octavo::cuda {

// out = silu(gate) * up. gate_up [T, 2 * intermediate], gate first; out [T, intermediate]; one
// half type. Requires: intermediate a multiple of 8.
void silu_mul(const DeviceContext& context, TensorView gate_up, TensorView out);

}  // namespace octavo::cuda
