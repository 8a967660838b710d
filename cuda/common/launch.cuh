// Kernel launches with programmatic dependent launch: a kernel may become resident while the one
// before it drains. Every kernel launched here calls wait_for_previous_kernel() before it touches
// what kernels of this step write, and allow_next_kernel() as early as it can. Before the wait it
// may read weights, the arrays that were copied to the device ahead of the step, and what a kernel
// launched with overlap = false stands behind: that one has seen all before it finish.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "cuda/common/error.h"

namespace octavo::cuda {

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  int cluster = 1;      // blocks of a cluster along x
  bool overlap = true;  // programmatic dependent launch
};

// Whether the current device overlaps launches. Only asked where the build is for older ones too.
inline bool can_overlap() {
#ifdef OCTAVO_CUDA_BEFORE_SM90
  int device = 0;
  int major = 0;
  check_cuda(cudaGetDevice(&device));
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  return major >= 9;
#else
  return true;
#endif
}

template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), const LaunchShape& shape, cudaStream_t stream,
            Args&&... args) {
  constexpr size_t kDefaultSharedLimit = 40 << 10;  // 48 KiB less what kernels declare
  if (shape.shared_bytes > kDefaultSharedLimit) {
    check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                    cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shape.shared_bytes)));
  }
  cudaLaunchAttribute attributes[2];
  unsigned count = 0;
  if (shape.overlap && can_overlap()) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
  }
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...));
}

// Blocks until the kernel before this one has finished and its writes are visible.
__device__ inline void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel become resident once every block has come this far.
__device__ inline void allow_next_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace octavo::cuda
