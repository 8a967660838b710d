#include "cuda/weights.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "base/dequantize.h"
#include "cuda/coded_units.h"

namespace octavo::cuda {
namespace {

// Round to nearest even; NaN stays NaN.
uint16_t to_bfloat16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

uint16_t to_float16(float value) { return std::bit_cast<uint16_t>(static_cast<_Float16>(value)); }

void narrow(std::span<const float> values, DType dtype, std::byte* out) {
  if (dtype == DType::kFloat32) {
    std::memcpy(out, values.data(), values.size_bytes());
    return;
  }
  auto* words = reinterpret_cast<uint16_t*>(out);
  if (dtype == DType::kBFloat16) {
    std::ranges::transform(values, words, to_bfloat16);
  } else {
    std::ranges::transform(values, words, to_float16);
  }
}

// Elements [begin, begin + count) of the view as `dtype`.
void convert(const WeightView& view, int64_t begin, int64_t count, DType dtype, std::byte* out) {
  const auto* source = static_cast<const std::byte*>(view.data) + dtype_bytes(view.dtype, begin);
  if (view.dtype == dtype) {
    std::memcpy(out, source, dtype_bytes(dtype, count));
    return;
  }
  constexpr int64_t kPiece = 4096;  // a multiple of every block size
  std::array<float, kPiece> values;
  for (int64_t i = 0; i < count; i += kPiece) {
    const int64_t n = std::min(kPiece, count - i);
    dequantize(view.dtype, source + dtype_bytes(view.dtype, i), n, values.data());
    narrow(std::span(values).first(n), dtype, out + dtype_bytes(dtype, i));
  }
}

// Of the matrix itself.
DType stored_type(DType coding) {
  return coding == DType::kFloat8Rows ? DType::kFloat8E4M3 : coding;
}

int64_t matrix_bytes(DType coding, int64_t rows, int64_t cols) {
  if (has_units(coding)) return unit_layout(coding, rows, cols).size_bytes();
  return dtype_bytes(stored_type(coding), rows * cols);
}

int64_t scale_bytes(DType coding, int64_t rows) {
  return coding == DType::kFloat8Rows ? rows * static_cast<int64_t>(sizeof(float)) : 0;
}

}  // namespace

CudaLinearWeight::CudaLinearWeight(DType dtype, int64_t out_features, int64_t in_features,
                                   bool has_bias, DType coding)
    : dtype_(dtype),
      coding_(coding),
      out_features_(out_features),
      in_features_(in_features),
      matrix_(matrix_bytes(coding, out_features, in_features)),
      bias_(has_bias ? dtype_bytes(dtype, out_features) : 0),
      scales_(scale_bytes(coding, out_features)) {
  if (!has_units(coding)) return;
  // Padding is zero, and codes are merged into what is there.
  check_cuda(cudaMemset(matrix_.data(), 0, matrix_.size_bytes()));
  check_cuda(cudaDeviceSynchronize());
}

int64_t CudaLinearWeight::coded_bytes(DType coding, int64_t out_features, int64_t in_features) {
  return matrix_bytes(coding, out_features, in_features) + scale_bytes(coding, out_features);
}

DType CudaLinearWeight::matrix_dtype() const { return stored_type(coding_); }

void* CudaLinearWeight::rows_at(int64_t begin, int64_t count) const {
  check(begin >= 0 && begin + count <= out_features_ && !has_units(coding_),
        "rows outside the weight");
  return matrix_.as() + dtype_bytes(matrix_dtype(), begin * in_features_);
}

void* CudaLinearWeight::bias_at(int64_t begin, int64_t count) const {
  check(bias_.size_bytes() > 0 && begin >= 0 && begin + count <= out_features_,
        "rows outside the bias");
  return bias_.as() + dtype_bytes(dtype_, begin);
}

std::unique_ptr<WeightUploader::Lane> WeightUploader::take_lane() {
  {
    const std::lock_guard lock(mutex_);
    if (!idle_.empty()) {
      auto lane = std::move(idle_.back());
      idle_.pop_back();
      return lane;
    }
  }
  return std::make_unique<Lane>();
}

void WeightUploader::return_lane(std::unique_ptr<Lane> lane) {
  const std::lock_guard lock(mutex_);
  idle_.push_back(std::move(lane));
}

void WeightUploader::upload(void* target, DType target_dtype, const WeightView& view) {
  check_cuda(cudaSetDevice(device_));
  auto lane = take_lane();
  const int64_t total = view.rows * view.cols;
  const DTypeInfo info = dtype_info(target_dtype);
  const int64_t step = kChunkBytes / info.block_bytes * info.block_elements;
  int chunk = 0;
  for (int64_t begin = 0; begin < total; begin += step) {
    const int64_t count = std::min(step, total - begin);
    lane->sent[chunk].synchronize();
    std::byte* staged = lane->memory.as() + chunk * kChunkBytes;
    convert(view, begin, count, target_dtype, staged);
    check_cuda(cudaMemcpyAsync(static_cast<std::byte*>(target) + dtype_bytes(target_dtype, begin),
                               staged, dtype_bytes(target_dtype, count), cudaMemcpyHostToDevice,
                               lane->stream.get()));
    lane->sent[chunk].record(lane->stream.get());
    chunk = (chunk + 1) % kChunks;
  }
  lane->stream.synchronize();
  return_lane(std::move(lane));
}

}  // namespace octavo::cuda
