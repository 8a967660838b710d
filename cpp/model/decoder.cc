#include "model/decoder.h"

#include <utility>

namespace octavo {

void Decoder::declare_embedding() {
  embedding_ =
      weights().declare_linear({"model.embed_tokens", config().vocab_size}, config().hidden_size);
}

void Decoder::declare_head() {
  final_norm_ = declare_norm("model.norm");
  head_ = config().tie_word_embeddings
              ? embedding_
              : weights().declare_linear({"lm_head", config().vocab_size}, config().hidden_size);
}

VectorId Decoder::declare_norm(std::string name) {
  return weights().declare_vector(std::move(name) + ".weight", config().hidden_size,
                                  config().norm_offset);
}

int64_t Decoder::workspace_bytes(int64_t num_tokens) const {
  Workspace measure;
  Activations(measure, config(), backend().activation_dtype(), num_tokens);
  return measure.peak_bytes();
}

TensorView Decoder::forward(const ForwardInputs& inputs, KVCache& cache, Workspace& workspace) {
  Activations x(workspace, config(), backend().activation_dtype(), inputs.num_tokens);
  backend().embed(weights()[embedding_], inputs.token_ids, x.residual);
  begin(x);
  for (int64_t layer = 0; layer < config().num_layers; ++layer) {
    const AttentionParams params = attention_params(config(), layer);
    project_qkv(layer, x);
    backend().rope_and_cache(x.qkv, rope_of(layer), inputs, params, cache);
    if (is_last(layer) && inputs.num_logits == 0) return x.normed.first_rows(0);
    backend().attention(x.qkv, inputs, params, cache, x.attended);
    if (is_last(layer) && inputs.num_logits < inputs.num_tokens) {
      x.keep_logits_rows(backend(), inputs);
    }
    finish_layer(layer, x);
  }
  return x.normed;
}

void Decoder::compute_logits(TensorView hidden, TensorView logits) {
  project(head_, hidden, logits);
  if (config().logits_divisor != 1.0) {
    backend().scale(logits, static_cast<float>(1.0 / config().logits_divisor));
  }
  if (config().final_soft_cap > 0.0) {
    backend().soft_cap(logits, static_cast<float>(config().final_soft_cap));
  }
}

void Decoder::project(LinearId weight, TensorView x, TensorView out) {
  backend().linear(weights()[weight], x, out);
}

void Decoder::norm(TensorView x, VectorId weight, TensorView out) {
  backend().rms_norm(x, weights()[weight], eps(), out);
}

void Decoder::add_norm(VectorId weight, Activations& x) {
  backend().add_rms_norm(x.residual, x.delta, weights()[weight], eps(), x.normed);
}

void Decoder::norm_qk(const QkNormWeights& norm, Activations& x) {
  const QkNorm runs{weights()[norm.q], weights()[norm.k], norm.q_run, norm.k_run, eps()};
  backend().qk_norm(x.qkv, runs, attention_params(config(), 0));
}

void Decoder::project_qkv_once(LinearId weight, Activations& x) {
  if (!x.has_qkv) project(weight, x.normed, x.qkv);
  x.has_qkv = false;
}

void Decoder::finish_pre_norm_layer(const PreNormTail& tail, Activations& x) {
  const Weights& w = weights();
  const LayerTail operands{.output = w[tail.output],
                           .mlp_norm = w[tail.mlp_norm],
                           .gate_up = w[tail.mlp.gate_up],
                           .down = w[tail.mlp.down],
                           .next_norm = w[tail.next_norm],
                           .next = tail.next_qkv.index < 0 ? nullptr : &w[tail.next_qkv],
                           .eps = eps()};
  if (backend().finish_layer(operands, {x.attended, x.residual, x.normed, x.gated, x.qkv})) {
    x.has_qkv = operands.next != nullptr;
    return;
  }
  project(tail.output, x.attended, x.delta);
  add_norm(tail.mlp_norm, x);
  run_gated_mlp(tail.mlp, x.normed, x);
  add_norm(tail.next_norm, x);
}

void Decoder::run_gated_mlp(const GatedMlpWeights& mlp, TensorView input, Activations& x) {
  backend().gated_linear(weights()[mlp.gate_up], input, x.gate_up, x.gated);
  project(mlp.down, x.gated, x.delta);
}

void Decoder::run_experts(const ExpertWeights& experts, TensorView input, Activations& x) {
  project(experts.router, input, x.router_logits);
  const ExpertBank bank{weights()[experts.gate_up], weights()[experts.down], config().num_experts,
                        config().experts_per_token, config().renormalize_experts};
  backend().experts(input, x.router_logits, bank, x.experts, x.delta);
}

}  // namespace octavo
