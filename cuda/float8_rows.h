// fp8 weights that a checkpoint brings with a scale a row, into the order of quantize.h.
#pragma once

#include "base/tensor_view.h"
#include "cuda/common/device_context.h"

namespace octavo::cuda {

// Puts `rows`, blocks of kFloat8Rows on the device, into rows [row_begin, row_begin + rows.rows())
// of `matrix`, float8_e4m3, and their scales into `scales` [N].
void pack_float8_rows(const DeviceContext& context, TensorView rows, int64_t row_begin,
                      TensorView matrix, float* scales);

}  // namespace octavo::cuda
