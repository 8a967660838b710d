#include "checkpoint/coded_matrix.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/dequantize.h"
#include "base/errors.h"

namespace octavo {
namespace {

constexpr int64_t kCodesPerWord = 8;
constexpr int64_t kTileRows = 128;  // words of a row of codes that share a cache line, times 8
constexpr int kAwqRow[kCodesPerWord] = {0, 2, 4, 6, 1, 3, 5, 7};

void require(bool holds, const char* what) {
  if (!holds) throw CheckpointError(std::string("a quantised matrix has ") + what);
}

bool has_words(CodeLayout layout) {
  return layout != CodeLayout::kFloat8 && layout != CodeLayout::kInt8;
}

bool is_transposed(CodeLayout layout) {
  return layout == CodeLayout::kGptq4 || layout == CodeLayout::kAwq4;
}

int32_t default_zero(CodeLayout layout) { return layout == CodeLayout::kPacked4 ? 8 : 0; }

uint8_t nibble(int32_t word, int64_t j) {
  return static_cast<uint8_t>(static_cast<uint32_t>(word) >> (4 * j) & 15);
}

// Rows of codes as bytes, and the scales and zeros of one row at a time.
class Reader {
 public:
  explicit Reader(const CodedMatrix& matrix) : m_(matrix) {}

  // Codes of rows [first, first + count): [count, cols]. Requires: the layout has words; first and
  // count are multiples of 8.
  void read_codes(int64_t first, int64_t count, uint8_t* out) const {
    switch (m_.layout) {
      case CodeLayout::kPacked4:
        for (int64_t r = 0; r < count; ++r) {
          for (int64_t c = 0; c < m_.cols; ++c) {
            const int64_t i = (first + r) * (m_.cols / kCodesPerWord) + c / kCodesPerWord;
            out[r * m_.cols + c] = nibble(word(i), c % kCodesPerWord);
          }
        }
        break;
      case CodeLayout::kGptq4:
        for (int64_t c = 0; c < m_.cols; c += kCodesPerWord) {
          for (int64_t r = 0; r < count; ++r) {
            const int32_t w = word(c / kCodesPerWord * m_.rows + first + r);
            for (int64_t j = 0; j < kCodesPerWord; ++j) out[r * m_.cols + c + j] = nibble(w, j);
          }
        }
        break;
      default:
        for (int64_t c = 0; c < m_.cols; ++c) {
          for (int64_t r = 0; r < count; r += kCodesPerWord) {
            const int32_t w = word(c * (m_.rows / kCodesPerWord) + (first + r) / kCodesPerWord);
            for (int64_t j = 0; j < kCodesPerWord; ++j) {
              out[(r + kAwqRow[j]) * m_.cols + c] = nibble(w, j);
            }
          }
        }
    }
  }

  float scale(int64_t row, int64_t group) const {
    const int64_t block = row / m_.row_block;
    return m_.scales[is_transposed(m_.layout) ? group * m_.num_row_blocks() + block
                                              : block * m_.num_groups() + group];
  }

  int32_t zero(int64_t row, int64_t group) const {
    if (m_.zeros.empty()) return default_zero(m_.layout);
    const int64_t i = row / kCodesPerWord, at = row % kCodesPerWord;
    if (m_.layout == CodeLayout::kPacked4) {
      return nibble(m_.zeros[i * m_.num_groups() + group], at) + m_.zero_offset;
    }
    const int64_t j =
        m_.layout == CodeLayout::kGptq4 ? at : std::ranges::find(kAwqRow, at) - kAwqRow;
    return nibble(m_.zeros[group * (m_.rows / kCodesPerWord) + i], j) + m_.zero_offset;
  }

  int64_t group(int64_t col) const {
    return m_.group_of_col.empty() ? col / m_.col_block : m_.group_of_col[col];
  }

 private:
  int32_t word(int64_t index) const {
    int32_t value;
    std::memcpy(&value, m_.codes.data() + index * 4, sizeof(value));
    return value;
  }

  const CodedMatrix& m_;
};

template <typename Visit>
void for_tiles(const CodedMatrix& matrix, const Visit& visit) {
  std::vector<uint8_t> codes(kTileRows * matrix.cols);
  const Reader reader(matrix);
  for (int64_t first = 0; first < matrix.rows; first += kTileRows) {
    const int64_t count = std::min(kTileRows, matrix.rows - first);
    reader.read_codes(first, count, codes.data());
    for (int64_t r = 0; r < count; ++r) visit(reader, first + r, codes.data() + r * matrix.cols);
  }
}

void decode_words(const CodedMatrix& matrix, std::span<float> out) {
  std::vector<float> scales(matrix.num_groups());
  std::vector<int32_t> zeros(matrix.num_groups());
  for_tiles(matrix, [&](const Reader& reader, int64_t row, const uint8_t* codes) {
    for (int64_t g = 0; g < matrix.num_groups(); ++g) {
      scales[g] = reader.scale(row, g);
      zeros[g] = reader.zero(row, g);
    }
    float* values = out.data() + row * matrix.cols;
    for (int64_t c = 0; c < matrix.cols; ++c) {
      const int64_t g = reader.group(c);
      values[c] = scales[g] * static_cast<float>(codes[c] - zeros[g]);
    }
  });
}

void decode_bytes(const CodedMatrix& matrix, std::span<float> out) {
  const Reader reader(matrix);
  for (int64_t row = 0; row < matrix.rows; ++row) {
    float* values = out.data() + row * matrix.cols;
    const std::byte* codes = matrix.codes.data() + row * matrix.cols;
    if (matrix.layout == CodeLayout::kFloat8) {
      dequantize(DType::kFloat8E4M3, codes, matrix.cols, values);
    } else {
      const auto* integers = reinterpret_cast<const int8_t*>(codes);
      std::copy(integers, integers + matrix.cols, values);
    }
    for (int64_t c = 0; c < matrix.cols; ++c) values[c] *= reader.scale(row, reader.group(c));
  }
}

template <typename T>
std::byte* put(T value, std::byte* out) {
  std::memcpy(out, &value, sizeof(value));
  return out + sizeof(value);
}

// The scale rounded to where the zero begins.
uint32_t int4_term(float scale, int32_t zero) {
  return ((std::bit_cast<uint32_t>(scale) + (kInt4ZeroMask + 1) / 2) & ~kInt4ZeroMask) |
         static_cast<uint32_t>(zero);
}

void repack_words(const CodedMatrix& matrix, int64_t block_size, std::byte* out) {
  for_tiles(matrix, [&](const Reader& reader, int64_t row, const uint8_t* codes) {
    std::byte* at = out + row * (matrix.cols / block_size) * (4 + block_size / 2);
    for (int64_t c = 0; c < matrix.cols; c += block_size) {
      const int64_t group = reader.group(c);
      at = put(int4_term(reader.scale(row, group), reader.zero(row, group)), at);
      for (int64_t j = 0; j < block_size; j += 2) {
        at = put(static_cast<uint8_t>(codes[c + j] | codes[c + j + 1] << 4), at);
      }
    }
  });
}

void repack_bytes(const CodedMatrix& matrix, int64_t block_size, std::byte* out) {
  const Reader reader(matrix);
  const std::byte* codes = matrix.codes.data();
  for (int64_t row = 0; row < matrix.rows; ++row) {
    for (int64_t c = 0; c < matrix.cols; c += block_size, codes += block_size) {
      const float scale = reader.scale(row, reader.group(c));
      out = matrix.layout == CodeLayout::kInt8 ? put(static_cast<_Float16>(scale), out)
                                               : put(scale, out);
      out = std::copy_n(codes, block_size, out);
    }
  }
}

bool fits_layout(CodeLayout layout, DType dtype) {
  if (has_words(layout)) return is_int4(dtype);
  return layout == CodeLayout::kInt8 ? dtype == DType::kQ8_0 : is_scaled_float8(dtype);
}

}  // namespace

void validate(const CodedMatrix& m) {
  require(m.rows > 0 && m.cols > 0 && m.cols <= INT64_MAX / m.rows / 8, "a wrong shape");
  require(m.row_block > 0 && m.col_block > 0, "a wrong block size");
  require(m.zero_offset == 0 || m.zero_offset == 1, "a wrong offset of zeros");
  const bool words = has_words(m.layout);
  const bool packs_rows = is_transposed(m.layout) || !m.zeros.empty();
  require(!words || m.cols % kCodesPerWord == 0, "columns that fill no whole words");
  require(!words || !packs_rows || m.rows % kCodesPerWord == 0, "rows that fill no whole words");
  const int64_t code_bytes = words ? m.rows * m.cols / 2 : m.rows * m.cols;
  require(std::ssize(m.codes) == code_bytes, "codes of another size");
  require(std::ssize(m.scales) == m.num_row_blocks() * m.num_groups(), "scales of another size");
  require(
      m.zeros.empty() || (words && std::ssize(m.zeros) == m.rows / kCodesPerWord * m.num_groups()),
      "zeros of another size");
  require(m.group_of_col.empty() || std::ssize(m.group_of_col) == m.cols,
          "group indices of another size");
  require(
      std::ranges::all_of(m.group_of_col, [&](int32_t g) { return g >= 0 && g < m.num_groups(); }),
      "a group index out of range");
}

void decode(const CodedMatrix& matrix, std::span<float> out) {
  check(std::ssize(out) == matrix.rows * matrix.cols, "decode into another size");
  if (has_words(matrix.layout)) {
    decode_words(matrix, out);
  } else {
    decode_bytes(matrix, out);
  }
}

bool can_repack(const CodedMatrix& matrix, DType dtype) {
  const int64_t block_size = dtype_info(dtype).block_elements;
  const bool has_row_scales = matrix.col_block >= matrix.cols;
  return fits_layout(matrix.layout, dtype) && matrix.cols % block_size == 0 &&
         (has_row_scales || (dtype != DType::kFloat8Rows && matrix.col_block % block_size == 0)) &&
         matrix.group_of_col.empty();
}

void repack(const CodedMatrix& matrix, DType dtype, std::span<std::byte> out) {
  check(can_repack(matrix, dtype), "repack of a matrix whose blocks differ");
  check(std::ssize(out) == dtype_bytes(dtype, matrix.rows * matrix.cols),
        "repack into another size");
  const int64_t block_size = dtype_info(dtype).block_elements;
  if (has_words(matrix.layout)) {
    repack_words(matrix, block_size, out.data());
  } else {
    repack_bytes(matrix, block_size, out.data());
  }
}

}  // namespace octavo
