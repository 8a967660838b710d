// The first kernel of a step: see Backend::unpack_inputs.
#pragma once

#include "backend/backend.h"
#include "cuda/common/device_context.h"

namespace octavo::cuda {

// `drawn_ids` [max slots]: the token last drawn in each slot.
void unpack_inputs(const DeviceContext& context, const PackedInputs& packed,
                   const int32_t* drawn_ids, const ForwardArrays& arrays);

}  // namespace octavo::cuda
