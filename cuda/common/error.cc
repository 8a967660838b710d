#include "cuda/common/error.h"

#include <string>

#include "base/errors.h"

namespace octavo::cuda {
namespace {

// Errors after which every later call on the context fails, as the runtime's documentation has it.
bool is_sticky(cudaError_t status) {
  switch (status) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContextIsDestroyed:
    case cudaErrorDevicesUnavailable:
    case cudaErrorUnknown:
      return true;
    default:
      return false;
  }
}

}  // namespace

void throw_cuda_error(cudaError_t status, const std::source_location& where) {
  cudaGetLastError();  // an error that is not sticky must not surface again at the next check
  const std::string message = std::string(where.file_name()) + ":" + std::to_string(where.line()) +
                              ": " + cudaGetErrorString(status);
  if (status == cudaErrorMemoryAllocation) throw OutOfMemoryError(message);
  throw DeviceError(message.c_str(), is_sticky(status));
}

}  // namespace octavo::cuda
