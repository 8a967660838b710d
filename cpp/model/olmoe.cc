// OLMoE: a mixture of small experts in every layer; q and k are normalised over all heads together.
// Source: Muennighoff et al., "OLMoE", 2024; Hugging Face transformers, models/olmoe.
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
  ExpertWeights experts;
};

class Olmoe final : public Decoder {
 public:
  Olmoe(const ModelConfig& config, Backend& backend) : Decoder(config, backend) {
    declare_embedding();
    for (int64_t i = 0; i < config.num_layers; ++i) layers_.push_back(declare_layer(layer_name(i)));
    declare_head();
  }

 private:
  void begin(Activations& x) override { norm(x.residual, layers_[0].input_norm, x.normed); }
  void project_qkv(int64_t layer, Activations& x) override {
    const Layer& l = layers_[layer];
    project(l.attention.qkv, x.normed, x.qkv);
    norm_qk({l.q_norm, l.k_norm, q_size(config()), kv_size(config())}, x);
  }
  void finish_layer(int64_t layer, Activations& x) override {
    project(layers_[layer].attention.output, x.attended, x.delta);
    add_norm(layers_[layer].post_attention_norm, x);
    run_experts(layers_[layer].experts, x.normed, x);
    add_norm(next_norm(layer), x);
  }

  Layer declare_layer(const std::string& name) {
    Layer layer;
    layer.input_norm = declare_norm(name + ".input_layernorm");
    layer.attention = declare_attention(weights(), config(), name + ".self_attn");
    layer.q_norm = weights().declare_vector(name + ".self_attn.q_norm.weight", q_size(config()));
    layer.k_norm = weights().declare_vector(name + ".self_attn.k_norm.weight", kv_size(config()));
    layer.post_attention_norm = declare_norm(name + ".post_attention_layernorm");
    layer.experts = declare_experts(weights(), config(), name + ".mlp");
    return layer;
  }

  VectorId next_norm(int64_t layer) const {
    return layer + 1 == config().num_layers ? final_norm() : layers_[layer + 1].input_norm;
  }

  std::vector<Layer> layers_;
};

}  // namespace

std::unique_ptr<Model> create_olmoe(const ModelConfig& config, Backend& backend) {
  return std::make_unique<Olmoe>(config, backend);
}

}  // namespace octavo
