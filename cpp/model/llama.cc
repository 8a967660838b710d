// Llama: pre-norm blocks of grouped-query attention with rotary positions and a SiLU-gated MLP.
// Mistral without a sliding window and Qwen2 (bias on q, k, v) are the same graph.
// Source: Touvron et al., "LLaMA", 2023; Hugging Face transformers, models/llama.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model/layers.h"
#include "model/model.h"

namespace octavo {
namespace {

struct Layer {
  VectorId input_norm;
  AttentionWeights attention;
  VectorId post_attention_norm;
  GatedMlpWeights mlp;
};

class Llama final : public Model {
 public:
  Llama(const ModelConfig& config, Backend& backend) : Model(config, backend) {
    const Projection embedding{"model.embed_tokens", config.vocab_size};
    embedding_ = weights().declare_linear(embedding, config.hidden_size);
    for (int64_t i = 0; i < config.num_layers; ++i) declare_layer(i);
    final_norm_ = weights().declare_vector("model.norm.weight", config.hidden_size);
    head_ = config.tie_word_embeddings
                ? embedding_
                : weights().declare_linear({"lm_head", config.vocab_size}, config.hidden_size);
  }

  int64_t workspace_bytes(int64_t num_tokens) const override {
    Workspace measure;
    Activations(measure, config(), backend().activation_dtype(), num_tokens);
    return measure.peak_bytes();
  }

  TensorView forward(const ForwardInputs& inputs, KVCache& cache, Workspace& workspace) override {
    Activations x(workspace, config(), backend().activation_dtype(), inputs.num_tokens);
    const Weights& w = weights();
    backend().embed(w[embedding_], inputs.token_ids, x.residual);
    backend().rms_norm(x.residual, w[layers_[0].input_norm], eps(), x.normed);
    for (size_t i = 0; i < layers_.size(); ++i) {
      const bool is_last = i + 1 == layers_.size();
      run_attention(i, inputs, cache, x);
      if (is_last) {
        if (inputs.num_logits == 0) return x.normed.first_rows(0);
        if (inputs.num_logits < inputs.num_tokens) x.keep_logits_rows(backend(), inputs);
      }
      backend().linear(w[layers_[i].attention.output], x.attended, x.delta);
      add_norm(layers_[i].post_attention_norm, x);
      run_gated_mlp(backend(), w, layers_[i].mlp, x);
      add_norm(is_last ? final_norm_ : layers_[i + 1].input_norm, x);
    }
    return x.normed;
  }

  void compute_logits(TensorView hidden, TensorView logits) override {
    backend().linear(weights()[head_], hidden, logits);
  }

 private:
  void declare_layer(int64_t index) {
    const std::string prefix = "model.layers." + std::to_string(index);
    const int64_t hidden_size = config().hidden_size;
    Layer layer;
    layer.input_norm = weights().declare_vector(prefix + ".input_layernorm.weight", hidden_size);
    layer.attention = declare_attention(weights(), config(), prefix + ".self_attn");
    layer.post_attention_norm =
        weights().declare_vector(prefix + ".post_attention_layernorm.weight", hidden_size);
    layer.mlp = declare_gated_mlp(weights(), config(), prefix + ".mlp");
    layers_.push_back(layer);
  }

  void run_attention(size_t layer, const ForwardInputs& inputs, KVCache& cache, Activations& x) {
    AttentionParams params = attention_params(config());
    params.layer = static_cast<int64_t>(layer);
    backend().linear(weights()[layers_[layer].attention.qkv], x.normed, x.qkv);
    backend().rope_and_cache(x.qkv, rope(), inputs, params, cache);
    const bool is_last = layer + 1 == layers_.size();
    if (is_last && inputs.num_logits == 0) return;
    backend().attention(x.qkv, inputs, params, cache, x.attended);
  }

  void add_norm(VectorId norm, Activations& x) {
    backend().add_rms_norm(x.residual, x.delta, weights()[norm], eps(), x.normed);
  }

  float eps() const { return static_cast<float>(config().rms_norm_eps); }

  LinearId embedding_;
  std::vector<Layer> layers_;
  VectorId final_norm_;
  LinearId head_;
};

}  // namespace

std::unique_ptr<Model> create_llama(const ModelConfig& config, Backend& backend) {
  return std::make_unique<Llama>(config, backend);
}

}  // namespace octavo
