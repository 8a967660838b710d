// Small copies to the device that do not hold the host up.
#pragma once

#include <array>
#include <cstring>

#include "cuda/common/memory.h"
#include "cuda/common/stream.h"

namespace octavo::cuda {

// A ring of pinned slots: the host's data is free again on return, while the copy is still to run.
// Slots grow to the largest copy seen.
class StagingRing {
 public:
  void copy(void* device, const void* host, int64_t size_bytes, cudaStream_t stream) {
    Slot& slot = slots_[next_];
    next_ = (next_ + 1) % slots_.size();
    slot.sent.synchronize();
    if (slot.memory.size_bytes() < size_bytes) slot.memory = PinnedMemory(2 * size_bytes);
    std::memcpy(slot.memory.as(), host, size_bytes);
    check_cuda(
        cudaMemcpyAsync(device, slot.memory.as(), size_bytes, cudaMemcpyHostToDevice, stream));
    slot.sent.record(stream);
  }

 private:
  struct Slot {
    PinnedMemory memory{kInitialBytes};
    Event sent;
  };
  static constexpr int64_t kInitialBytes = 64 << 10;

  std::array<Slot, 4> slots_;
  size_t next_ = 0;
};

}  // namespace octavo::cuda
