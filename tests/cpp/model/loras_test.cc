// Adapters in the forward pass: what they add, and where.
#include "model/loras.h"

#include <gtest/gtest.h>

#include <random>

#include "base/errors.h"
#include "model/tiny_model.h"

namespace octavo::testing {
namespace {

constexpr int64_t kVocab = 61, kRank = 3;

struct Pair {
  std::vector<float> a, b;
};

std::vector<float> random_values(int64_t count, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, 0.3f);
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

WeightView view_of(const std::vector<float>& values, int64_t rows, int64_t cols) {
  return {values.data(), DType::kFloat32, rows, cols};
}

// A model with room for adapters, and steps of several sequences of `length` tokens, one a block.
class Adapted {
 public:
  explicit Adapted(LoraLimits limits = {3, 8}) : model_(tiny_model(backend_)) {
    model_->enable_loras(limits);
    model_->allocate_loras();
    model_->prepare(64);
    KVCacheSpec spec = model_->kv_cache_spec();
    spec.block_size = 64;
    spec.num_blocks = 4;
    spec.dtype = DType::kFloat32;
    cache_ = backend_.create_kv_cache(spec);
    workspace_ = Workspace(backend_.allocate(model_->workspace_bytes(64)));
  }

  Model& model() { return *model_; }

  // Random pairs for every target whose name holds `part`.
  void load(int32_t slot, std::string_view part, uint32_t seed) {
    for (const LoraTarget& target : lora_targets(model_->weights())) {
      if (target.name.find(part) == std::string::npos) continue;
      const auto a = random_values(kRank * target.in_features, seed++);
      const auto b = random_values(target.out_features * kRank, seed++);
      model_->loras().load(
          slot, target.name,
          {0.5f, view_of(a, kRank, target.in_features), view_of(b, target.out_features, kRank)});
    }
  }

  // The logits of the last token of each sequence; sequence i has slots[i].
  std::vector<std::vector<float>> run(const std::vector<int32_t>& slots, int32_t length = 5) {
    const auto num_seqs = static_cast<int32_t>(slots.size());
    std::vector<int32_t> ids, positions, starts = {0}, lengths, tables, rows, row_slots;
    std::vector<int64_t> mapping;
    for (int32_t s = 0; s < num_seqs; ++s) {
      for (int32_t p = 0; p < length; ++p) {
        ids.push_back((p * 7 + 3) % kVocab);
        positions.push_back(p);
        mapping.push_back(s * 64 + p);
        row_slots.push_back(slots[s]);
      }
      starts.push_back((s + 1) * length);
      lengths.push_back(length);
      tables.push_back(s);
      rows.push_back((s + 1) * length - 1);
    }
    ForwardInputs inputs;
    inputs.num_tokens = std::ssize(ids);
    inputs.num_seqs = inputs.num_logits = num_seqs;
    inputs.max_query_len = inputs.max_seq_len = length;
    inputs.block_table_stride = 1;
    inputs.token_ids = ids.data();
    inputs.positions = positions.data();
    inputs.slot_mapping = mapping.data();
    inputs.query_start_loc = starts.data();
    inputs.seq_lens = lengths.data();
    inputs.block_tables = tables.data();
    inputs.logits_indices = rows.data();
    inputs.host_query_start_loc = starts;
    inputs.host_seq_lens = lengths;
    const bool has_loras = *std::max_element(slots.begin(), slots.end()) >= 0;
    if (has_loras) inputs.lora_slots = row_slots.data();
    const TensorView hidden = model_->forward(inputs, *cache_, workspace_);
    std::vector<float> values(num_seqs * kVocab);
    model_->compute_logits(hidden,
                           TensorView::matrix(values.data(), DType::kFloat32, num_seqs, kVocab));
    std::vector<std::vector<float>> logits;
    for (int32_t s = 0; s < num_seqs; ++s) {
      logits.emplace_back(values.begin() + s * kVocab, values.begin() + (s + 1) * kVocab);
    }
    return logits;
  }

 private:
  ReferenceBackend backend_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<KVCache> cache_;
  Workspace workspace_;
};

TEST(Loras, TargetsAreTheProjectionsByTheirNamesInTheCheckpoint) {
  ReferenceBackend backend;
  const auto model = tiny_model(backend);
  const std::vector<LoraTarget> targets = lora_targets(model->weights());
  ASSERT_EQ(targets.size(), 2u * 7u);
  EXPECT_EQ(targets[0].name, "model.layers.0.self_attn.q_proj");
  EXPECT_EQ(targets[0].in_features, 24);
  EXPECT_EQ(targets[0].out_features, 40);
  EXPECT_EQ(targets[6].name, "model.layers.0.mlp.down_proj");
  EXPECT_EQ(targets[6].in_features, 40);
  EXPECT_EQ(targets[6].out_features, 24);
}

TEST(Loras, EveryTargetChangesTheLogitsOfItsSlotAlone) {
  for (const char* part : {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj",
                           "down_proj", "layers.1.self_attn.o_proj", "layers.1.mlp"}) {
    Adapted adapted;
    const auto base = adapted.run({-1})[0];
    adapted.load(1, part, 100);
    const auto mixed = adapted.run({-1, 1, 0, -1});
    EXPECT_EQ(mixed[0], base) << part;
    EXPECT_NE(mixed[1], base) << part;
    EXPECT_EQ(mixed[2], base) << part;  // an empty slot
    EXPECT_EQ(mixed[3], base) << part;
    EXPECT_EQ(adapted.run({1})[0], mixed[1]) << part;
    EXPECT_EQ(adapted.run({-1})[0], base) << part;
  }
}

TEST(Loras, SeveralAdaptersInAStepAreEachAsAlone) {
  Adapted adapted;
  for (int32_t slot = 0; slot < 3; ++slot) adapted.load(slot, "proj", 1000 * (slot + 1));
  const auto mixed = adapted.run({2, 0, 1, -1});
  EXPECT_EQ(adapted.run({2})[0], mixed[0]);
  EXPECT_EQ(adapted.run({0})[0], mixed[1]);
  EXPECT_EQ(adapted.run({1})[0], mixed[2]);
  EXPECT_EQ(adapted.run({-1})[0], mixed[3]);
  EXPECT_NE(mixed[0], mixed[1]);
}

TEST(Loras, AClearedSlotAddsNothing) {
  Adapted adapted;
  const auto base = adapted.run({-1})[0];
  adapted.load(0, "proj", 5);
  EXPECT_NE(adapted.run({0})[0], base);
  adapted.model().loras().clear(0);
  EXPECT_EQ(adapted.run({0})[0], base);
}

TEST(Loras, RefusesWhatDoesNotFit) {
  Adapted adapted;
  Loras& loras = adapted.model().loras();
  const std::string q = "model.layers.0.self_attn.q_proj";
  const auto values = random_values(40 * 24, 1);
  const auto load = [&](const std::string& name, int64_t rank, int64_t in, int64_t out) {
    loras.load(0, name, {1.0f, view_of(values, rank, in), view_of(values, out, rank)});
  };
  load(q, 8, 24, 40);
  EXPECT_THROW(load("model.embed_tokens", 2, 24, 40), CheckpointError);
  EXPECT_THROW(load("lm_head", 2, 24, 40), CheckpointError);
  EXPECT_THROW(load(q, 2, 23, 40), CheckpointError);
  EXPECT_THROW(load(q, 2, 24, 39), CheckpointError);
  EXPECT_THROW(load(q, 9, 24, 40), CheckpointError);  // above the greatest rank
}

}  // namespace
}  // namespace octavo::testing
