// What every operation needs to know of where it runs.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string_view>

namespace octavo::cuda {

struct DeviceContext {
  int device = 0;
  int num_sms = 0;
  cudaStream_t stream = nullptr;
  bool batch_invariant = false;
  int compute_capability = 0;  // 90 for 9.0
  int shared_bytes_per_sm = 0;
  bool is_hopper = false;  // the kernels for sm_90a run here; the others run from sm_80 on

  // Whether this build has kernels for the device.
  bool is_supported() const;
};

// The index in "cuda:<index>"; 0 for "cuda". Makes that device current. Throws ConfigError for an
// unknown name or an absent device, DeviceError.
int select_device(std::string_view name);

// The context of a device, without a stream. Throws DeviceError.
DeviceContext describe_device(int device);

}  // namespace octavo::cuda
