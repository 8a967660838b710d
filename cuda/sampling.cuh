// What the two sampling kernels share.
#pragma once

#include <cstdint>

#include "cuda/common/mma.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/sampling.h"

namespace octavo::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;

// exp((logit - maximum) * scale); 0 for a banned logit.
__device__ inline float sample_weight(float logit, float maximum, float scale) {
  return logit == -INFINITY ? 0.0f : exp2_fast((logit - maximum) * (scale * kLog2E));
}

// Orders like the floats.
__device__ inline uint32_t ordered_key(float v) {
  const uint32_t bits = __float_as_uint(v);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ inline float from_ordered_key(uint32_t key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key ^ 0x80000000u : ~key);
}

}  // namespace octavo::cuda
