// Token embedding.
#pragma once

#include <cstdint>

#include "base/tensor_view.h"
#include "cuda/common/device_context.h"

namespace octavo::cuda {

// out[t] = table[token_ids[t]]. table [vocab, hidden] of a half type; out [T, hidden] of the same
// type or float32; token_ids int32 [T], each in [0, vocab). Requires: hidden a multiple of 8.
void embed(const DeviceContext& context, TensorView table, const int32_t* token_ids,
           TensorView out);

}  // namespace octavo::cuda
