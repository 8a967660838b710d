// Memory that reads as zeros and takes physical pages only where it has been written.
#pragma once

#include <cstddef>
#include <cstdint>

namespace octavo::cpu {

// An anonymous private mapping, advised to huge pages when large.
class ZeroPages {
 public:
  ZeroPages() = default;
  // Throws OutOfMemoryError when the address space is refused.
  explicit ZeroPages(int64_t size_bytes);
  ~ZeroPages();
  ZeroPages(ZeroPages&& other) noexcept;
  ZeroPages& operator=(ZeroPages&& other) noexcept;

  std::byte* data() const { return data_; }
  int64_t size_bytes() const { return size_bytes_; }

 private:
  std::byte* data_ = nullptr;
  int64_t size_bytes_ = 0;
};

}  // namespace octavo::cpu
