// Layouts are compared with torch in tests/parity; here are sizes, faults and the repacking.
#include "checkpoint/coded_matrix.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
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

TEST(CodedMatrix, RepackedBlocksHoldTheDecodedValues) {
  const Arrays arrays;
  for (const CodeLayout layout : {CodeLayout::kPacked4, CodeLayout::kGptq4, CodeLayout::kAwq4}) {
    CodedMatrix matrix = arrays.matrix(layout);
    matrix.zero_offset = 1;
    validate(matrix);
    ASSERT_TRUE(can_repack_q4_1(matrix));
    std::vector<float> decoded(kRows * kCols), unpacked(kRows * kCols);
    std::vector<std::byte> blocks(dtype_bytes(DType::kQ4_1, kRows * kCols));
    decode(matrix, decoded);
    repack_q4_1(matrix, blocks);
    dequantize(DType::kQ4_1, blocks.data(), kRows * kCols, unpacked.data());
    for (int64_t i = 0; i < kRows * kCols; ++i) {
      // Only scale * zero, at most 16 * 0.11, is rounded.
      ASSERT_NEAR(unpacked[i], decoded[i], 16 * 0.11 / 2048) << i;
    }
  }
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

TEST(CodedMatrix, KeepsNoBlocksWhoseScalesDiffer) {
  const Arrays arrays;
  CodedMatrix matrix = arrays.matrix(CodeLayout::kAwq4);
  EXPECT_TRUE(can_repack_q4_1(matrix));
  matrix.col_block = 16;
  EXPECT_FALSE(can_repack_q4_1(matrix));
  matrix = arrays.matrix(CodeLayout::kFloat8);
  EXPECT_FALSE(can_repack_q4_1(matrix));
}

}  // namespace
}  // namespace octavo
