// What every operation needs to know of where it runs.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace octavo::cuda {

struct DeviceContext {
  int device = 0;
  int num_sms = 0;
  cudaStream_t stream = nullptr;
  bool batch_invariant = false;
};

}  // namespace octavo::cuda
