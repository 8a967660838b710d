// Gemma 2: norms before and after attention and MLP, scaled embeddings, GELU, soft caps on scores
// and logits, windows on every other layer.
// Source: Gemma Team, "Gemma 2", 2024; Hugging Face transformers, models/gemma2.
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
  VectorId pre_mlp_norm;
  GatedMlpWeights mlp;
  VectorId post_mlp_norm;
};

class Gemma2 final : public Decoder {
 public:
  Gemma2(const ModelConfig& config, Backend& backend) : Decoder(config, backend) {
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
    const Layer& l = layers_[layer];
    project(l.attention.output, x.attended, x.delta);
    norm(x.delta, l.post_attention_norm, x.delta);
    add_norm(l.pre_mlp_norm, x);
    run_gated_mlp(l.mlp, x.normed, x, GatedFunction::kGeluTanh);
    norm(x.delta, l.post_mlp_norm, x.delta);
    add_norm(next_norm(layer), x);
  }

  Layer declare_layer(const std::string& name) {
    Layer layer;
    layer.input_norm = declare_norm(name + ".input_layernorm");
    layer.attention = declare_attention(weights(), config(), name + ".self_attn");
    layer.post_attention_norm = declare_norm(name + ".post_attention_layernorm");
    layer.pre_mlp_norm = declare_norm(name + ".pre_feedforward_layernorm");
    layer.mlp = declare_gated_mlp(weights(), config(), name + ".mlp");
    layer.post_mlp_norm = declare_norm(name + ".post_feedforward_layernorm");
    return layer;
  }

  VectorId next_norm(int64_t layer) const {
    return layer + 1 == config().num_layers ? final_norm() : layers_[layer + 1].input_norm;
  }

  std::vector<Layer> layers_;
};

}  // namespace

std::unique_ptr<Model> create_gemma2(const ModelConfig& config, Backend& backend) {
  return std::make_unique<Gemma2>(config, backend);
}

}  // namespace octavo
