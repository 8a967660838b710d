// Layouts are compared with torch in tests/parity; here are sizes, faults and the repacking.
#include "checkpoint/coded_matrix.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <tuple>
#include <utility>
#include <vector>

#include "base/dequantize.h"
#include "base/errors.h"

namespace octavo {
namespace {

constexpr int64_t kRows = 136, kCols = 128;

struct Arrays {
  Arrays() {
    std::mt19937 generator(1);
    for (int32_t& word : codes) word = static_cast<int32_t>(generator());
    for (int32_t& word : zeros) word = static_cast<int32_t>(generator());
    for (float& scale : scales) {
      scale = static_cast<float>(static_cast<_Float16>(0.01f + generator() % 1000 * 1e-4f));
    }
  }

  CodedMatrix matrix(CodeLayout layout) const {
    CodedMatrix m;
    m.layout = layout;
    m.rows = kRows;
    m.cols = kCols;
    m.col_block = 64;
    m.codes = std::as_bytes(std::span(codes));
    m.scales = scales;
    m.zeros = zeros;
    return m;
  }

  std::vector<int32_t> codes = std::vector<int32_t>(kRows * kCols / 8);
  std::vector<int32_t> zeros = std::vector<int32_t>(kRows / 8 * 2);
  std::vector<float> scales = std::vector<float>(kRows * 2);
};

// What decode() makes of a matrix and what blocks of `dtype` hold of it, in turn.
std::pair<std::vector<float>, std::vector<float>> both_ways(const CodedMatrix& matrix,
                                                            DType dtype) {
  validate(matrix);
  EXPECT_TRUE(can_repack(matrix, dtype));
  const int64_t size = matrix.rows * matrix.cols;
  std::pair<std::vector<float>, std::vector<float>> values;
  values.first.resize(size);
  values.second.resize(size);
  std::vector<std::byte> blocks(dtype_bytes(dtype, size));
  decode(matrix, values.first);
  repack(matrix, dtype, blocks);
  dequantize(dtype, blocks.data(), size, values.second.data());
  return values;
}

TEST(CodedMatrix, RepackedWordsHoldTheDecodedValues) {
  const Arrays arrays;
  for (const CodeLayout layout : {CodeLayout::kPacked4, CodeLayout::kGptq4, CodeLayout::kAwq4}) {
    for (const DType dtype : {DType::kInt4G32, DType::kInt4G64}) {
      CodedMatrix matrix = arrays.matrix(layout);
      matrix.zero_offset = 1;  // zeros up to 16
      const auto [decoded, unpacked] = both_ways(matrix, dtype);
      EXPECT_EQ(decoded, unpacked);
    }
  }
}

TEST(CodedMatrix, AScaleThatIsNotOfHalfPrecisionLosesItsLastBits) {
  Arrays arrays;
  for (float& scale : arrays.scales) scale *= 1.000123f;
  const auto [decoded, unpacked] = both_ways(arrays.matrix(CodeLayout::kAwq4), DType::kInt4G64);
  for (int64_t i = 0; i < kRows * kCols; ++i) {
    ASSERT_NEAR(unpacked[i], decoded[i], std::abs(decoded[i]) * 0x1p-18f) << i;
  }
}

TEST(CodedMatrix, RepackedBytesHoldTheDecodedValues) {
  std::mt19937 generator(2);
  std::vector<std::byte> codes(kRows * kCols);
  for (std::byte& code : codes) code = static_cast<std::byte>(generator() & 0xF7);
  std::vector<float> scales(kRows);
  for (float& scale : scales) scale = 0.01f + static_cast<float>(generator() % 1000) * 1e-4f;
  CodedMatrix matrix;
  matrix.rows = kRows;
  matrix.cols = kCols;
  matrix.codes = codes;
  for (const auto& [row_block, col_block, num_scales, dtype] :
       {std::tuple{kRows, kCols, 1, DType::kFloat8Rows},
        std::tuple{int64_t{1}, kCols, 136, DType::kFloat8Rows},
        std::tuple{int64_t{128}, int64_t{128}, 2, DType::kFloat8Blocks}}) {
    matrix.row_block = row_block;
    matrix.col_block = col_block;
    matrix.scales = std::span(scales).first(num_scales);
    const auto [decoded, unpacked] = both_ways(matrix, dtype);
    EXPECT_EQ(decoded, unpacked);
  }
  for (float& scale : scales) scale = static_cast<float>(static_cast<_Float16>(scale));
  matrix.layout = CodeLayout::kInt8;
  matrix.row_block = 1;
  matrix.scales = scales;
  const auto [decoded, unpacked] = both_ways(matrix, DType::kQ8_0);
  EXPECT_EQ(decoded, unpacked);
}

TEST(CodedMatrix, RefusesSizesThatDoNotFitTogether) {
  const Arrays arrays;
  const auto refused = [&](auto change) {
    CodedMatrix matrix = arrays.matrix(CodeLayout::kGptq4);
    change(matrix);
    try {
      validate(matrix);
    } catch (const CheckpointError&) {
      return true;
    }
    return false;
  };
  EXPECT_FALSE(refused([](CodedMatrix&) {}));
  EXPECT_TRUE(refused([](CodedMatrix& m) { m.rows = 0; }));
  EXPECT_TRUE(refused([](CodedMatrix& m) { m.rows = INT64_MAX; }));
  EXPECT_TRUE(refused([](CodedMatrix& m) { m.cols = 124; }));
  EXPECT_TRUE(refused([](CodedMatrix& m) { m.col_block = 0; }));
  EXPECT_TRUE(refused([](CodedMatrix& m) { m.zero_offset = -1; }));
  EXPECT_TRUE(refused([](CodedMatrix& m) { m.zero_offset = 2; }));
  EXPECT_TRUE(refused([](CodedMatrix& m) { m.codes = m.codes.first(8); }));
  EXPECT_TRUE(refused([](CodedMatrix& m) { m.scales = m.scales.first(8); }));
  EXPECT_TRUE(refused([](CodedMatrix& m) { m.zeros = m.zeros.first(3); }));
  std::vector<int32_t> groups(kCols, 1);
  EXPECT_FALSE(refused([&](CodedMatrix& m) { m.group_of_col = groups; }));
  groups[5] = 2;
  EXPECT_TRUE(refused([&](CodedMatrix& m) { m.group_of_col = groups; }));
  groups[5] = -1;
  EXPECT_TRUE(refused([&](CodedMatrix& m) { m.group_of_col = groups; }));
}

// As a checkpoint may claim.
TEST(CodedMatrix, AGroupMayBeLargerThanTheMatrix) {
  const Arrays arrays;
  CodedMatrix matrix = arrays.matrix(CodeLayout::kPacked4);
  matrix.row_block = matrix.col_block = INT64_MAX;
  matrix.zeros = {};
  matrix.scales = matrix.scales.first(1);
  EXPECT_NO_THROW(validate(matrix));
  EXPECT_EQ(matrix.num_groups(), 1);
  EXPECT_EQ(matrix.num_row_blocks(), 1);
}

TEST(CodedMatrix, KeepsNoBlocksWhoseScalesDiffer) {
  const Arrays arrays;
  CodedMatrix matrix = arrays.matrix(CodeLayout::kAwq4);
  EXPECT_TRUE(can_repack(matrix, DType::kInt4G64));
  EXPECT_FALSE(can_repack(matrix, DType::kInt4G128));
  EXPECT_FALSE(can_repack(matrix, DType::kFloat8Rows));
  EXPECT_FALSE(can_repack(matrix, DType::kQ4_1));
  matrix.col_block = 16;
  EXPECT_FALSE(can_repack(matrix, DType::kInt4G32));
  matrix = arrays.matrix(CodeLayout::kFloat8);
  EXPECT_FALSE(can_repack(matrix, DType::kInt4G32));
  EXPECT_FALSE(can_repack(matrix, DType::kFloat8Rows));
  EXPECT_FALSE(can_repack(matrix, DType::kFloat8Blocks));
  matrix.col_block = 128;
  EXPECT_TRUE(can_repack(matrix, DType::kFloat8Rows));
  matrix.group_of_col = std::span(arrays.zeros).first(1);
  EXPECT_FALSE(can_repack(matrix, DType::kFloat8Rows));
}

}  // namespace
}  // namespace octavo
