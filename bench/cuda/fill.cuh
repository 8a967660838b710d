// Random device memory.
#pragma once

#include <cstdint>

#include "cuda/common/memory.h"

namespace octavo::cuda::bench {

// Near normal: the sum of four random bytes.
__device__ inline float random_normal(uint64_t i) {
  uint32_t x = static_cast<uint32_t>(i) * 2654435761u ^ static_cast<uint32_t>(i >> 32);
  x ^= x >> 16;
  x *= 2246822519u;
  x ^= x >> 13;
  const uint32_t sum = (x & 255) + (x >> 8 & 255) + (x >> 16 & 255) + (x >> 24);
  return (static_cast<float>(sum) - 510.0f) / 148.0f;
}

// bf16 values of deviation `scale`.
static __global__ void fill_halves(uint16_t* out, int64_t count, float scale = 0.02f) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += stride) {
    out[i] = static_cast<uint16_t>(__float_as_uint(scale * random_normal(i)) >> 16);
  }
}

static __global__ void fill_floats(float* out, int64_t count, float scale) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += stride) {
    out[i] = scale * random_normal(i);
  }
}

// Memory of `count` bf16 values. Kernels are never timed on zeros, which run faster than data.
inline DeviceMemory random_halves(int64_t count, float scale = 0.02f) {
  DeviceMemory memory(count * 2);
  fill_halves<<<1024, 256>>>(memory.as<uint16_t>(), count, scale);
  check_cuda(cudaGetLastError());
  check_cuda(cudaDeviceSynchronize());
  return memory;
}

}  // namespace octavo::cuda::bench
