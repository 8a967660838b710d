#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/dequantize.h"
#include "base/errors.h"
#include "cpu/cpu_testing.h"

namespace octavo::cpu {
namespace {

class QuantizedLinearTest : public EachIsa {
 protected:
  static std::unique_ptr<Backend> backend(int32_t num_threads = 2, bool batch_invariant = false) {
    BackendOptions options = backend_options(isa(), DType::kBFloat16, num_threads);
    options.keep_quantized = true;
    options.batch_invariant = batch_invariant;
    return create_backend(options);
  }
};
OCTAVO_TEST_EACH_ISA(QuantizedLinearTest);

constexpr DType kTypes[] = {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1,
                            DType::kQ4_K, DType::kQ5_K, DType::kQ6_K};
constexpr DType kInt4Types[] = {DType::kInt4G32, DType::kInt4G64, DType::kInt4G128};

bool has_rounded_scales(DType dtype) { return dtype_info(dtype).block_elements == 256; }

// Where the float16 scales of a block lie.
std::vector<int> half_offsets(DType dtype) {
  switch (dtype) {
    case DType::kQ4_1:
    case DType::kQ4_K:
    case DType::kQ5_K:
      return {0, 2};
    case DType::kQ6_K:
      return {208};
    default:
      return {0};
  }
}

// A random weight in a checkpoint's type: every quant and sub-scale occurs.
struct QuantizedWeight {
  QuantizedWeight(DType dtype, int64_t rows, int64_t cols, uint32_t seed)
      : dtype(dtype), rows(rows), cols(cols), bytes(dtype_bytes(dtype, rows * cols)) {
    std::mt19937 generator(seed);
    for (std::byte& b : bytes) b = static_cast<std::byte>(generator());
    std::uniform_real_distribution<float> scale(0.001f, 0.03f);
    const int64_t block_bytes = dtype_info(dtype).block_bytes;
    for (int64_t at = 0; at < std::ssize(bytes); at += block_bytes) {
      for (const int offset : half_offsets(dtype)) {
        const auto half = static_cast<_Float16>(scale(generator) * (generator() % 2 ? 1 : -1));
        std::memcpy(bytes.data() + at + offset, &half, sizeof(half));
      }
    }
  }

  WeightView view() const { return {bytes.data(), dtype, rows, cols}; }

  std::vector<float> values() const {
    std::vector<float> out(rows * cols);
    dequantize(dtype, bytes.data(), rows * cols, out.data());
    return out;
  }

  DType dtype;
  int64_t rows, cols;
  std::vector<std::byte> bytes;
};

// Activations as a multiple of 1/127 of each block's greatest magnitude.
std::vector<double> rounded_activations(const float* x, int64_t size) {
  std::vector<double> result;
  for (int64_t b = 0; b < size; b += 32) {
    float greatest = 0;
    for (int64_t k = b; k < b + 32; ++k) greatest = std::max(greatest, std::abs(x[k]));
    for (int64_t k = b; k < b + 32; ++k) {
      const float inverse = greatest > 0 ? 127.0f / greatest : 0.0f;
      result.push_back(std::nearbyint(x[k] * inverse) * double{greatest / 127.0f});
    }
  }
  return result;
}

TEST_P(QuantizedLinearTest, MatchesADoublePrecisionTwin) {
  const auto b = backend();
  for (const DType dtype : kTypes) {
    for (const auto& [rows, out_features, in] :
         {std::tuple<int64_t, int64_t, int64_t>{1, 16, 256}, {5, 33, 512}, {13, 70, 768}}) {
      const QuantizedWeight w(dtype, out_features, in, 1);
      auto x = random_floats(rows * in, 2);
      std::fill_n(x.begin(), 32, 0.0f);
      auto weight = b->create_linear(out_features, in, false);
      b->load_rows(*weight, 0, w.view());
      std::vector<float> out(rows * out_features);
      b->linear(*weight, matrix(x, rows, in), matrix(out, rows, out_features));
      const auto values = w.values();
      // Scales of 256-blocks are products, which float16 rounds by 2^-11 at most.
      const double tolerance = has_rounded_scales(dtype) ? 3e-4 : 1e-6;
      for (int64_t r = 0; r < rows; ++r) {
        const auto activations = rounded_activations(&x[r * in], in);
        for (int64_t c = 0; c < out_features; ++c) {
          double sum = 0, magnitude = 0;
          for (int64_t k = 0; k < in; ++k) {
            sum += activations[k] * values[c * in + k];
            magnitude += std::abs(activations[k] * values[c * in + k]);
          }
          ASSERT_NEAR(out[r * out_features + c], sum, tolerance * magnitude)
              << dtype_info(dtype).name << " row " << r << " column " << c;
        }
      }
    }
  }
}

TEST_P(QuantizedLinearTest, RowsDoNotDependOnTheBatchIfAsked) {
  const auto two = backend(2, true), one = backend(1, true);
  for (const DType dtype : kTypes) {
    constexpr int64_t kRows = 50, kIn = 512, kOut = 150;
    const QuantizedWeight w(dtype, kOut, kIn, 1);
    auto x = random_floats(kRows * kIn, 2);
    auto weight = two->create_linear(kOut, kIn, false);
    auto weight_of_one = one->create_linear(kOut, kIn, false);
    two->load_rows(*weight, 0, w.view());
    one->load_rows(*weight_of_one, 0, w.view());
    std::vector<float> all(kRows * kOut), all_of_one(kRows * kOut);
    two->linear(*weight, matrix(x, kRows, kIn), matrix(all, kRows, kOut));
    one->linear(*weight_of_one, matrix(x, kRows, kIn), matrix(all_of_one, kRows, kOut));
    EXPECT_TRUE(same_bits(all, all_of_one));
    for (int64_t count = 1; count <= 33; count += count < 18 ? 1 : 5) {
      std::vector<float> part_x(x.begin() + 9 * kIn, x.begin() + (9 + count) * kIn);
      std::vector<float> part(count * kOut);
      two->linear(*weight, matrix(part_x, count, kIn), matrix(part, count, kOut));
      ASSERT_TRUE(same_bits(part, {all.begin() + 9 * kOut, all.begin() + (9 + count) * kOut}))
          << dtype_info(dtype).name << " " << count << " rows";
    }
  }
}

// Few rows: the block sums are exact and the roundings the same, so every instruction set agrees.
TEST_P(QuantizedLinearTest, EveryInstructionSetGivesTheSameBits) {
  constexpr int64_t kRows = 15, kIn = 256, kOut = 40;
  BackendOptions baseline = backend_options("avx2", DType::kBFloat16);
  baseline.keep_quantized = true;
  const auto here = backend(), reference = create_backend(baseline);
  for (const DType dtype : kTypes) {
    const QuantizedWeight w(dtype, kOut, kIn, 1);
    auto x = random_floats(kRows * kIn, 2);
    std::vector<float> results[2];
    for (const auto& b : {here.get(), reference.get()}) {
      auto weight = b->create_linear(kOut, kIn, false);
      b->load_rows(*weight, 0, w.view());
      auto& out = results[b == here.get() ? 0 : 1];
      out.resize(kRows * kOut);
      b->linear(*weight, matrix(x, kRows, kIn), matrix(out, kRows, kOut));
    }
    EXPECT_TRUE(same_bits(results[0], results[1])) << dtype_info(dtype).name;
  }
}

// With activations of eight bits of their own, whether rounded to int8 or to bfloat16.
TEST_P(QuantizedLinearTest, ManyRowsStayCloseToTheDoublePrecisionTwin) {
  const auto b = backend();
  constexpr int64_t kRows = 40, kIn = 512, kOut = 70;
  for (const DType dtype : kTypes) {
    const QuantizedWeight w(dtype, kOut, kIn, 1);
    auto x = random_floats(kRows * kIn, 2);
    auto weight = b->create_linear(kOut, kIn, false);
    b->load_rows(*weight, 0, w.view());
    std::vector<float> out(kRows * kOut);
    b->linear(*weight, matrix(x, kRows, kIn), matrix(out, kRows, kOut));
    const auto values = w.values();
    double error = 0, size = 0;
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t c = 0; c < kOut; ++c) {
        double sum = 0;
        for (int64_t k = 0; k < kIn; ++k) sum += double{x[r * kIn + k]} * values[c * kIn + k];
        error += (out[r * kOut + c] - sum) * (out[r * kOut + c] - sum);
        size += sum * sum;
      }
    }
    EXPECT_LE(std::sqrt(error / size), 0.012) << dtype_info(dtype).name;
  }
}

TEST_P(QuantizedLinearTest, EmbedReturnsTheValues) {
  const auto b = backend();
  for (const DType dtype : kTypes) {
    constexpr int64_t kVocab = 37, kHidden = 512;
    const QuantizedWeight w(dtype, kVocab, kHidden, 4);
    auto weight = b->create_linear(kVocab, kHidden, false);
    b->load_rows(*weight, 0, w.view());
    std::vector<int32_t> ids(kVocab);
    for (int32_t i = 0; i < kVocab; ++i) ids[i] = i;
    std::vector<float> rows(kVocab * kHidden);
    b->embed(*weight, ids.data(), matrix(rows, kVocab, kHidden));
    const auto expected = w.values();
    if (!has_rounded_scales(dtype)) {
      EXPECT_TRUE(same_bits(rows, expected)) << dtype_info(dtype).name;
      continue;
    }
    for (size_t i = 0; i < rows.size(); ++i) {
      // Scale times quant and minimum are each rounded by 2^-11 of at most 0.03 * 127 * 63.
      ASSERT_NEAR(rows[i], expected[i], 0.03 * 127 * 63 / 2048) << dtype_info(dtype).name;
    }
  }
}

TEST_P(QuantizedLinearTest, KeepsEachRowRangeInItsOwnType) {
  const auto b = backend();
  constexpr int64_t kIn = 256, kRows = 6;
  auto x = random_floats(kRows * kIn, 2);
  auto fused = b->create_linear(6 * 20, kIn, false);
  std::vector<float> out(kRows * 120);
  for (int64_t i = 0; i < 6; ++i) {
    b->load_rows(*fused, i * 20, QuantizedWeight(kTypes[i], 20, kIn, 7).view());
  }
  b->linear(*fused, matrix(x, kRows, kIn), matrix(out, kRows, 120));
  for (int64_t i = 0; i < 6; ++i) {
    auto alone = b->create_linear(20, kIn, false);
    b->load_rows(*alone, 0, QuantizedWeight(kTypes[i], 20, kIn, 7).view());
    std::vector<float> expected(kRows * 20);
    b->linear(*alone, matrix(x, kRows, kIn), matrix(expected, kRows, 20));
    for (int64_t r = 0; r < kRows; ++r) {
      const auto begin = out.begin() + r * 120 + i * 20;
      EXPECT_TRUE(same_bits({begin, begin + 20},
                            {expected.begin() + r * 20, expected.begin() + (r + 1) * 20}));
    }
  }
}

// Groups of four bits as a checkpoint has them: a scale of half precision and a zero, the middle
// one where `is_symmetric`.
QuantizedWeight int4_groups(DType dtype, int64_t rows, int64_t cols, bool is_symmetric) {
  QuantizedWeight w(dtype, rows, cols, 1);
  std::mt19937 generator(5);
  for (int64_t at = 0; at < std::ssize(w.bytes); at += dtype_info(dtype).block_bytes) {
    const auto scale = static_cast<float>(
        static_cast<_Float16>(0.001f + static_cast<float>(generator() % 1000) * 3e-5f));
    const uint32_t term = std::bit_cast<uint32_t>(scale) |
                          (is_symmetric ? 8 : static_cast<uint32_t>(generator()) % 17);
    std::memcpy(&w.bytes[at], &term, sizeof(term));
  }
  return w;
}

// The same values in blocks of GGUF: q4_0 where every zero is 8, else q4_1.
QuantizedWeight as_gguf(const QuantizedWeight& w, bool is_symmetric) {
  QuantizedWeight blocks(is_symmetric ? DType::kQ4_0 : DType::kQ4_1, w.rows, w.cols, 1);
  const DTypeInfo info = dtype_info(w.dtype);
  std::byte* out = blocks.bytes.data();
  for (int64_t i = 0; i < w.rows * w.cols; i += 32) {
    const std::byte* source = &w.bytes[i / info.block_elements * info.block_bytes];
    uint32_t term;
    std::memcpy(&term, source, sizeof(term));
    const float scale = std::bit_cast<float>(term & ~kInt4ZeroMask);
    const auto put_half = [&](float value) {
      const auto half = static_cast<_Float16>(value);
      std::memcpy(out, &half, sizeof(half));
      out += 2;
    };
    put_half(scale);
    if (!is_symmetric) put_half(-scale * static_cast<float>(term & kInt4ZeroMask));
    const std::byte* codes = source + 4 + i % info.block_elements / 2;
    const auto code = [&](int k) { return static_cast<int>(codes[k / 2]) >> (k % 2 * 4) & 15; };
    for (int k = 0; k < 16; ++k) *out++ = static_cast<std::byte>(code(k) | code(k + 16) << 4);
  }
  return blocks;
}

TEST_P(QuantizedLinearTest, GroupsOfFourBitsTakeThePathOfTheirGgufTwins) {
  const auto b = backend();
  constexpr int64_t kRows = 7, kIn = 256, kOut = 40;
  auto x = random_floats(kRows * kIn, 2);
  for (const DType dtype : kInt4Types) {
    for (const bool is_symmetric : {true, false}) {
      const QuantizedWeight groups = int4_groups(dtype, kOut, kIn, is_symmetric);
      const QuantizedWeight twin = as_gguf(groups, is_symmetric);
      std::vector<float> results[2];
      for (const QuantizedWeight* w : {&groups, &twin}) {
        auto weight = b->create_linear(kOut, kIn, false);
        b->load_rows(*weight, 0, w->view());
        EXPECT_EQ(weight->size_bytes(), b->linear_bytes(kOut, kIn, twin.dtype));
        auto& out = results[w == &twin];
        out.resize(kRows * kOut);
        b->linear(*weight, matrix(x, kRows, kIn), matrix(out, kRows, kOut));
      }
      EXPECT_TRUE(same_bits(results[0], results[1])) << dtype_info(dtype).name;
      const auto exact = groups.values(), kept = twin.values();
      for (size_t i = 0; i < exact.size(); ++i) {
        // Only scale * zero, at most 16 * 0.031, is rounded, and not where every zero is 8.
        ASSERT_NEAR(kept[i], exact[i], is_symmetric ? 0.0 : 16 * 0.031 / 2048);
      }
    }
  }
}

// Types that no panel format keeps become plain.
TEST_P(QuantizedLinearTest, OtherTypesBecomePlain) {
  const auto b = backend();
  for (const DType dtype : {DType::kQ5_0, DType::kIQ4_NL, DType::kQ2_K}) {
    auto weight = b->create_linear(20, 256, false);
    b->load_rows(*weight, 0, QuantizedWeight(dtype, 20, 256, 1).view());
    EXPECT_EQ(weight->size_bytes(), b->linear_bytes(20, 256, DType::kBFloat16));
  }
}

TEST_P(QuantizedLinearTest, ANaNStaysInItsRow) {
  const auto b = backend();
  constexpr int64_t kRows = 3, kIn = 64, kOut = 20;
  const QuantizedWeight w(DType::kQ4_1, kOut, kIn, 1);
  auto weight = b->create_linear(kOut, kIn, false);
  b->load_rows(*weight, 0, w.view());
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    auto x = random_floats(kRows * kIn, 2);
    x[kIn + 40] = bad;
    std::vector<float> out(kRows * kOut);
    b->linear(*weight, matrix(x, kRows, kIn), matrix(out, kRows, kOut));
    for (int64_t i = 0; i < kRows * kOut; ++i) EXPECT_EQ(std::isnan(out[i]), i / kOut == 1);
  }
}

TEST_P(QuantizedLinearTest, TakesLessMemoryAndSaysSo) {
  const auto b = backend();
  for (const DType dtype : kTypes) {
    auto weight = b->create_linear(320, 512, false);
    b->load_rows(*weight, 0, QuantizedWeight(dtype, 320, 512, 1).view());
    EXPECT_EQ(weight->size_bytes(), b->linear_bytes(320, 512, dtype));
    // The scales of 256-blocks are spread out: up to half a bit a weight more than in the file.
    EXPECT_LE(weight->size_bytes(), dtype_bytes(dtype, 320 * 512) + 320 * 512 / 16);
  }
}

// A product of scales beyond float16 leaves the range unquantised rather than wrong.
TEST_P(QuantizedLinearTest, FallsBackWhenAScaleDoesNotFit) {
  const auto b = backend();
  QuantizedWeight w(DType::kQ6_K, 4, 256, 1);
  const auto huge = static_cast<_Float16>(60000.0f);
  std::memcpy(w.bytes.data() + 208, &huge, sizeof(huge));
  w.bytes[192] = static_cast<std::byte>(100);
  auto weight = b->create_linear(4, 256, false);
  b->load_rows(*weight, 0, w.view());
  EXPECT_EQ(weight->size_bytes(), b->linear_bytes(4, 256, DType::kFloat32));
  const int32_t id = 0;
  std::vector<float> row(256);
  b->embed(*weight, &id, matrix(row, 1, 256));
  const auto expected = w.values();
  for (int64_t k = 0; k < 256; ++k) EXPECT_EQ(row[k], round_to_bfloat16(expected[k]));
}

// Plain weights quantised at load: within half a step of the original.
TEST_P(QuantizedLinearTest, QuantizesPlainWeightsOnRequest) {
  constexpr int64_t kOut = 50, kIn = 96;
  const auto w = random_floats(kOut * kIn, 3, 0.05f);
  for (const auto& [name, steps, symmetric] :
       {std::tuple<const char*, float, bool>{"int8", 127.0f, true}, {"int4", 15.0f, false}}) {
    BackendOptions options = backend_options(isa(), DType::kBFloat16);
    options.quantization = name;
    const auto b = create_backend(options);
    const auto weight = make_linear(*b, w, kOut, kIn);
    EXPECT_EQ(weight->size_bytes(), b->linear_bytes(kOut, kIn, DType::kFloat32));
    std::vector<int32_t> ids(kOut);
    for (int32_t i = 0; i < kOut; ++i) ids[i] = i;
    std::vector<float> rows(kOut * kIn);
    b->embed(*weight, ids.data(), matrix(rows, kOut, kIn));
    for (int64_t block = 0; block < kOut * kIn; block += 32) {
      const auto [least, greatest] = std::minmax_element(&w[block], &w[block] + 32);
      const float span =
          symmetric ? std::max(std::abs(*least), std::abs(*greatest)) : *greatest - *least;
      for (int64_t k = block; k < block + 32; ++k) {
        // Half a step, and the rounding of scale and minimum to float16.
        ASSERT_NEAR(rows[k], w[k], span / steps * 0.5 + 0.001 * span + 1e-4) << name;
      }
    }
  }
}

TEST_P(QuantizedLinearTest, RefusesUnknownQuantization) {
  BackendOptions options = backend_options(isa(), DType::kBFloat16);
  options.quantization = "int3";
  EXPECT_THROW(create_backend(options), ConfigError);
}

}  // namespace
}  // namespace octavo::cpu
