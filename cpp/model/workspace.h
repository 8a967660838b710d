// Scratch device memory of one forward pass: a stack allocator over one buffer. A workspace without
// a buffer only measures, so that the code that lays out the activations also plans their memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>

#include "backend/backend.h"

namespace octavo {

class Workspace {
 public:
  Workspace() = default;
  explicit Workspace(std::unique_ptr<DeviceBuffer> buffer) : buffer_(std::move(buffer)) {}

  // An uninitialised matrix, aligned to kAlignmentBytes.
  // Requires: it fits; the data of a measuring workspace is never touched.
  TensorView matrix(DType dtype, int64_t rows, int64_t cols) {
    const int64_t begin = top_bytes_;
    const int64_t size_bytes = dtype_bytes(dtype, rows * cols);
    top_bytes_ += (size_bytes + kAlignmentBytes - 1) / kAlignmentBytes * kAlignmentBytes;
    peak_bytes_ = std::max(peak_bytes_, top_bytes_);
    if (buffer_ == nullptr) return TensorView::matrix(nullptr, dtype, rows, cols);
    check(top_bytes_ <= buffer_->size_bytes(), "the workspace is too small for the batch");
    return TensorView::matrix(static_cast<char*>(buffer_->data()) + begin, dtype, rows, cols);
  }

  // Everything taken after mark() is free again after release() of it.
  int64_t mark() const { return top_bytes_; }
  void release(int64_t mark) { top_bytes_ = mark; }

  int64_t peak_bytes() const { return peak_bytes_; }

 private:
  static constexpr int64_t kAlignmentBytes = 256;  // of device allocations on every backend

  std::unique_ptr<DeviceBuffer> buffer_;
  int64_t top_bytes_ = 0;
  int64_t peak_bytes_ = 0;
};

}  // namespace octavo
