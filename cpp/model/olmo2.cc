// OLMo 2: attention and MLP take the residual as it is, and what they add is normalised; q and k
// are normalised over all heads together.
// Source: OLMo Team, "2 OLMo 2 Furious", 2024; Hugging Face transformers, models/olmo2.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model/decoder.h"

namespace octavo {
namespace {

struct Layer {
  AttentionWeights attention;
  VectorId q_norm;
  VectorId k_norm;
  VectorId post_attention_norm;
  GatedMlpWeights mlp;
  VectorId post_mlp_norm;
};

class Olmo2 final : public Decoder {
 public:
  Olmo2(const ModelConfig& config, Backend& backend) : Decoder(config, backend) {
    declare_embedding();
    for (int64_t i = 0; i < config.num_layers; ++i) layers_.push_back(declare_layer(layer_name(i)));
    declare_head();
  }

 private:
  DType residual_dtype() const override { return backend().activation_dtype(); }
  void begin(Activations& /*x*/) override {}
  void project_qkv(int64_t layer, Activations& x) override {
    const Layer& l = layers_[layer];
    project(l.attention.qkv, x.residual, x.qkv);
    norm_qk({l.q_norm, l.k_norm, q_size(config()), kv_size(config())}, x);
  }
  void finish_layer(int64_t layer, Activations& x) override {
    const Layer& l = layers_[layer];
    project(l.attention.output, x.attended, x.delta);
    norm(x.delta, l.post_attention_norm, x.delta);
    backend().add(x.residual, x.delta);
    run_gated_mlp(l.mlp, x.residual, x);
    norm(x.delta, l.post_mlp_norm, x.delta);
    backend().add(x.residual, x.delta);
    if (layer + 1 == config().num_layers) norm(x.residual, final_norm(), x.normed);
  }

  Layer declare_layer(const std::string& name) {
    Layer layer;
    layer.attention = declare_attention(weights(), config(), name + ".self_attn");
    layer.q_norm = weights().declare_vector(name + ".self_attn.q_norm.weight", q_size(config()));
    layer.k_norm = weights().declare_vector(name + ".self_attn.k_norm.weight", kv_size(config()));
    layer.post_attention_norm = declare_norm(name + ".post_attention_layernorm");
    layer.mlp = declare_gated_mlp(weights(), config(), name + ".mlp");
    layer.post_mlp_norm = declare_norm(name + ".post_feedforward_layernorm");
    return layer;
  }

  std::vector<Layer> layers_;
};

}  // namespace

std::unique_ptr<Model> create_olmo2(const ModelConfig& config, Backend& backend) {
  return std::make_unique<Olmo2>(config, backend);
}

}  // namespace octavo
