#include "cuda/common/device_context.h"

#include <charconv>
#include <string>
#include <system_error>

#include "base/errors.h"
#include "cuda/common/error.h"

namespace octavo::cuda {
namespace {

#ifdef OCTAVO_CUDA_SM90A
constexpr bool kHasSm90a = true;
#else
constexpr bool kHasSm90a = false;
#endif
#ifdef OCTAVO_CUDA_BEFORE_SM90
constexpr bool kHasOlder = true;  // as PTX too, so for newer GPUs as well
#else
constexpr bool kHasOlder = false;
#endif

}  // namespace

bool DeviceContext::is_supported() const {
  return is_hopper || (kHasOlder && compute_capability >= 80);
}

int select_device(std::string_view name) {
  int index = 0;
  const std::string_view digits = name.starts_with("cuda:") ? name.substr(5) : "0";
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), index);
  if (error != std::errc() || end != digits.data() + digits.size() || index < 0) {
    throw ConfigError("unknown device: " + std::string(name));
  }
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    cudaGetLastError();
    throw ConfigError("no CUDA device: " + std::string(cudaGetErrorString(status)) +
                      "; --device cpu runs without one");
  }
  if (index >= count) {
    throw ConfigError(std::string(name) + " is absent: there are " + std::to_string(count) +
                      " CUDA devices");
  }
  check_cuda(cudaSetDevice(index));
  return index;
}

DeviceContext describe_device(int device) {
  const auto get = [device](cudaDeviceAttr attribute) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, attribute, device));
    return value;
  };
  DeviceContext context;
  context.device = device;
  context.num_sms = get(cudaDevAttrMultiProcessorCount);
  context.compute_capability =
      10 * get(cudaDevAttrComputeCapabilityMajor) + get(cudaDevAttrComputeCapabilityMinor);
  context.shared_bytes_per_sm = get(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  context.is_hopper = kHasSm90a && context.compute_capability == 90;
  return context;
}

}  // namespace octavo::cuda
