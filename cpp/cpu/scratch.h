// Working memory that an operation asks for anew at each call and that is kept between calls.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/aligned_buffer.h"

namespace octavo::cpu {

class Scratch {
 public:
  // At least `count` elements, uninitialised, 64-byte aligned, valid until the next call.
  // Allocates only when it must grow.
  template <typename T>
  T* get(int64_t count) {
    const int64_t size_bytes = count * static_cast<int64_t>(sizeof(T));
    if (size_bytes > buffer_.size_bytes()) {
      buffer_ = AlignedBuffer(std::max(size_bytes, 2 * buffer_.size_bytes()));
    }
    return buffer_.as<T>();
  }

 private:
  AlignedBuffer buffer_;
};

}  // namespace octavo::cpu
