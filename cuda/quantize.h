// Rows of half-precision values as fp8 (e4m3) with a scale each.
#pragma once

#include "base/tensor_view.h"
#include "cuda/common/device_context.h"

namespace octavo::cuda {

// out[r][...] = x[r][...] / scales[r] with scales[r] = max |x[r]| / 448 (1 for a row of zeros).
// Columns change places in groups of 16, in weights and activations alike: bytes 4 q to 4 q + 3 of
// a group hold columns 2 q, 2 q + 1, 2 q + 8 and 2 q + 9, the order in which a lane of a 16-bit
// matrix instruction wants them. x [R, K] of a half type, rows may be strided; out float8_e4m3 [R,
// K], contiguous; scales [R]. Requires: K and x's row stride multiples of 16.
void quantize_rows(const DeviceContext& context, TensorView x, TensorView out, float* scales);

}  // namespace octavo::cuda
