// Root-mean-square normalisation, alone and fused with the residual addition before it.
#pragma once

#include "base/tensor_view.h"
#include "cuda/common/device_context.h"

namespace octavo::cuda {

// out[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight. x [T, hidden] (rows may be strided) of a half
// type or float32; out [T, hidden] of a half type; weight float32 [hidden].
// Requires: hidden a multiple of 8, at most 16384.
void rms_norm(const DeviceContext& context, TensorView x, const float* weight, float eps,
              TensorView out);

// residual += delta, rounded to its type; out = rms_norm(residual). delta has out's type.
void add_rms_norm(const DeviceContext& context, TensorView residual, TensorView delta,
                  const float* weight, float eps, TensorView out);

// residual += delta.
void add(const DeviceContext& context, TensorView residual, TensorView delta);

}  // namespace octavo::cuda
