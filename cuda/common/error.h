// CUDA status codes as the engine's errors.
#pragma once

#include <cuda_runtime_api.h>

#include <source_location>

namespace octavo::cuda {

// Throws OutOfMemoryError for a failed allocation, otherwise DeviceError, sticky when the CUDA
// context is lost.
[[noreturn]] void throw_cuda_error(cudaError_t status, const std::source_location& where);

inline void check_cuda(cudaError_t status,
                       const std::source_location& where = std::source_location::current()) {
  if (status != cudaSuccess) [[unlikely]] {
    throw_cuda_error(status, where);
  }
}

}  // namespace octavo::cuda
