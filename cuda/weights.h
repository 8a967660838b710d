// Weights on the device, and their way there.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include "backend/backend.h"
#include "cuda/common/memory.h"
#include "cuda/common/stream.h"

namespace octavo::cuda {

// [out_features, in_features] row-major and [out_features], both of one half type.
class CudaLinearWeight : public LinearWeight {
 public:
  CudaLinearWeight(DType dtype, int64_t out_features, int64_t in_features, bool has_bias);

  int64_t out_features() const override { return out_features_; }
  int64_t in_features() const override { return in_features_; }
  int64_t size_bytes() const override { return matrix_.size_bytes() + bias_.size_bytes(); }

  DType dtype() const { return dtype_; }
  TensorView matrix() const {
    return TensorView::matrix(matrix_.data(), dtype_, out_features_, in_features_);
  }
  const void* bias() const { return bias_.data(); }

  // Addresses of row `begin`, checked to hold `count` rows.
  void* rows_at(int64_t begin, int64_t count) const;
  void* bias_at(int64_t begin, int64_t count) const;

 private:
  DType dtype_;
  int64_t out_features_;
  int64_t in_features_;
  DeviceMemory matrix_;
  DeviceMemory bias_;
};

// Copies host tensors to the device through pinned memory, converting to the type wanted. Safe to
// use from several threads: each takes a lane of its own.
class WeightUploader {
 public:
  explicit WeightUploader(int device) : device_(device) {}

  // Writes the view's elements in order to `target`; complete on return. `target_dtype` is
  // float32, float16 or bfloat16.
  void upload(void* target, DType target_dtype, const WeightView& view);

 private:
  static constexpr int64_t kChunkBytes = int64_t{4} << 20;
  static constexpr int kChunks = 2;  // one is filled while the other travels

  struct Lane {
    Stream stream;
    PinnedMemory memory{kChunks * kChunkBytes};
    Event sent[kChunks];
  };

  std::unique_ptr<Lane> take_lane();
  void return_lane(std::unique_ptr<Lane> lane);

  const int device_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Lane>> idle_;
};

}  // namespace octavo::cuda
