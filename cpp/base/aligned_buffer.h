// Owned host memory aligned for vector loads, or for huge pages when it is large.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace octavo {

// Uninitialised bytes, 64-byte aligned; from 4 MiB on 2 MiB aligned and advised to huge pages.
// Throws std::bad_alloc.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(int64_t size_bytes) : size_bytes_(size_bytes) {
    if (size_bytes <= 0) return;
    const bool huge = size_bytes >= kHugeThresholdBytes;
    const int64_t alignment = huge ? kHugePageBytes : kVectorBytes;
    const int64_t rounded = (size_bytes + alignment - 1) / alignment * alignment;
    data_.reset(std::aligned_alloc(alignment, rounded));
    if (data_ == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    if (huge) madvise(data_.get(), rounded, MADV_HUGEPAGE);
#endif
  }

  template <typename T = std::byte>
  T* as() const {
    return static_cast<T*>(data_.get());
  }
  void* data() const { return data_.get(); }
  int64_t size_bytes() const { return size_bytes_; }

 private:
  static constexpr int64_t kVectorBytes = 64;
  static constexpr int64_t kHugePageBytes = int64_t{2} << 20;
  static constexpr int64_t kHugeThresholdBytes = int64_t{4} << 20;

  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> data_;
  int64_t size_bytes_ = 0;
};

}  // namespace octavo
