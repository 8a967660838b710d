// The forward pass against itself: what it leaves out must not be missed. Values are compared with
// transformers in tests/parity.
#include <gtest/gtest.h>

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

class LlamaTest : public ::testing::Test {
 protected:
  LlamaTest() : model_(tiny_model(backend_)) {
    model_->prepare(64);
    KVCacheSpec spec = model_->kv_cache_spec();
    spec.block_size = 64;
    spec.num_blocks = 1;
    spec.dtype = DType::kFloat32;
    cache_ = backend_.create_kv_cache(spec);
    workspace_ = Workspace(backend_.allocate(model_->workspace_bytes(64)));
  }

  std::vector<std::vector<float>> logits(const Step& step) {
    const TensorView hidden = model_->forward(step.inputs, *cache_, workspace_);
    std::vector<float> values(hidden.rows() * 61);
    model_->compute_logits(hidden,
                           TensorView::matrix(values.data(), DType::kFloat32, hidden.rows(), 61));
    std::vector<std::vector<float>> rows;
    for (int64_t i = 0; i < hidden.rows(); ++i) {
      rows.emplace_back(values.begin() + i * 61, values.begin() + (i + 1) * 61);
    }
    return rows;
  }

  ReferenceBackend backend_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<KVCache> cache_;
  Workspace workspace_;
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
  model_->forward(Step(0, 12, {}).inputs, *cache_, workspace_);
  EXPECT_EQ(backend_.linear_rows, (std::vector<int64_t>{12, 12, 12, 12, 12}));
}

TEST_F(LlamaTest, PassesAllocateNothing) {
  const int before = backend_.num_allocations;
  model_->forward(Step(0, 64, {63}).inputs, *cache_, workspace_);
  EXPECT_EQ(backend_.num_allocations, before);
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
