// Phi-3 and Phi-4: Llama's block with q|k|v and gate|up stored as one tensor each, rotation of part
// of a head, and longrope.
// Source: Abdin et al., "Phi-3 Technical Report", 2024; Hugging Face transformers, models/phi3.
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

class Phi3 final : public Decoder {
 public:
  Phi3(const ModelConfig& config, Backend& backend) : Decoder(config, backend) {
    declare_embedding();
    for (int64_t i = 0; i < config.num_layers; ++i) layers_.push_back(declare_layer(layer_name(i)));
    declare_head();
  }

 private:
  void begin(Activations& x) override { norm(x.residual, layers_[0].input_norm, x.normed); }
  void project_qkv(int64_t layer, Activations& x) override {
    project_qkv_once(layers_[layer].attention.qkv, x);
  }
  void finish_layer(int64_t layer, Activations& x) override {
    const Layer& l = layers_[layer];
    const LinearId next_qkv = is_last(layer) ? LinearId{} : layers_[layer + 1].attention.qkv;
    finish_pre_norm_layer(
        {l.attention.output, l.post_attention_norm, l.mlp, next_norm(layer), next_qkv}, x);
  }

  Layer declare_layer(const std::string& name) {
    const int64_t hidden = config().hidden_size, inner = config().intermediate_size;
    Layer layer;
    layer.input_norm = declare_norm(name + ".input_layernorm");
    layer.attention.qkv =
        weights().declare_linear({name + ".self_attn.qkv_proj", qkv_size(config())}, hidden);
    layer.attention.output =
        weights().declare_linear({name + ".self_attn.o_proj", hidden}, q_size(config()));
    layer.post_attention_norm = declare_norm(name + ".post_attention_layernorm");
    layer.mlp.gate_up = weights().declare_linear({name + ".mlp.gate_up_proj", 2 * inner}, hidden);
    layer.mlp.down = weights().declare_linear({name + ".mlp.down_proj", hidden}, inner);
    return layer;
  }

  VectorId next_norm(int64_t layer) const {
    return is_last(layer) ? final_norm() : layers_[layer + 1].input_norm;
  }

  std::vector<Layer> layers_;
};

}  // namespace

std::unique_ptr<Model> create_phi3(const ModelConfig& config, Backend& backend) {
  return std::make_unique<Phi3>(config, backend);
}

}  // namespace octavo
