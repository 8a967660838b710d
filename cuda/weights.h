// Weights on the device, and their way there.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include "backend/backend.h"
#include "cuda/common/memory.h"
#include "cuda/common/stream.h"
#include "cuda/linear_operand.h"

namespace octavo::cuda {

// [out_features, in_features] row-major and [out_features], both of one half type; or the matrix in
// one of the other forms of LinearOperand: `coding` is that half type, or kFloat8Rows,
// kFloat8Blocks or kInt4G*.
class CudaLinearWeight : public LinearWeight {
 public:
  CudaLinearWeight(DType dtype, int64_t out_features, int64_t in_features, bool has_bias,
                   DType coding);

  // Device bytes of such a matrix with its scales.
  static int64_t coded_bytes(DType coding, int64_t out_features, int64_t in_features);

  int64_t out_features() const override { return out_features_; }
  int64_t in_features() const override { return in_features_; }
  int64_t size_bytes() const override {
    return matrix_.size_bytes() + bias_.size_bytes() + scales_.size_bytes();
  }

  DType dtype() const { return dtype_; }  // of the bias, and of a matrix that is not coded
  DType coding() const { return coding_; }
  TensorView matrix() const {
    return TensorView::matrix(matrix_.data(), matrix_dtype(), out_features_, in_features_);
  }
  // Requires: the matrix lies in rows, not in units.
  TensorView rows(int64_t begin, int64_t count) const {
    return TensorView::matrix(rows_at(begin, count), matrix_dtype(), count, in_features_);
  }
  float* scales() const { return scales_.as<float>(); }
  LinearOperand operand() const { return {matrix(), bias_.data(), scales()}; }

  // Addresses of row `begin`, checked to hold `count` rows.
  void* rows_at(int64_t begin, int64_t count) const;
  void* bias_at(int64_t begin, int64_t count) const;

 private:
  DType matrix_dtype() const;

  DType dtype_;
  DType coding_;
  int64_t out_features_;
  int64_t in_features_;
  DeviceMemory matrix_;
  DeviceMemory bias_;
  DeviceMemory scales_;
};

// Copies host tensors to the device through pinned memory, converting to the type wanted. Safe to
// use from several threads: each takes a lane of its own.
class WeightUploader {
 public:
  explicit WeightUploader(int device) : device_(device) {}

  // Writes the view's elements in order to `target`; complete on return. `target_dtype` is
  // float32, float16, bfloat16 or the view's own.
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
