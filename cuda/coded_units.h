// Weights that keep a checkpoint's codes on the device, of four bits or fp8 with a scale for 128
// columns: their layout, the way into it and the way out.
//
// Rows and columns are padded with zeros to whole units of 64 rows and 128 columns, an even number
// of units either way. Units lie row block by row block, those of a row block along the columns,
// and hold
//   codes   what each lane of a warpgroup needs for its A operands (m64k16, see wgmma.cuh),
//           16 bytes of a lane beside those of the next:
//           [..][4 warps][32 lanes][4 words].
//           Four bits: word j of run i is that of step 4 i + j, the pair of register r in bits 4 r
//           to 4 r + 3, the first of it in the low half of the word, the second in the high one.
//           fp8: words 2 j and 2 j + 1 of run i are those of step 2 i + j, rows g and g + 8:
//           columns 2 q, 2 q + 1, 2 q + 8 and 2 q + 9 of the step
//   terms   [groups of a unit][64 rows]: the first words of the blocks of base/dtype.h.
#pragma once

#include <cstdint>
#include <type_traits>

#include "base/check.h"
#include "base/tensor_view.h"
#include "cuda/common/device_context.h"
#include "cuda/linear_operand.h"

namespace octavo::cuda {

inline constexpr int kUnitRows = 64;
inline constexpr int kUnitDepth = 128;
inline constexpr int kTermBytes = kUnitRows * 4;  // of one group of a unit

struct UnitLayout {
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t group_size = 0;  // columns of a scale
  int64_t code_bits = 0;

  constexpr int64_t groups_per_unit() const { return kUnitDepth / group_size; }
  constexpr int64_t code_bytes() const { return kUnitRows * kUnitDepth * code_bits / 8; }
  constexpr int64_t unit_bytes() const { return code_bytes() + groups_per_unit() * kTermBytes; }
  constexpr int64_t num_row_blocks() const { return even_units(rows, kUnitRows); }
  constexpr int64_t units_per_row_block() const { return even_units(cols, kUnitDepth); }
  constexpr int64_t row_block_bytes() const { return units_per_row_block() * unit_bytes(); }
  constexpr int64_t size_bytes() const { return num_row_blocks() * row_block_bytes(); }

 private:
  static constexpr int64_t even_units(int64_t size, int64_t unit) {
    return (size + 2 * unit - 1) / (2 * unit) * 2;
  }
};

// Requires: has_units(dtype).
constexpr UnitLayout unit_layout(DType dtype, int64_t rows, int64_t cols) {
  return {rows, cols, dtype_info(dtype).block_elements, is_int4(dtype) ? 4 : 8};
}
inline UnitLayout unit_layout(TensorView matrix) {
  return unit_layout(matrix.dtype, matrix.rows(), matrix.cols());
}

// Puts `rows`, blocks of the matrix's type on the device (or of kFloat8Rows, into kFloat8Blocks),
// into rows [row_begin, row_begin + rows.rows()) of `matrix`. Requires: `matrix` was filled with
// zero bytes; each row comes once.
void pack_units(const DeviceContext& context, TensorView rows, TensorView matrix,
                int64_t row_begin);

// out[i] = row row_begin + i of the matrix, in a half type; out contiguous.
// Requires: row_begin is a multiple of 64.
void unpack_units(const DeviceContext& context, TensorView matrix, int64_t row_begin,
                  TensorView out);

}  // namespace octavo::cuda
