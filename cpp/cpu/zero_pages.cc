#include "cpu/zero_pages.h"

#include <sys/mman.h>

#include <string>
#include <utility>

#include "base/errors.h"

namespace octavo::cpu {
namespace {

// Below this the rounding to 2 MiB pages would cost more than the saved translations.
constexpr int64_t kHugeThresholdBytes = int64_t{16} << 20;

}  // namespace

ZeroPages::ZeroPages(int64_t size_bytes) : size_bytes_(size_bytes) {
  if (size_bytes <= 0) return;
  void* p = mmap(nullptr, static_cast<size_t>(size_bytes), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) {
    throw OutOfMemoryError("the system refuses " + std::to_string(size_bytes >> 20) +
                           " MiB of memory: lower the KV cache or the batch size");
  }
  data_ = static_cast<std::byte*>(p);
  if (size_bytes >= kHugeThresholdBytes) {
    madvise(p, static_cast<size_t>(size_bytes), MADV_HUGEPAGE);
  }
}

ZeroPages::~ZeroPages() {
  if (data_ != nullptr) munmap(data_, static_cast<size_t>(size_bytes_));
}

ZeroPages::ZeroPages(ZeroPages&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_bytes_(std::exchange(other.size_bytes_, 0)) {}

ZeroPages& ZeroPages::operator=(ZeroPages&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_bytes_, other.size_bytes_);
  return *this;
}

}  // namespace octavo::cpu
