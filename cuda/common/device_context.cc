#include "cuda/common/device_context.h"

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
