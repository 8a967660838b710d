// SmolLM3: Llama's block, in which some layers do not rotate q and k.
// Source: Bakouch et al., "SmolLM3", 2025; Yang et al., "RoPE to NoPE and Back Again", 2025;
// Hugging Face transformers, models/smollm3.
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

class SmolLM3 final : public Decoder {
 public:
  SmolLM3(const ModelConfig& config, Backend& backend) : Decoder(config, backend) {
    declare_embedding();
    for (int64_t i = 0; i < config.num_layers; ++i) layers_.push_back(declare_layer(layer_name(i)));
    declare_head();
  }

 private:
  void begin(Activations& x) override { norm(x.residual, layers_[0].input_norm, x.normed); }
  void project_qkv(int64_t layer, Activations& x) override {
    project(layers_[layer].attention.qkv, x.normed, x.qkv);
  }
  void finish_layer(int64_t layer, Activations& x) override {
    project(layers_[layer].attention.output, x.attended, x.delta);
    add_norm(layers_[layer].post_attention_norm, x);
    run_gated_mlp(layers_[layer].mlp, x.normed, x);
    add_norm(next_norm(layer), x);
  }
  const RopeTable& rope_of(int64_t layer) const override {
    const std::vector<bool>& rotates = config().rope_layers;
    return rotates.empty() || rotates[layer] ? rope() : no_rope_;
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

  const RopeTable no_rope_;
  std::vector<Layer> layers_;
};

}  // namespace

std::unique_ptr<Model> create_smollm3(const ModelConfig& config, Backend& backend) {
  return std::make_unique<SmolLM3>(config, backend);
}

}  // namespace octavo
