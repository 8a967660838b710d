#include "cuda/coded_gemm.h"

#include <algorithm>

#include "base/check.h"
#include "cuda/coded_units.h"

namespace octavo::cuda {
namespace {

constexpr int64_t kDecodedBytes = int64_t{48} << 20;  // of the 60 MB of L2 cache
constexpr int64_t kRowMultiple = 256;                 // whole tiles of cuBLASLt's kernels

}  // namespace

void CodedGemm::run(const DeviceContext& context, Gemm& gemm, const LinearOperand& weight,
                    TensorView x, TensorView out) {
  check(has_units(weight.matrix.dtype) && weight.matrix.rows() == out.cols(), "coded_gemm: weight");
  if (x.rows() == 0) return;
  const int64_t depth = x.cols(), row_bytes = dtype_bytes(x.dtype, depth);
  const int64_t fitting = kDecodedBytes / row_bytes / kRowMultiple * kRowMultiple;
  const int64_t rows_at_once = std::max(kRowMultiple, fitting);
  const int64_t size_bytes = std::max(kDecodedBytes, rows_at_once * row_bytes);
  if (decoded_.size_bytes() < size_bytes) decoded_ = DeviceMemory(size_bytes);
  for (int64_t begin = 0; begin < out.cols(); begin += rows_at_once) {
    const int64_t rows = std::min(rows_at_once, out.cols() - begin);
    const TensorView decoded = TensorView::matrix(decoded_.data(), x.dtype, rows, depth);
    unpack_units(context, weight.matrix, begin, decoded);
    LinearOperand operand{decoded};
    if (weight.bias != nullptr) {
      operand.bias = static_cast<const std::byte*>(weight.bias) + dtype_bytes(x.dtype, begin);
    }
    gemm.run(context, operand, x, out.columns(begin, rows));
  }
}

}  // namespace octavo::cuda
