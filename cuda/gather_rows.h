// Selects rows of a matrix.
#pragma once

#include <cstdint>

#include "base/tensor_view.h"
#include "cuda/common/device_context.h"

namespace octavo::cuda {

// out[i] = x[indices[i]]. x [T, hidden], out [n, hidden], one type; indices int32 [n].
// Requires: rows of a multiple of 16 bytes.
void gather_rows(const DeviceContext& context, TensorView x, const int32_t* indices,
                 TensorView out);

}  // namespace octavo::cuda
