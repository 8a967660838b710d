// The copy engine's descriptors of the matrices that the streaming kernels read, each made once.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <map>
#include <tuple>

#include "base/tensor_view.h"

namespace octavo::cuda {

class StreamMapCache {
 public:
  // Boxes of 128 bytes of `box_rows` rows. Gated: the rows of gate and up, the halves of the
  // matrix, take turns of eight.
  const CUtensorMap& find(TensorView matrix, int64_t box_rows, bool is_gated);

 private:
  // Address, rows, columns, row stride, rows of a box, gated.
  using Key = std::tuple<const void*, int64_t, int64_t, int64_t, int64_t, bool>;

  std::map<Key, CUtensorMap> maps_;
};

// Elements of a row that a box holds.
int64_t stream_slice_values(DType dtype);

// Whether the copy engine can address x.
bool can_stream(TensorView x);

}  // namespace octavo::cuda
