// fp8 matrices for tests: as the host makes them, and as quantize_rows() leaves them.
#pragma once

#include <algorithm>

#include "checker.h"
#include "cuda/quantize.h"

namespace octavo::cuda::testing {

// Rows as quantize_rows() should leave them, columns in their own places.
struct Quantized {
  Quantized(const std::vector<float>& values, int64_t num_rows, int64_t num_columns)
      : rows(num_rows), columns(num_columns), bytes(num_rows * num_columns), scales(num_rows) {
    for (int64_t r = 0; r < rows; ++r) {
      const float* row = values.data() + r * columns;
      float maximum = 0.0f;
      for (int64_t i = 0; i < columns; ++i) maximum = std::max(maximum, std::abs(row[i]));
      scales[r] = maximum > 0.0f ? maximum / 448.0f : 1.0f;
      for (int64_t i = 0; i < columns; ++i) {
        bytes[r * columns + i] = rounded(row[i] * (1.0f / scales[r]), DType::kFloat8E4M3);
      }
    }
  }
  double at(int64_t row, int64_t column) const {
    return double{bytes[row * columns + column]} * scales[row];
  }

  int64_t rows, columns;
  std::vector<float> bytes, scales;
};

struct DeviceQuantized {
  DeviceQuantized(const std::vector<float>& values, int64_t rows, int64_t columns, DType dtype)
      : matrix(DType::kFloat8E4M3, rows * columns), scales(DType::kFloat32, rows) {
    const Array source(dtype, values);
    quantize_rows(context(), source.matrix(rows, columns), matrix.matrix(rows, columns),
                  static_cast<float*>(scales.data()));
    synchronize();
  }
  const float* scale_data() const { return static_cast<const float*>(scales.data()); }

  Array matrix, scales;
};

}  // namespace octavo::cuda::testing
