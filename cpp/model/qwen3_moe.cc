// Qwen3-MoE: Qwen3's attention with a mixture of experts for the MLP of most layers.
// Source: Qwen Team, "Qwen3 Technical Report", 2025; Hugging Face transformers, models/qwen3_moe.
#include <cstdint>
#include <memory>
#include <string>
#include <variant>
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
  std::variant<GatedMlpWeights, ExpertWeights> mlp;
};

class Qwen3Moe final : public Decoder {
 public:
  Qwen3Moe(const ModelConfig& config, Backend& backend) : Decoder(config, backend) {
    declare_embedding();
    for (int64_t i = 0; i < config.num_layers; ++i) layers_.push_back(declare_layer(i));
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
    const Layer& l = layers_[layer];
    project(l.attention.output, x.attended, x.delta);
    add_norm(l.post_attention_norm, x);
    if (const auto* experts = std::get_if<ExpertWeights>(&l.mlp)) {
      run_experts(*experts, x.normed, x);
    } else {
      run_gated_mlp(std::get<GatedMlpWeights>(l.mlp), x.normed, x);
    }
    add_norm(next_norm(layer), x);
  }

  Layer declare_layer(int64_t index) {
    const std::string name = layer_name(index);
    Layer layer;
    layer.input_norm = declare_norm(name + ".input_layernorm");
    layer.attention = declare_attention(weights(), config(), name + ".self_attn");
    layer.q_norm = weights().declare_vector(name + ".self_attn.q_norm.weight", config().head_dim);
    layer.k_norm = weights().declare_vector(name + ".self_attn.k_norm.weight", config().head_dim);
    layer.post_attention_norm = declare_norm(name + ".post_attention_layernorm");
    if (config().expert_layers.empty() || config().expert_layers[index]) {
      layer.mlp = declare_experts(weights(), config(), name + ".mlp");
    } else {
      layer.mlp = declare_gated_mlp(weights(), config(), name + ".mlp");
    }
    return layer;
  }

  VectorId next_norm(int64_t layer) const {
    return layer + 1 == config().num_layers ? final_norm() : layers_[layer + 1].input_norm;
  }

  std::vector<Layer> layers_;
};

}  // namespace

std::unique_ptr<Model> create_qwen3_moe(const ModelConfig& config, Backend& backend) {
  return std::make_unique<Qwen3Moe>(config, backend);
}

}  // namespace octavo
