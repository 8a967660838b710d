// Quantised matrices of safetensors checkpoints, back to numbers: value = scale * (code - zero).
// Source: the FP8 checkpoints of DeepSeek-V3 and Qwen3; compressed-tensors; AutoGPTQ; AutoAWQ.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/dtype.h"

namespace octavo {

// How codes lie, and zeros where a scheme has them. Words are int32 and hold eight codes of four
// bits; "j of word i" is in bits 4j to 4j + 3.
enum class CodeLayout : uint8_t {
  kFloat8,   // e4m3 [rows, cols]; no zeros
  kInt8,     // [rows, cols]; no zeros
  kPacked4,  // words [rows, cols / 8]: column 8i + j is j of word i. Zeros, 8 if there are none,
             // words [rows / 8, groups]: row 8i + j
  kGptq4,    // words [cols / 8, rows]: column 8i + j. Zeros, words [groups, rows / 8]: row 8i + j
  kAwq4,     // words [cols, rows / 8]: j of word i is row 8i + (0, 2, 4, 6, 1, 3, 5, 7)[j].
             // Zeros, words [groups, rows / 8], likewise
};

// A scale holds for `row_block` rows and `col_block` columns, a group. Scales are [row blocks,
// groups]; those of kGptq4 and kAwq4 are [groups, row blocks].
struct CodedMatrix {
  CodeLayout layout = CodeLayout::kFloat8;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_block = 1;
  int64_t col_block = 1;
  int32_t zero_offset = 0;  // added to every stored zero; 0 or 1
  std::span<const std::byte> codes;
  std::span<const float> scales;
  std::span<const int32_t> zeros;         // words; may be empty
  std::span<const int32_t> group_of_col;  // [cols]; empty = column / col_block

  // Of the shape that validate() passes; blocks may be larger than the matrix.
  int64_t num_groups() const { return (cols - 1) / col_block + 1; }
  int64_t num_row_blocks() const { return (rows - 1) / row_block + 1; }
};

// Throws: CheckpointError when sizes do not fit together or a group is out of range.
void validate(const CodedMatrix& matrix);

// out [rows, cols]. Requires: validate() did not throw.
void decode(const CodedMatrix& matrix, std::span<float> out);

// Whether blocks of `dtype` hold the matrix's codes as they are: kInt4G* what has words, kQ8_0 what
// has integers, kFloat8Rows and kFloat8Blocks what has floats; every block has one scale and zero.
bool can_repack(const CodedMatrix& matrix, DType dtype);

// The bytes of such blocks. Scales lose their last five bits in kInt4G*, and become float16 in
// kQ8_0: those of half precision, in the range of float16, stay as they are.
// Requires: can_repack(), and validate() did not throw.
void repack(const CodedMatrix& matrix, DType dtype, std::span<std::byte> out);

}  // namespace octavo
