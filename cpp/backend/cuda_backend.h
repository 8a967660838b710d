// The factory that cuda/ provides to create_backend() in builds with CUDA.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace octavo {

// Requires: options.device is "cuda" or "cuda:<index>". Throws ConfigError when that device is
// absent.
std::unique_ptr<Backend> create_cuda_backend(const BackendOptions& options);

// Devices that can be used now: 0 without a driver, or with one that is too old.
int num_cuda_devices();

}  // namespace octavo
