#include "model/registry.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/errors.h"
#include "model/tiny_model.h"

namespace octavo::testing {
namespace {

const WeightSpec* find(const Model& model, std::string_view name) {
  for (const WeightSpec& spec : model.weights().specs()) {
    if (spec.name == name) return &spec;
  }
  return nullptr;
}

TEST(Registry, UnknownArchitectureNamesTheKnownOnes) {
  ReferenceBackend backend;
  ModelConfig config = tiny_config();
  config.architecture = "mamba";
  try {
    create_model(config, backend);
    FAIL() << "mamba was accepted";
  } catch (const UnsupportedModelError& error) {
    const std::string what = error.what();
    EXPECT_NE(what.find("'mamba'"), std::string::npos);
    EXPECT_NE(what.find("llama"), std::string::npos);
  }
}

TEST(Registry, LlamaAsksForTheTensorsOfItsConfiguration) {
  ReferenceBackend backend;
  ModelConfig config = tiny_config();
  const auto plain = create_model(config, backend);
  EXPECT_EQ(plain->weights().specs().size(), 3u + 2u * 9u);
  EXPECT_EQ(find(*plain, "model.layers.1.self_attn.k_proj.weight")->rows, 20);
  EXPECT_EQ(find(*plain, "model.layers.1.self_attn.k_proj.weight")->row_begin, 40);
  EXPECT_EQ(find(*plain, "model.layers.0.self_attn.o_proj.weight")->cols, 40);
  EXPECT_EQ(find(*plain, "model.layers.0.self_attn.q_proj.bias"), nullptr);
  EXPECT_EQ(find(*plain, "lm_head.weight")->rows, 61);

  config.tie_word_embeddings = config.qkv_bias = true;
  config.attention_output_bias = config.mlp_bias = true;
  const auto full = create_model(config, backend);
  EXPECT_EQ(find(*full, "lm_head.weight"), nullptr);
  EXPECT_EQ(find(*full, "model.layers.0.self_attn.v_proj.bias")->row_begin, 60);
  EXPECT_EQ(find(*full, "model.layers.0.mlp.up_proj.bias")->row_begin, 40);
  EXPECT_NE(find(*full, "model.layers.0.self_attn.o_proj.bias"), nullptr);
  EXPECT_NE(find(*full, "model.layers.0.mlp.down_proj.bias"), nullptr);
}

TEST(Registry, EveryNameMakesAModel) {
  ReferenceBackend backend;
  const std::vector<std::string> names = architecture_names();
  EXPECT_TRUE(std::ranges::is_sorted(names));
  for (const std::string& name : names) {
    ModelConfig config = tiny_config();
    config.architecture = name;
    config.num_experts = 4;
    config.experts_per_token = 2;
    config.expert_intermediate_size = 12;
    EXPECT_NE(find(*create_model(config, backend), "model.embed_tokens.weight"), nullptr) << name;
  }
}

TEST(Registry, RefusesSizesThatDoNotFitTogether) {
  ReferenceBackend backend;
  const auto refused = [&](auto change) {
    ModelConfig config = tiny_config();
    change(config);
    try {
      create_model(config, backend);
    } catch (const UnsupportedModelError&) {
      return true;
    }
    return false;
  };
  EXPECT_FALSE(refused([](ModelConfig&) {}));
  EXPECT_TRUE(refused([](ModelConfig& c) { c.num_kv_heads = 3; }));
  EXPECT_TRUE(refused([](ModelConfig& c) { c.num_kv_heads = 0; }));
  EXPECT_TRUE(refused([](ModelConfig& c) { c.head_dim = 9; }));
  EXPECT_TRUE(refused([](ModelConfig& c) { c.rope.rotary_dim = 12; }));
  EXPECT_TRUE(refused([](ModelConfig& c) { c.vocab_size = 0; }));
  EXPECT_TRUE(refused([](ModelConfig& c) { c.num_layers = -1; }));
  EXPECT_TRUE(refused([](ModelConfig& c) { c.sliding_windows = {8}; }));
  EXPECT_TRUE(refused([](ModelConfig& c) { c.num_experts = 4; }));
  EXPECT_TRUE(refused([](ModelConfig& c) { c.logits_divisor = 0.0; }));
}

}  // namespace
}  // namespace octavo::testing
