// A non-owning view of a dense row-major tensor in host or device memory.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <type_traits>

#include "base/check.h"
#include "base/dtype.h"

namespace octavo {

inline constexpr int kMaxRank = 4;

// Rows of rank-2 views may be strided: row i starts at data + i * row_stride elements.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int rank = 0;
  std::array<int64_t, kMaxRank> shape{};
  int64_t row_stride = 0;  // elements between rows of a rank-2 view; shape[1] when contiguous

  static TensorView matrix(void* data, DType dtype, int64_t rows, int64_t cols) {
    return {data, dtype, 2, {rows, cols}, cols};
  }
  static TensorView vector(void* data, DType dtype, int64_t size) {
    return {data, dtype, 1, {size}, size};
  }

  int64_t rows() const { return shape[0]; }
  int64_t cols() const { return shape[1]; }

  int64_t num_elements() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= shape[i];
    return n;
  }

  // The first `n` rows. Requires: rank 2, n <= rows().
  TensorView first_rows(int64_t n) const {
    check(rank == 2 && n <= shape[0], "first_rows outside the view");
    TensorView view = *this;
    view.shape[0] = n;
    return view;
  }

  // Rows [begin, begin + n). Requires: rank 2, inside the view.
  TensorView row_range(int64_t begin, int64_t n) const {
    check(rank == 2 && begin + n <= shape[0], "rows outside the view");
    TensorView view = *this;
    view.data = static_cast<char*>(data) + dtype_bytes(dtype, begin * row_stride);
    view.shape[0] = n;
    return view;
  }

  // Columns [begin, begin + n) of every row, still strided like the parent.
  TensorView columns(int64_t begin, int64_t n) const {
    check(rank == 2 && begin + n <= shape[1], "columns outside the view");
    TensorView view = *this;
    view.data = static_cast<char*>(data) + dtype_bytes(dtype, begin);
    view.shape[1] = n;
    return view;
  }

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

}  // namespace octavo
