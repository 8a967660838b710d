// Memory for weights, which are loaded once and go with the backend.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "cpu/zero_pages.h"

namespace octavo::cpu {

// Weights of all layers lie side by side in large mappings, so that they share huge pages: the
// hardware prefetcher stops at the end of a page.
class WeightArena {
 public:
  // `size_bytes` of zeros, 64-byte aligned, valid as long as the arena. Safe to call from several
  // threads. Throws OutOfMemoryError.
  std::byte* allocate(int64_t size_bytes);

 private:
  std::mutex mutex_;
  std::vector<ZeroPages> chunks_;
  int64_t chunk_bytes_ = 0;  // of the last chunk
  int64_t used_bytes_ = 0;   // of the last chunk
};

}  // namespace octavo::cpu
