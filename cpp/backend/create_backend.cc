#include <string>

#include "backend/backend.h"
#include "backend/cpu_backend.h"
#include "backend/cuda_backend.h"
#include "base/errors.h"

namespace octavo {

std::unique_ptr<Backend> create_backend(const BackendOptions& options) {
  if (options.device == "cpu") return create_cpu_backend(options);
  if (options.device == "cuda" || options.device.starts_with("cuda:")) {
#if defined(OCTAVO_WITH_CUDA)
    return create_cuda_backend(options);
#else
    throw ConfigError("this build has no CUDA backend: " + options.device);
#endif
  }
  throw ConfigError("unknown device: " + options.device + " (cpu or cuda:<index>)");
}

}  // namespace octavo
