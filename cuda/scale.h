// Multipliers and soft caps.
#pragma once

#include "base/tensor_view.h"
#include "cuda/common/device_context.h"

namespace octavo::cuda {

// x *= factor. x of a half type or float32, contiguous.
void scale(const DeviceContext& context, TensorView x, float factor);

// x = cap * tanh(x / cap). x float32, contiguous.
void soft_cap(const DeviceContext& context, TensorView x, float cap);

}  // namespace octavo::cuda
