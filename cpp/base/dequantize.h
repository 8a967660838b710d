// From any checkpoint type to float32, exactly as the format defines the value.
#pragma once

#include <cstdint>

#include "base/dtype.h"

namespace octavo {

// Writes `num_elements` values of `source` (blocks laid end to end) to `out`.
// Requires: num_elements is a multiple of dtype_info(dtype).block_elements; kInt* are refused.
void dequantize(DType dtype, const void* source, int64_t num_elements, float* out);

}  // namespace octavo
