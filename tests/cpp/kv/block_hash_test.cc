#include "kv/block_hash.h"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <string>
#include <vector>

namespace octavo {
namespace {

constexpr SipKey kKey{0x0706050403020100, 0x0f0e0d0c0b0a0908};

std::string hex(const BlockHash& hash) {
  unsigned char bytes[16];
  std::memcpy(bytes, &hash.low, 8);
  std::memcpy(bytes + 8, &hash.high, 8);
  std::string text;
  for (const unsigned char byte : bytes) {
    char digits[3];
    std::snprintf(digits, sizeof digits, "%02X", byte);
    text += digits;
  }
  return text;
}

std::string hash_of_first(int num_bytes) {
  std::vector<std::byte> message(num_bytes);
  for (int i = 0; i < num_bytes; ++i) message[i] = std::byte(i);
  return hex(siphash128(kKey, {}, message));
}

// Expected values: `openssl mac -macopt size:16 SIPHASH` (OpenSSL 3.0), key and message 00 01 02
// ...
TEST(SipHash128Test, AgreesWithOpenssl) {
  EXPECT_EQ(hash_of_first(0), "A3817F04BA25A8E66DF67214C7550293");
  EXPECT_EQ(hash_of_first(1), "DA87C1D86B99AF44347659119B22FC45");
  EXPECT_EQ(hash_of_first(8), "3B62A9BA6258F5610F83E264F31497B4");
  EXPECT_EQ(hash_of_first(15), "5493E99933B0A8117E08EC0F97CFC3D9");
  EXPECT_EQ(hash_of_first(16), "6EE2A4CA67B054BBFD3315BF85230577");
  EXPECT_EQ(hash_of_first(63), "5150D1772F50834A503E069A973FBD7C");
}

TEST(SipHash128Test, WordsAreTheBytesTheyHold) {
  const std::vector<uint64_t> words{0x0706050403020100, 0x0f0e0d0c0b0a0908};
  EXPECT_EQ(hex(siphash128(kKey, words, {})), hash_of_first(16));
}

class HashBlockTest : public ::testing::Test {
 protected:
  const std::vector<int32_t> tokens_{1, 2, 3, 4};
  const BlockHash base_ = hash_block(kKey, {}, 0, tokens_);
};

TEST_F(HashBlockTest, IsAFunctionOfItsInputs) {
  EXPECT_EQ(base_, hash_block(kKey, {}, 0, tokens_));
}

TEST_F(HashBlockTest, DependsOnTheSecret) {
  EXPECT_NE(base_, hash_block({kKey[0] + 1, kKey[1]}, {}, 0, tokens_));
  EXPECT_NE(base_, hash_block({kKey[0], kKey[1] + 1}, {}, 0, tokens_));
}

TEST_F(HashBlockTest, DependsOnTheParent) { EXPECT_NE(base_, hash_block(kKey, base_, 0, tokens_)); }

TEST_F(HashBlockTest, DependsOnTheSalt) { EXPECT_NE(base_, hash_block(kKey, {}, 1, tokens_)); }

TEST_F(HashBlockTest, DependsOnEveryToken) {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    std::vector<int32_t> changed = tokens_;
    ++changed[i];
    EXPECT_NE(base_, hash_block(kKey, {}, 0, changed)) << i;
  }
}

TEST_F(HashBlockTest, OddBlockSizesUseEveryToken) {
  const std::vector<int32_t> odd{1, 2, 3};
  const std::vector<int32_t> changed{1, 2, 4};
  EXPECT_NE(hash_block(kKey, {}, 0, odd), hash_block(kKey, {}, 0, changed));
}

}  // namespace
}  // namespace octavo
