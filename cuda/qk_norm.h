// Norms of queries and keys.
#pragma once

#include "backend/backend.h"
#include "cuda/common/device_context.h"

namespace octavo::cuda {

// See Backend::qk_norm. Requires: runs are multiples of 8 elements.
void qk_norm(const DeviceContext& context, TensorView qkv, const QkNorm& norm,
             const AttentionParams& params);

}  // namespace octavo::cuda
