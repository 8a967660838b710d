// Random device memory: kernels are never timed on zeros, which run faster than data.
#pragma once

#include <cstdint>

#include "cuda/common/memory.h"

namespace octavo::cuda::bench {

static __global__ void fill_halves(uint16_t* out, int64_t count) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += stride) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u ^ static_cast<uint32_t>(i >> 32);
    x ^= x >> 15;
    x *= 2246822519u;
    x ^= x >> 13;
    // Random sign and mantissa; exponents of values around 0.01 in bf16 and 1 in fp16.
    out[i] = static_cast<uint16_t>((x & 0x807f) | 0x3c00 | (x >> 8 & 0x80));
  }
}

static __global__ void fill_floats(float* out, int64_t count, float scale) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += stride) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u;
    x ^= x >> 16;
    x *= 2246822519u;
    x ^= x >> 13;
    // The sum of four bytes: near normal.
    const int sum = static_cast<int>(x & 255) + (x >> 8 & 255) + (x >> 16 & 255) + (x >> 24);
    out[i] = scale * (static_cast<float>(sum) - 510.0f) / 148.0f;
  }
}

// Memory of `count` halves whose bf16 and fp16 readings are small and finite.
inline DeviceMemory random_halves(int64_t count) {
  DeviceMemory memory(count * 2);
  fill_halves<<<1024, 256>>>(memory.as<uint16_t>(), count);
  check_cuda(cudaGetLastError());
  check_cuda(cudaDeviceSynchronize());
  return memory;
}

}  // namespace octavo::cuda::bench
