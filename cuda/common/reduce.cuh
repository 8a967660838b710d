// Sums, maxima and scans over a warp or a block, in a fixed order.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace octavo::cuda {

inline constexpr int kWarpSize = 32;
inline constexpr uint32_t kFullMask = 0xffffffffu;

struct Sum {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};

// Every lane gets the result.
template <typename Op, typename T>
__device__ inline T warp_reduce(T v, Op op) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    v = op(v, __shfl_xor_sync(kFullMask, v, offset));
  }
  return v;
}

// Every thread gets the result. `scratch` holds one T a warp; it may be used again after return.
template <typename Op, typename T>
__device__ inline T block_reduce(T v, Op op, T* scratch) {
  const int warp = threadIdx.x / kWarpSize;
  const int num_warps = (blockDim.x + kWarpSize - 1) / kWarpSize;
  v = warp_reduce(v, op);
  if (threadIdx.x % kWarpSize == 0) scratch[warp] = v;
  __syncthreads();
  v = scratch[0];
  for (int i = 1; i < num_warps; ++i) v = op(v, scratch[i]);
  __syncthreads();
  return v;
}

// Sum of v over the threads before this one; `total` gets the sum over the block.
// Requires: blockDim.x a multiple of 32; `scratch` holds one T a warp.
template <typename T>
__device__ inline T block_exclusive_scan(T v, T* scratch, T* total) {
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  T inclusive = v;
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const T below = __shfl_up_sync(kFullMask, inclusive, offset);
    if (lane >= offset) inclusive += below;
  }
  if (lane == kWarpSize - 1) scratch[warp] = inclusive;
  __syncthreads();
  T before = 0;
  T sum = 0;
  for (int i = 0; i < static_cast<int>(blockDim.x) / kWarpSize; ++i) {
    if (i < warp) before += scratch[i];
    sum += scratch[i];
  }
  __syncthreads();
  *total = sum;
  return before + inclusive - v;
}

}  // namespace octavo::cuda
