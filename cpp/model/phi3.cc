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
    project(layers_[layer].attention.qkv, x.normed, x.qkv);
  }
  void finish_layer(int64_t layer, Activations& x) override {
    project(layers_[layer].attention.output, x.attended, x.delta);
    add_norm(layers_[layer].post_attention_norm, x);
    run_gated_mlp(layers_[layer].mlp, x.normed, x);
    add_norm(next_norm(layer), x);
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
    return layer + 1 == config().num_layers ? final_norm() : layers_[layer + 1].input_norm;
  }

  std::vector<Layer> layers_;
};

}  // namespace

std::unique_ptr<Model> create_phi3(const ModelConfig& config, Backend& backend) {
  return std::make_unique<Phi3>(config, backend);
}

}  // namespace octavo
