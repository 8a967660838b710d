// Owned device and pinned host memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "cuda/common/error.h"

namespace octavo::cuda {

// Uninitialised memory of the current device. Throws OutOfMemoryError.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  explicit DeviceMemory(int64_t size_bytes) : size_bytes_(size_bytes) {
    if (size_bytes <= 0) return;
    void* data = nullptr;
    check_cuda(cudaMalloc(&data, size_bytes));
    data_.reset(data);
  }

  template <typename T = std::byte>
  T* as() const {
    return static_cast<T*>(data_.get());
  }
  void* data() const { return data_.get(); }
  int64_t size_bytes() const { return size_bytes_; }

 private:
  struct Free {
    void operator()(void* p) const { cudaFree(p); }
  };
  std::unique_ptr<void, Free> data_;
  int64_t size_bytes_ = 0;
};

// Page-locked host memory: the only kind that copies asynchronously.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  explicit PinnedMemory(int64_t size_bytes) : size_bytes_(size_bytes) {
    if (size_bytes <= 0) return;
    void* data = nullptr;
    check_cuda(cudaHostAlloc(&data, size_bytes, cudaHostAllocDefault));
    data_.reset(data);
  }

  template <typename T = std::byte>
  T* as() const {
    return static_cast<T*>(data_.get());
  }
  int64_t size_bytes() const { return size_bytes_; }

 private:
  struct Free {
    void operator()(void* p) const { cudaFreeHost(p); }
  };
  std::unique_ptr<void, Free> data_;
  int64_t size_bytes_ = 0;
};

}  // namespace octavo::cuda
