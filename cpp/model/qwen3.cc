// Qwen3: Llama's block without biases, each head of q and k normalised before it rotates.
// Source: Qwen Team, "Qwen3 Technical Report", 2025; Hugging Face transformers, models/qwen3.
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
  VectorId q_norm;
  VectorId k_norm;
  VectorId post_attention_norm;
  GatedMlpWeights mlp;
};

class Qwen3 final : public Decoder {
 public:
  Qwen3(const ModelConfig& config, Backend& backend) : Decoder(config, backend) {
    declare_embedding();
    for (int64_t i = 0; i < config.num_layers; ++i) layers_.push_back(declare_layer(layer_name(i)));
    declare_head();
  }

 private:
  void begin(Activations& x) override { norm(x.residual, layers_[0].input_norm, x.normed); }
  void project_qkv(int64_t layer, Activations& x) override {
    const Layer& l = layers_[layer];
    project(l.attention.qkv, x.normed, x.qkv);
    norm_qk({l.q_norm, l.k_norm, config().head_dim, config().head_dim}, x);
  }
  void finish_layer(int64_t layer, Activations& x) override {
    project(layers_[layer].attention.output, x.attended, x.delta);
    add_norm(layers_[layer].post_attention_norm, x);
    run_gated_mlp(layers_[layer].mlp, x.normed, x);
    add_norm(next_norm(layer), x);
  }

  Layer declare_layer(const std::string& name) {
    Layer layer;
    layer.input_norm = declare_norm(name + ".input_layernorm");
    layer.attention = declare_attention(weights(), config(), name + ".self_attn");
    layer.q_norm = weights().declare_vector(name + ".self_attn.q_norm.weight", config().head_dim);
    layer.k_norm = weights().declare_vector(name + ".self_attn.k_norm.weight", config().head_dim);
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

std::unique_ptr<Model> create_qwen3(const ModelConfig& config, Backend& backend) {
  return std::make_unique<Qwen3>(config, backend);
}

}  // namespace octavo
