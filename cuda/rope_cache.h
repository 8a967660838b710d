// Rotary position embedding, and the write of keys and values into the paged cache.
#pragma once

#include "backend/backend.h"
#include "cuda/common/device_context.h"
#include "cuda/kv_cache.h"

namespace octavo::cuda {

// Rotates q and k of qkv [T, (num_q_heads + 2 num_kv_heads) * head_dim] in place, then writes k
// and v to inputs.slot_mapping of `layer`. A negative slot writes nothing.
// Requires: head_dim a multiple of 4, rope.rotary_dim a multiple of 4.
void rope_and_cache(const DeviceContext& context, TensorView qkv, const RopeTable& rope,
                    const ForwardInputs& inputs, const AttentionParams& params,
                    const KVLayer& layer);

}  // namespace octavo::cuda
