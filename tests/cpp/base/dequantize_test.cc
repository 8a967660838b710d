// The block formats against their definitions, on blocks written by hand, and against the gguf
// package through digests of what it makes of random blocks
// (tests/model/test_dequantize_digests.py).
#include "base/dequantize.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/check.h"

namespace octavo {
namespace {

constexpr uint16_t kHalfOne = 0x3C00, kHalfTwo = 0x4000;

std::vector<float> dequantized(DType dtype, const std::vector<uint8_t>& bytes) {
  const DTypeInfo info = dtype_info(dtype);
  std::vector<float> out(bytes.size() / info.block_bytes * info.block_elements);
  dequantize(dtype, bytes.data(), static_cast<int64_t>(out.size()), out.data());
  return out;
}

float one_value(DType dtype, uint32_t bits) {
  std::vector<uint8_t> bytes(dtype_info(dtype).block_bytes);
  std::memcpy(bytes.data(), &bits, bytes.size());
  return dequantized(dtype, bytes)[0];
}

void put_half(std::vector<uint8_t>& block, size_t at, uint16_t half) {
  std::memcpy(block.data() + at, &half, 2);
}

TEST(DequantizeTest, PlainTypes) {
  EXPECT_EQ(one_value(DType::kFloat32, std::bit_cast<uint32_t>(1.25f)), 1.25f);
  EXPECT_EQ(one_value(DType::kBFloat16, 0xC020), -2.5f);
  EXPECT_EQ(one_value(DType::kFloat16, 0x3555), 0x1.554p-2f);
  EXPECT_EQ(one_value(DType::kFloat8E4M3, 0x7E), 448.0f);
}

TEST(DequantizeTest, FloatCorners) {
  EXPECT_EQ(one_value(DType::kFloat16, 0x0001), 0x1p-24f);
  EXPECT_EQ(one_value(DType::kFloat16, 0x83FF), -0x1.FF8p-15f);
  EXPECT_EQ(one_value(DType::kFloat16, 0x7BFF), 65504.0f);
  EXPECT_EQ(one_value(DType::kFloat16, 0xFC00), -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(one_value(DType::kFloat16, 0x7E00)));
  EXPECT_TRUE(std::signbit(one_value(DType::kFloat16, 0x8000)));
  EXPECT_EQ(one_value(DType::kFloat8E4M3, 0x01), 0x1p-9f);
  EXPECT_EQ(one_value(DType::kFloat8E4M3, 0x87), -0x1.Cp-7f);
  EXPECT_TRUE(std::isnan(one_value(DType::kFloat8E4M3, 0xFF)));
}

TEST(DequantizeTest, Q8_0) {
  std::vector<uint8_t> block(34);
  put_half(block, 0, kHalfTwo);
  block[2] = 0x80;
  block[33] = 3;
  const auto values = dequantized(DType::kQ8_0, block);
  EXPECT_EQ(values[0], -256.0f);
  EXPECT_EQ(values[1], 0.0f);
  EXPECT_EQ(values[31], 6.0f);
}

TEST(DequantizeTest, Q4_0AndQ4_1SplitBytesIntoHalves) {
  std::vector<uint8_t> block(18);
  put_half(block, 0, kHalfOne);
  block[2] = 0xF3;
  auto values = dequantized(DType::kQ4_0, block);
  EXPECT_EQ(values[0], -5.0f);
  EXPECT_EQ(values[16], 7.0f);
  EXPECT_EQ(values[1], -8.0f);

  block.assign(20, 0);
  put_half(block, 0, kHalfTwo);
  put_half(block, 2, kHalfOne);
  block[19] = 0x2F;
  values = dequantized(DType::kQ4_1, block);
  EXPECT_EQ(values[15], 31.0f);
  EXPECT_EQ(values[31], 5.0f);
  EXPECT_EQ(values[0], 1.0f);
}

TEST(DequantizeTest, Q5_0AndQ5_1TakeTheirFifthBits) {
  std::vector<uint8_t> block(22);
  put_half(block, 0, kHalfOne);
  block[2] = 0x01;  // the fifth bit of value 0
  block[5] = 0x80;  // of value 31
  block[6] = 0x03;
  block[21] = 0xF0;
  auto values = dequantized(DType::kQ5_0, block);
  EXPECT_EQ(values[0], 3.0f);
  EXPECT_EQ(values[1], -16.0f);
  EXPECT_EQ(values[31], 15.0f);

  block.insert(block.begin() + 2, {0x00, 0x40});
  values = dequantized(DType::kQ5_1, block);
  EXPECT_EQ(values[0], 21.0f);
  EXPECT_EQ(values[1], 2.0f);
  EXPECT_EQ(values[31], 33.0f);
}

TEST(DequantizeTest, Iq4_NlLooksLevelsUp) {
  std::vector<uint8_t> block(18);
  put_half(block, 0, kHalfTwo);
  block[2] = 0xF7;
  const auto values = dequantized(DType::kIQ4_NL, block);
  EXPECT_EQ(values[0], -20.0f);
  EXPECT_EQ(values[16], 226.0f);
  EXPECT_EQ(values[1], -254.0f);
}

// Sub-block i has scale 33 + i and minimum 9 i, so that low and high bits are both at work.
std::vector<uint8_t> k_block(size_t size) {
  std::vector<uint8_t> block(size);
  put_half(block, 0, kHalfOne);
  put_half(block, 2, kHalfTwo);
  uint8_t* packed = block.data() + 4;
  for (int i = 0; i < 4; ++i) {
    const int low_scale = 33 + i, high_scale = 33 + i + 4;
    const int low_min = 9 * i, high_min = 9 * (i + 4);
    packed[i] = static_cast<uint8_t>(low_scale | high_scale >> 4 << 6);
    packed[i + 4] = static_cast<uint8_t>(low_min | high_min >> 4 << 6);
    packed[i + 8] = static_cast<uint8_t>((high_scale & 0xF) | (high_min & 0xF) << 4);
  }
  return block;
}

TEST(DequantizeTest, Q4_K) {
  std::vector<uint8_t> block = k_block(144);
  for (int i = 0; i < 128; ++i) block[16 + i] = static_cast<uint8_t>(i % 16 | (15 - i % 16) << 4);
  const auto values = dequantized(DType::kQ4_K, block);
  for (int i = 0; i < 256; ++i) {
    const int sub = i / 32;
    const int q = sub % 2 == 0 ? i % 16 : 15 - i % 16;
    EXPECT_EQ(values[i], static_cast<float>((33 + sub) * q - 2 * 9 * sub)) << i;
  }
}

TEST(DequantizeTest, Q5_K) {
  std::vector<uint8_t> block = k_block(176);
  for (int i = 0; i < 32; ++i) block[16 + i] = 0xA5;  // fifth bit of sub-blocks 0, 2, 5 and 7
  for (int i = 0; i < 128; ++i) block[48 + i] = 0x41;
  const auto values = dequantized(DType::kQ5_K, block);
  for (int i = 0; i < 256; ++i) {
    const int sub = i / 32;
    const int q = (sub % 2 == 0 ? 1 : 4) + (0xA5 >> sub & 1) * 16;
    EXPECT_EQ(values[i], static_cast<float>((33 + sub) * q - 2 * 9 * sub)) << i;
  }
}

TEST(DequantizeTest, Q6_K) {
  std::vector<uint8_t> block(210);
  for (int i = 0; i < 128; ++i) block[i] = static_cast<uint8_t>(i < 64 ? 0x21 : 0x43);
  for (int i = 0; i < 64; ++i) block[128 + i] = 0xE4;  // high bits 0, 1, 2, 3 of the four runs
  for (int i = 0; i < 16; ++i) block[192 + i] = static_cast<uint8_t>(i - 8);
  put_half(block, 208, kHalfTwo);
  const auto values = dequantized(DType::kQ6_K, block);
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, run = i / 32 % 4;
    const int low = half == 0 ? (run < 2 ? 1 : 2) : (run < 2 ? 3 : 4);
    const int q = low + run * 16 - 32;
    EXPECT_EQ(values[i], static_cast<float>(2 * (i / 16 - 8) * q)) << i;
  }
}

// 64 blocks of random bytes whose float16 fields, at `halves`, hold numbers in [1, 2).
std::vector<uint8_t> random_blocks(DType dtype, const std::vector<int>& halves) {
  constexpr int kBlocks = 64;
  uint64_t state = 1;
  const auto next = [&state] {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return state >> 48;
  };
  const int block_bytes = dtype_info(dtype).block_bytes;
  std::vector<uint8_t> bytes(static_cast<size_t>(kBlocks) * block_bytes);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(next() >> 8);
  for (int i = 0; i < kBlocks; ++i) {
    for (const int half : halves) {
      put_half(bytes, i * block_bytes + half, static_cast<uint16_t>(kHalfOne | (next() & 0x3FF)));
    }
  }
  return bytes;
}

// FNV-1a over the bits of each value.
uint64_t digest(const std::vector<float>& values) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const float value : values) hash = (hash ^ std::bit_cast<uint32_t>(value)) * 0x100000001b3u;
  return hash;
}

TEST(DequantizeTest, RandomBlocksHaveTheDigestsOfTheGgufPackage) {
  const auto digest_of = [](DType dtype, const std::vector<int>& halves) {
    return digest(dequantized(dtype, random_blocks(dtype, halves)));
  };
  EXPECT_EQ(digest_of(DType::kQ8_0, {0}), 0x21701a8ec8e5a125u);
  EXPECT_EQ(digest_of(DType::kQ4_0, {0}), 0xf1c1212567704725u);
  EXPECT_EQ(digest_of(DType::kQ4_1, {0, 2}), 0x48ee63b35d322d25u);
  EXPECT_EQ(digest_of(DType::kQ5_0, {0}), 0x40c785191ac8c325u);
  EXPECT_EQ(digest_of(DType::kQ5_1, {0, 2}), 0x8ee997ef8b735825u);
  EXPECT_EQ(digest_of(DType::kIQ4_NL, {0}), 0xb651760247fb77e5u);
  EXPECT_EQ(digest_of(DType::kIQ4_XS, {0}), 0x9b0bf2ff1418ef7du);
  EXPECT_EQ(digest_of(DType::kQ2_K, {80, 82}), 0xb23988a3346ec1a5u);
  EXPECT_EQ(digest_of(DType::kQ3_K, {108}), 0xb11c6c6fcb86f8a5u);
  EXPECT_EQ(digest_of(DType::kQ4_K, {0, 2}), 0x0d35b6e0ccbf253du);
  EXPECT_EQ(digest_of(DType::kQ5_K, {0, 2}), 0x460b3ab90f2e9a49u);
  EXPECT_EQ(digest_of(DType::kQ6_K, {208}), 0xf6ff3da5e66f9475u);
}

TEST(DequantizeTest, RefusesPartsOfBlocksAndIntegers) {
  std::vector<uint8_t> bytes(64);
  std::vector<float> out(64);
  EXPECT_THROW(dequantize(DType::kQ8_0, bytes.data(), 31, out.data()), CheckError);
  EXPECT_THROW(dequantize(DType::kInt32, bytes.data(), 4, out.data()), CheckError);
}

}  // namespace
}  // namespace octavo
