// Granite 3: Llama's block with multipliers on the embeddings, on what each block adds, on the
// attention scores and on the logits.
// Source: Granite Team, "Granite 3.0 Language Models", 2024; Hugging Face transformers,
// models/granite.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model/decoder.h"

namespace octavo {
namespace {

struct Layer {
  VectorId input_norm;
  AttentionWeights attention;
  VectorId post_attention_norm;
  GatedMlpWeights mlp;
};

class Granite final : public Decoder {
 public:
  Granite(const ModelConfig& config, Backend& backend) : Decoder(config, backend) {
    declare_embedding();
    for (int64_t i = 0; i < config.num_layers; ++i) layers_.push_back(declare_layer(layer_name(i)));
    declare_head();
  }

 private:
  void begin(Activations& x) override {
    backend().scale(x.residual, static_cast<float>(config().embedding_multiplier));
    norm(x.residual, layers_[0].input_norm, x.normed);
  }
  void project_qkv(int64_t layer, Activations& x) override {
    project(layers_[layer].attention.qkv, x.normed, x.qkv);
  }
  void finish_layer(int64_t layer, Activations& x) override {
    const auto multiplier = static_cast<float>(config().residual_multiplier);
    project(layers_[layer].attention.output, x.attended, x.delta);
    backend().scale(x.delta, multiplier);
    add_norm(layers_[layer].post_attention_norm, x);
    run_gated_mlp(layers_[layer].mlp, x.normed, x);
    backend().scale(x.delta, multiplier);
    add_norm(next_norm(layer), x);
  }

  Layer declare_layer(const std::string& name) {
    Layer layer;
    layer.input_norm = declare_norm(name + ".input_layernorm");
    layer.attention = declare_attention(weights(), config(), name + ".self_attn");
    layer.post_attention_norm = declare_norm(name + ".post_attention_layernorm");
    layer.mlp = declare_gated_mlp(weights(), config(), name + ".mlp");
    return layer;
  }

  VectorId next_norm(int64_t layer) const {
    return layer + 1 == config().num_layers ? final_norm() : layers_[layer + 1].input_norm;
  }

  std::vector<Layer> layers_;
};

}  // namespace

std::unique_ptr<Model> create_granite(const ModelConfig& config, Backend& backend) {
  return std::make_unique<Granite>(config, backend);
}

}  // namespace octavo
