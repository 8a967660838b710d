// The buffers of a pass, with a residual of the activations' type and with a wider one.
#include "model/layers.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "model/tiny_model.h"

namespace octavo::testing {
namespace {

// Plans for activations of half the residual's width; computes nothing with them.
struct WideResidualBackend final : ReferenceBackend {
  DType activation_dtype() const override { return DType::kBFloat16; }
  DType residual_dtype() const override { return DType::kFloat32; }
};

struct NarrowBackend final : ReferenceBackend {
  DType activation_dtype() const override { return DType::kBFloat16; }
};

class ActivationsTest : public ::testing::TestWithParam<ActivationTypes> {
 protected:
  static constexpr int64_t kTokens = 20;

  ActivationsTest() {
    Workspace measure;
    Activations(measure, config_, GetParam(), kTokens);
    workspace_ = Workspace(backend_.allocate(measure.peak_bytes()));
  }

  static std::byte* begin_of(const TensorView& view) { return view.as<std::byte>(); }
  static int64_t bytes_of(const TensorView& view) {
    return dtype_bytes(view.dtype, view.num_elements());
  }
  // Byte i of a buffer: a pattern of its own, another for each buffer.
  static std::byte pattern(int64_t i, int seed) { return static_cast<std::byte>(i * 7 + seed); }
  static void fill(const TensorView& view, int seed) {
    for (int64_t i = 0; i < bytes_of(view); ++i) begin_of(view)[i] = pattern(i, seed);
  }
  // Whether row i is row rows[i] of a buffer that was filled.
  static bool holds_rows(const TensorView& view, const std::vector<int32_t>& rows, int seed) {
    const int64_t row_bytes = dtype_bytes(view.dtype, view.cols());
    for (int64_t i = 0; i < view.rows() * row_bytes; ++i) {
      const int64_t source = rows[i / row_bytes] * row_bytes + i % row_bytes;
      if (begin_of(view)[i] != pattern(source, seed)) return false;
    }
    return true;
  }
  static bool holds_pattern(const TensorView& view, int seed) {
    for (int64_t i = 0; i < bytes_of(view); ++i) {
      if (begin_of(view)[i] != pattern(i, seed)) return false;
    }
    return true;
  }

  const ModelConfig config_ = tiny_config();
  ReferenceBackend backend_;
  Workspace workspace_;
};

TEST_P(ActivationsTest, BuffersOfALayerDoNotOverlap) {
  const Activations x(workspace_, config_, GetParam(), kTokens);
  const TensorView buffers[] = {x.residual, x.normed, x.delta, x.qkv, x.attended};
  int seed = 0;
  for (const TensorView& buffer : buffers) fill(buffer, ++seed);
  seed = 0;
  for (const TensorView& buffer : buffers) EXPECT_TRUE(holds_pattern(buffer, ++seed)) << seed;
}

TEST_P(ActivationsTest, KeepsTheRowsThatAreAskedFor) {
  for (const std::vector<int32_t>& rows :
       {std::vector<int32_t>{19},
        {0, 7, 8},
        {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19}}) {
    Activations x(workspace_, config_, GetParam(), kTokens);
    fill(x.residual, 1);
    fill(x.attended, 2);
    ForwardInputs inputs;
    inputs.num_logits = std::ssize(rows);
    inputs.logits_indices = rows.data();
    const TensorView before = x.residual;
    x.keep_logits_rows(backend_, inputs);
    EXPECT_TRUE(holds_pattern(before, 1)) << "a device gathers all rows at once, not in place";
    EXPECT_EQ(x.residual.dtype, GetParam().residual);
    EXPECT_EQ(x.normed.dtype, GetParam().activation);
    EXPECT_EQ(x.residual.rows(), std::ssize(rows));
    EXPECT_TRUE(holds_rows(x.residual, rows, 1));
    EXPECT_TRUE(holds_rows(x.attended, rows, 2));
    // What the rest of the layer writes reaches neither of them.
    fill(x.delta, 3);
    fill(x.normed, 4);
    EXPECT_TRUE(holds_pattern(x.delta, 3));
    EXPECT_TRUE(holds_rows(x.attended, rows, 2));
    fill(x.gate_up, 5);
    fill(x.gated, 6);
    EXPECT_TRUE(holds_rows(x.residual, rows, 1));
    EXPECT_TRUE(holds_pattern(x.delta, 3));
    EXPECT_TRUE(holds_pattern(x.normed, 4));
  }
}

INSTANTIATE_TEST_SUITE_P(Types, ActivationsTest,
                         ::testing::Values(ActivationTypes{DType::kFloat32, DType::kFloat32},
                                           ActivationTypes{DType::kBFloat16, DType::kBFloat16},
                                           ActivationTypes{DType::kBFloat16, DType::kFloat32}));

TEST(Activations, RefusesAResidualThatIsTooWide) {
  Workspace measure;
  EXPECT_THROW(Activations(measure, tiny_config(), {DType::kInt8, DType::kFloat32}, 4), CheckError);
}

// By what a residual of twice the width adds to the plan, for each architecture.
TEST(Activations, ResidualIsWiderWhereItIsNotProjected) {
  constexpr int64_t kTokens = 64;
  WideResidualBackend wide;
  NarrowBackend narrow;
  for (const char* architecture : {"llama", "gemma2", "granite", "olmo2"}) {
    ModelConfig config = tiny_config();
    config.architecture = architecture;
    const int64_t added = create_model(config, wide)->workspace_bytes(kTokens) -
                          create_model(config, narrow)->workspace_bytes(kTokens);
    const bool projects_it = config.architecture == "olmo2";
    EXPECT_EQ(added, projects_it ? 0 : 2 * kTokens * config.hidden_size) << architecture;
  }
}

}  // namespace
}  // namespace octavo::testing
