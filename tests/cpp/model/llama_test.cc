// The forward pass against itself: what it leaves out must not be missed. Values are compared with
// transformers in tests/parity.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "model/tiny_model.h"

namespace octavo::testing {
namespace {

// One sequence on block 0, positions [begin, end).
struct Step {
  Step(int32_t begin, int32_t end, std::vector<int32_t> rows) : logits_indices(std::move(rows)) {
    for (int32_t p = begin; p < end; ++p) {
      token_ids.push_back(p * 7 % 61);
      positions.push_back(p);
      slots.push_back(p);
    }
    query_start_loc = {0, end - begin};
    seq_lens = {end};
    inputs.num_tokens = end - begin;
    inputs.num_seqs = 1;
    inputs.num_logits = std::ssize(logits_indices);
    inputs.max_query_len = end - begin;
    inputs.max_seq_len = end;
    inputs.block_table_stride = 1;
    inputs.token_ids = token_ids.data();
    inputs.positions = positions.data();
    inputs.slot_mapping = slots.data();
    inputs.query_start_loc = query_start_loc.data();
    inputs.seq_lens = seq_lens.data();
    inputs.block_tables = block_table.data();
    inputs.logits_indices = logits_indices.data();
    inputs.host_query_start_loc = query_start_loc;
    inputs.host_seq_lens = seq_lens;
  }
  std::vector<int32_t> token_ids, positions, query_start_loc, seq_lens, logits_indices;
  std::vector<int32_t> block_table = {0};
  std::vector<int64_t> slots;
  ForwardInputs inputs;
};

// A model with a cache and a workspace of its own.
struct Rig {
  explicit Rig(Backend& b, const ModelConfig& config = tiny_config())
      : backend(b), model(tiny_model(b, config)) {
    model->prepare(64);
    KVCacheSpec spec = model->kv_cache_spec();
    spec.block_size = 64;
    spec.num_blocks = 1;
    spec.dtype = DType::kFloat32;
    cache = backend.create_kv_cache(spec);
    workspace = Workspace(backend.allocate(model->workspace_bytes(64)));
  }

  std::vector<std::vector<float>> logits(const Step& step) {
    const TensorView hidden = model->forward(step.inputs, *cache, workspace);
    std::vector<float> values(hidden.rows() * 61);
    model->compute_logits(hidden,
                          TensorView::matrix(values.data(), DType::kFloat32, hidden.rows(), 61));
    std::vector<std::vector<float>> rows;
    for (int64_t i = 0; i < hidden.rows(); ++i) {
      rows.emplace_back(values.begin() + i * 61, values.begin() + (i + 1) * 61);
    }
    return rows;
  }

  Backend& backend;
  std::unique_ptr<Model> model;
  std::unique_ptr<KVCache> cache;
  Workspace workspace;
};

class LlamaTest : public ::testing::Test {
 protected:
  std::vector<std::vector<float>> logits(const Step& step) { return rig_.logits(step); }

  ReferenceBackend backend_;
  Rig rig_{backend_};
};

// Has a layer's tail as one operation, after which `normed` is worthless.
class FusingBackend final : public ReferenceBackend {
 public:
  int num_fused = 0;

  bool finish_layer(const LayerTail& tail, const LayerTailViews& x) override {
    ++num_fused;
    const int64_t rows = x.residual.rows(), hidden = x.residual.cols(), inner = x.gated.cols();
    std::vector<float> delta(rows * hidden), both(rows * 2 * inner);
    const TensorView d = TensorView::matrix(delta.data(), DType::kFloat32, rows, hidden);
    linear(tail.output, x.attended, d);
    add_rms_norm(x.residual, d, tail.mlp_norm, tail.eps, x.normed);
    gated_linear(tail.gate_up, x.normed,
                 TensorView::matrix(both.data(), DType::kFloat32, rows, 2 * inner), x.gated);
    linear(tail.down, x.gated, d);
    add_rms_norm(x.residual, d, tail.next_norm, tail.eps, x.normed);
    if (tail.next == nullptr) return true;
    linear(*tail.next, x.normed, x.next_out);
    std::fill_n(x.normed.as<float>(), rows * hidden, NAN);
    return true;
  }
};

std::vector<int32_t> all_rows(int32_t n) {
  std::vector<int32_t> rows(n);
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

TEST_F(LlamaTest, RowsDoNotDependOnWhichRowsAreAskedFor) {
  const auto all = logits(Step(0, 12, all_rows(12)));
  const auto some = logits(Step(0, 12, {3, 4, 11}));
  ASSERT_EQ(some.size(), 3u);
  EXPECT_EQ(some[0], all[3]);
  EXPECT_EQ(some[1], all[4]);
  EXPECT_EQ(some[2], all[11]);
}

TEST_F(LlamaTest, ChunksGiveTheSameLogits) {
  const auto whole = logits(Step(0, 12, {11}));
  EXPECT_TRUE(logits(Step(0, 5, {})).empty());
  logits(Step(5, 11, {}));
  const auto last = logits(Step(11, 12, {0}));
  EXPECT_EQ(last[0], whole[0]);
}

TEST_F(LlamaTest, LastLayerComputesOnlyTheRowsThatAreNeeded) {
  backend_.linear_rows.clear();
  logits(Step(0, 12, {11}));
  const std::vector<int64_t> expected = {12, 12, 12, 12, 12, 1, 1, 1, 1};
  EXPECT_EQ(backend_.linear_rows, expected);
  backend_.linear_rows.clear();
  rig_.model->forward(Step(0, 12, {}).inputs, *rig_.cache, rig_.workspace);
  EXPECT_EQ(backend_.linear_rows, (std::vector<int64_t>{12, 12, 12, 12, 12}));
}

TEST_F(LlamaTest, PassesAllocateNothing) {
  const int before = backend_.num_allocations;
  rig_.model->forward(Step(0, 64, {63}).inputs, *rig_.cache, rig_.workspace);
  EXPECT_EQ(backend_.num_allocations, before);
}

TEST(Llama, FusedTailsGiveTheSameLogits) {
  for (const char* architecture : {"llama", "qwen3", "phi3", "smollm3"}) {
    ModelConfig config = tiny_config();
    config.architecture = architecture;
    ReferenceBackend plain;
    FusingBackend fusing;
    Rig expected(plain, config), fused(fusing, config);
    for (const Step& step : {Step(0, 5, {}), Step(5, 12, {0, 6}), Step(12, 13, {0})}) {
      EXPECT_EQ(fused.logits(step), expected.logits(step)) << architecture;
    }
    EXPECT_EQ(fusing.num_fused, 5) << architecture;  // two layers; without logits only the first
  }
}

TEST(Llama, StatesWhatItWillTake) {
  ReferenceBackend backend;
  const auto model = tiny_model(backend);
  EXPECT_EQ(model->kv_cache_spec().num_layers, 2);
  EXPECT_EQ(model->kv_cache_spec().num_kv_heads, 2);
  EXPECT_EQ(model->kv_cache_spec().head_dim, 10);
  EXPECT_EQ(model->prepared_bytes(32), 32 * 10 * 4);
  EXPECT_GT(model->workspace_bytes(64), model->workspace_bytes(32));
}

}  // namespace
}  // namespace octavo::testing
