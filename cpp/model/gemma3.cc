// Gemma 3, text: Gemma 2's block with norms on the heads of q and k in place of the soft caps, and
// a rotation of their own for the layers that have a window.
// Source: Gemma Team, "Gemma 3 Technical Report", 2025; Hugging Face transformers, models/gemma3.
#include <cstdint>
#include <memory>
#include <optional>
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
  VectorId pre_mlp_norm;
  GatedMlpWeights mlp;
  VectorId post_mlp_norm;
};

class Gemma3 final : public Decoder {
 public:
  Gemma3(const ModelConfig& config, Backend& backend) : Decoder(config, backend) {
    declare_embedding();
    for (int64_t i = 0; i < config.num_layers; ++i) layers_.push_back(declare_layer(layer_name(i)));
    declare_head();
  }

  int64_t prepared_bytes(int64_t max_model_len) const override {
    return Decoder::prepared_bytes(max_model_len) +
           RopeTableBuffer::size_bytes(config().local_rope, config().head_dim, max_model_len);
  }

  void prepare(int64_t max_model_len) override {
    Decoder::prepare(max_model_len);
    local_rope_.emplace(backend(), config().local_rope, config().head_dim, max_model_len);
  }

 private:
  void begin(Activations& x) override {
    backend().scale(x.residual, static_cast<float>(config().embedding_multiplier));
    norm(x.residual, layers_[0].input_norm, x.normed);
  }
  void project_qkv(int64_t layer, Activations& x) override {
    const Layer& l = layers_[layer];
    project(l.attention.qkv, x.normed, x.qkv);
    norm_qk({l.q_norm, l.k_norm, config().head_dim, config().head_dim}, x);
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
  const RopeTable& rope_of(int64_t layer) const override {
    const std::vector<int64_t>& windows = config().sliding_windows;
    return windows.empty() || windows[layer] == 0 ? rope() : local_rope_->table();
  }

  Layer declare_layer(const std::string& name) {
    Layer layer;
    layer.input_norm = declare_norm(name + ".input_layernorm");
    layer.attention = declare_attention(weights(), config(), name + ".self_attn");
    layer.q_norm = declare_head_norm(name + ".self_attn.q_norm");
    layer.k_norm = declare_head_norm(name + ".self_attn.k_norm");
    layer.post_attention_norm = declare_norm(name + ".post_attention_layernorm");
    layer.pre_mlp_norm = declare_norm(name + ".pre_feedforward_layernorm");
    layer.mlp = declare_gated_mlp(weights(), config(), name + ".mlp");
    layer.post_mlp_norm = declare_norm(name + ".post_feedforward_layernorm");
    return layer;
  }

  VectorId declare_head_norm(const std::string& name) {
    return weights().declare_vector(name + ".weight", config().head_dim, config().norm_offset);
  }

  VectorId next_norm(int64_t layer) const {
    return layer + 1 == config().num_layers ? final_norm() : layers_[layer + 1].input_norm;
  }

  std::vector<Layer> layers_;
  std::optional<RopeTableBuffer> local_rope_;
};

}  // namespace

std::unique_ptr<Model> create_gemma3(const ModelConfig& config, Backend& backend) {
  return std::make_unique<Gemma3>(config, backend);
}

}  // namespace octavo
