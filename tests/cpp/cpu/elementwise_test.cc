#include <cmath>

#include "cpu/cpu_testing.h"

namespace octavo::cpu {
namespace {

class ElementwiseTest : public EachIsa {
 protected:
  std::unique_ptr<Backend> backend(int32_t num_threads = 2) const {
    return create_backend(backend_options(isa(), DType::kFloat32, num_threads));
  }
};
OCTAVO_TEST_EACH_ISA(ElementwiseTest);

const int64_t kSizes[] = {1, 12, 16, 48, 63, 64, 65, 200, 576, 2049};

TEST_P(ElementwiseTest, RmsNormMatchesADoublePrecisionTwin) {
  const auto b = backend();
  for (const int64_t size : kSizes) {
    constexpr int64_t kRows = 19;
    auto x = random_floats(kRows * size, 1, 3.0f);
    const auto weight = random_floats(size, 2);
    std::vector<float> out(kRows * size);
    b->rms_norm(matrix(x, kRows, size), weight.data(), 1e-5f, matrix(out, kRows, size));
    for (int64_t r = 0; r < kRows; ++r) {
      double squares = 0;
      for (int64_t i = 0; i < size; ++i) squares += double{x[r * size + i]} * x[r * size + i];
      const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(size) + 1e-5);
      for (int64_t i = 0; i < size; ++i) {
        const double expected = x[r * size + i] * inverse * weight[i];
        ASSERT_NEAR(out[r * size + i], expected, 5e-7 * std::abs(expected) + 1e-30) << size;
      }
    }
  }
}

TEST_P(ElementwiseTest, AddRmsNormIsAddThenRmsNorm) {
  const auto b = backend();
  constexpr int64_t kRows = 40, kSize = 300;
  auto residual = random_floats(kRows * kSize, 1), delta = random_floats(kRows * kSize, 2);
  const auto weight = random_floats(kSize, 3);
  auto separate = residual;
  std::vector<float> fused_out(kRows * kSize), out(kRows * kSize);
  b->add_rms_norm(matrix(residual, kRows, kSize), matrix(delta, kRows, kSize), weight.data(), 1e-6f,
                  matrix(fused_out, kRows, kSize));
  b->add(matrix(separate, kRows, kSize), matrix(delta, kRows, kSize));
  b->rms_norm(matrix(separate, kRows, kSize), weight.data(), 1e-6f, matrix(out, kRows, kSize));
  EXPECT_TRUE(same_bits(residual, separate));
  EXPECT_TRUE(same_bits(fused_out, out));
}

TEST_P(ElementwiseTest, SiluMulMatchesADoublePrecisionTwin) {
  const auto b = backend();
  for (const int64_t size : kSizes) {
    constexpr int64_t kRows = 3;
    auto gate_up = random_floats(kRows * 2 * size, 1, 8.0f);
    std::vector<float> out(kRows * size);
    b->silu_mul(matrix(gate_up, kRows, 2 * size), matrix(out, kRows, size));
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t i = 0; i < size; ++i) {
        const double g = gate_up[r * 2 * size + i], u = gate_up[(r * 2 + 1) * size + i];
        const double expected = g / (1.0 + std::exp(-g)) * u;
        ASSERT_NEAR(out[r * size + i], expected, 6e-7 * std::abs(expected) + 1e-35);
      }
    }
  }
}

TEST_P(ElementwiseTest, GeluTanhMulMatchesADoublePrecisionTwin) {
  const auto b = backend();
  for (const int64_t size : kSizes) {
    auto gate_up = random_floats(2 * size, 1, 4.0f);
    std::vector<float> out(size);
    b->gelu_tanh_mul(matrix(gate_up, 1, 2 * size), matrix(out, 1, size));
    for (int64_t i = 0; i < size; ++i) {
      const double g = gate_up[i], y = std::sqrt(2.0 / M_PI) * (g + 0.044715 * g * g * g);
      const double expected = g / (1.0 + std::exp(-2.0 * y)) * gate_up[size + i];
      ASSERT_NEAR(out[i], expected, 2e-6 * std::abs(expected) + 1e-9) << g;
    }
  }
}

TEST_P(ElementwiseTest, ScaleAndSoftCapMatchTheirDefinitions) {
  const auto b = backend();
  for (const int64_t size : kSizes) {
    auto x = random_floats(3 * size, 1, 50.0f);
    auto capped = x, scaled = x;
    b->scale(matrix(scaled, 3, size), 1.7f);
    b->soft_cap(matrix(capped, 3, size), 30.0f);
    for (int64_t i = 0; i < 3 * size; ++i) {
      ASSERT_EQ(scaled[i], x[i] * 1.7f);
      ASSERT_NEAR(capped[i], 30.0 * std::tanh(x[i] / 30.0), 1e-5);
    }
  }
}

TEST_P(ElementwiseTest, QkNormNormalisesRunsOfQAndKInPlace) {
  const auto b = backend();
  constexpr int64_t kRows = 5, kDim = 20, kQHeads = 6, kKVHeads = 2;
  constexpr int64_t kWidth = (kQHeads + 2 * kKVHeads) * kDim;
  AttentionParams params;
  params.num_q_heads = kQHeads;
  params.num_kv_heads = kKVHeads;
  params.head_dim = kDim;
  const auto q_weight = random_floats(kQHeads * kDim, 2),
             k_weight = random_floats(kKVHeads * kDim, 3);
  for (const int64_t heads : {int64_t{1}, kQHeads}) {
    const int64_t q_run = heads * kDim, k_run = heads == 1 ? kDim : kKVHeads * kDim;
    const auto before = random_floats(kRows * kWidth, 1, 3.0f);
    auto qkv = before;
    b->qk_norm(matrix(qkv, kRows, kWidth), {q_weight.data(), k_weight.data(), q_run, k_run, 1e-5f},
               params);
    for (int64_t i = 0; i < kRows * kWidth; ++i) {
      const int64_t col = i % kWidth, k_col = col - kQHeads * kDim;
      if (k_col >= kKVHeads * kDim) {
        ASSERT_EQ(qkv[i], before[i]) << "v is left alone";
        continue;
      }
      const int64_t run = k_col < 0 ? q_run : k_run, at = (k_col < 0 ? col : k_col) % run;
      double squares = 0;
      for (int64_t j = i - at; j < i - at + run; ++j) squares += double{before[j]} * before[j];
      const double weight = (k_col < 0 ? q_weight : k_weight)[at];
      const double expected =
          before[i] / std::sqrt(squares / static_cast<double>(run) + 1e-5) * weight;
      ASSERT_NEAR(qkv[i], expected, 1e-6 * std::abs(expected) + 1e-30);
    }
  }
}

TEST_P(ElementwiseTest, SiluMulIsRightAtTheEnds) {
  const auto b = backend();
  std::vector<float> gate_up = {0.0f, 100.0f, -100.0f, 1e30f, -1e30f, NAN, 1, 1, 1, 1, 1, 1};
  std::vector<float> out(6);
  b->silu_mul(matrix(gate_up, 1, 12), matrix(out, 1, 6));
  EXPECT_EQ(out[0], 0.0f);
  EXPECT_EQ(out[1], 100.0f);
  EXPECT_NEAR(out[2], 0.0f, 1e-36f);
  EXPECT_EQ(out[3], 1e30f);
  EXPECT_NEAR(out[4] / 1e30f, 0.0f, 1e-36f);
  EXPECT_TRUE(std::isnan(out[5]));
}

TEST_P(ElementwiseTest, EmbedReturnsTheRowsAsStored) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    const auto b = create_backend(backend_options(isa(), dtype));
    constexpr int64_t kVocab = 131, kHidden = 50;
    const auto table = random_floats(kVocab * kHidden, 1);
    const auto weight = make_linear(*b, table, kVocab, kHidden);
    std::vector<int32_t> ids;
    for (int i = 0; i < 300; ++i) ids.push_back(i * 37 % kVocab);
    std::vector<float> out(ids.size() * kHidden), expected;
    b->embed(*weight, ids.data(), matrix(out, std::ssize(ids), kHidden));
    for (const int32_t id : ids) {
      for (int64_t k = 0; k < kHidden; ++k) {
        expected.push_back(round_to(dtype, table[id * kHidden + k]));
      }
    }
    EXPECT_TRUE(same_bits(out, expected)) << dtype_info(dtype).name;
  }
}

TEST_P(ElementwiseTest, GatherRowsCopies) {
  const auto b = backend();
  auto x = random_floats(30 * 48, 1);
  const std::vector<int32_t> indices = {0, 7, 8, 29};
  std::vector<float> out(indices.size() * 48), expected;
  b->gather_rows(matrix(x, 30, 48), indices.data(), matrix(out, 4, 48));
  for (const int32_t i : indices) expected.insert(expected.end(), &x[i * 48], &x[i * 48] + 48);
  EXPECT_TRUE(same_bits(out, expected));
}

TEST_P(ElementwiseTest, LoadVectorConverts) {
  const auto b = backend();
  const auto half = [](float value) { return static_cast<_Float16>(value); };
  const std::vector<_Float16> halves = {half(1.5f), half(-0.25f), half(65504.0f)};
  std::vector<float> out(3);
  b->load_vector(out.data(), {halves.data(), DType::kFloat16, 1, 3});
  EXPECT_EQ(out, (std::vector<float>{1.5f, -0.25f, 65504.0f}));
}

TEST_P(ElementwiseTest, RowsDoNotDependOnTheBatch) {
  constexpr int64_t kRows = 37, kSize = 515;
  auto x = random_floats(kRows * 2 * kSize, 1);
  const auto weight = random_floats(2 * kSize, 2);
  const auto run = [&](int32_t threads, int64_t first, int64_t count) {
    const auto b = backend(threads);
    std::vector<float> rows(x.begin() + first * 2 * kSize, x.begin() + (first + count) * 2 * kSize);
    std::vector<float> out(count * 3 * kSize);
    b->silu_mul(matrix(rows, count, 2 * kSize), matrix(out, count, kSize));
    const TensorView norm = {
        out.data() + count * kSize, DType::kFloat32, 2, {count, 2 * kSize}, 2 * kSize};
    b->rms_norm(matrix(rows, count, 2 * kSize), weight.data(), 1e-5f, norm);
    std::vector<float> first_row(out.begin(), out.begin() + kSize);
    first_row.insert(first_row.end(), &out[count * kSize], &out[count * kSize] + 2 * kSize);
    return first_row;
  };
  for (const int64_t row : {0, 1, 17, 36}) {
    const auto alone = run(1, row, 1);
    EXPECT_TRUE(same_bits(alone, run(2, row, kRows - row)));
    EXPECT_TRUE(same_bits(alone, run(1, row, kRows - row)));
  }
}

TEST(DeviceBuffer, ReadsAsZerosAndCopies) {
  const auto b = create_backend({});
  const auto buffer = b->allocate(int64_t{64} << 20);
  EXPECT_EQ(buffer->size_bytes(), int64_t{64} << 20);
  std::vector<char> data(1000, 'x'), back(1000);
  b->copy_to_host(back.data(), static_cast<char*>(buffer->data()) + (32 << 20), 1000);
  EXPECT_EQ(back, std::vector<char>(1000, 0));
  b->copy_to_device(buffer->data(), data.data(), 1000);
  b->copy_to_host(back.data(), buffer->data(), 1000);
  b->synchronize();
  EXPECT_EQ(back, data);
}

TEST(DeviceInfo, NamesTheDeviceAndItsMemory) {
  const DeviceInfo info = create_backend({})->device_info();
  EXPECT_TRUE(info.name.starts_with("cpu (")) << info.name;
  EXPECT_GT(info.free_bytes, 0);
  EXPECT_GE(info.total_bytes, info.free_bytes);
}

}  // namespace
}  // namespace octavo::cpu
