// Any bytes as a GGUF file: a CheckpointError or UnsupportedModelError, or tensors whose every
// byte can be read.
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/errors.h"
#include "checkpoint/gguf_file.h"

namespace {

constexpr int64_t kMaxTensorBytes = 1 << 20;

void read_all(const octavo::GgufFile& file) {
  for (const octavo::GgufTensor& tensor : file.tensors()) {
    if (file.find(tensor.name) == nullptr) __builtin_trap();
    if (tensor.num_bytes > file.size_bytes()) __builtin_trap();
    if (tensor.num_bytes > kMaxTensorBytes) continue;
    std::vector<std::byte> bytes(tensor.num_bytes);
    file.read_tensor(tensor, 0, bytes);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const int fd = memfd_create("fuzz", MFD_CLOEXEC);
  if (fd < 0 || write(fd, data, size) != static_cast<ssize_t>(size)) __builtin_trap();
  try {
    read_all(octavo::GgufFile("/proc/self/fd/" + std::to_string(fd)));
  } catch (const octavo::CheckpointError&) {
  } catch (const octavo::UnsupportedModelError&) {
  }
  close(fd);
  return 0;
}
