#include "cuda/stream_maps.h"

#include "base/check.h"
#include "cuda/common/tensor_map.h"

namespace octavo::cuda {

int64_t stream_slice_values(DType dtype) {
  constexpr int64_t kSpanBytes = 128;
  return dtype == DType::kFloat8E4M3 ? kSpanBytes : kSpanBytes / 2;
}

bool can_stream(TensorView x) {
  return x.cols() % 8 == 0 && x.row_stride % 8 == 0 &&
         reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
}

const CUtensorMap& StreamMapCache::find(TensorView matrix, int64_t box_rows, bool is_gated) {
  const Key key{matrix.data, matrix.rows(), matrix.cols(), matrix.row_stride, box_rows, is_gated};
  const auto found = maps_.find(key);
  if (found != maps_.end()) return found->second;
  TensorBox tensor{.data = matrix.data, .dtype = matrix.dtype};
  const int64_t box_columns = stream_slice_values(matrix.dtype);
  if (is_gated) {
    const int64_t half = matrix.rows() / 2;
    tensor.rank = 4;
    tensor.sizes = {matrix.cols(), 8, 2, half / 8};
    tensor.strides = {1, matrix.row_stride, half * matrix.row_stride, 8 * matrix.row_stride};
    tensor.box = {box_columns, 8, 2, box_rows / 16};
  } else {
    tensor.sizes = {matrix.cols(), matrix.rows()};
    tensor.strides = {1, matrix.row_stride};
    tensor.box = {box_columns, box_rows};
  }
  const auto map = make_tensor_map(tensor);
  check(map.has_value(), "streaming linear: tensor map");
  return maps_.emplace(key, *map).first->second;
}

}  // namespace octavo::cuda
