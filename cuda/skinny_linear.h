// Linear layers for few rows.
#pragma once

#include "base/tensor_view.h"
#include "cuda/common/device_context.h"

namespace octavo::cuda {

inline constexpr int kMaxSkinnyRows = 16;

// out = x weight^T + bias. weight [N, K] and bias [N] (or null) of x's half type; x [M, K], out
// [M, N] of that type or float32; rows of x and out may be strided.
// Requires: M <= kMaxSkinnyRows, K and x's row stride multiples of 8.
void skinny_linear(const DeviceContext& context, TensorView weight, const void* bias, TensorView x,
                   TensorView out);

}  // namespace octavo::cuda
