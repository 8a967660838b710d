#include "model/decoder.h"

#include <utility>

namespace octavo {
namespace {

LoraPlan take_lora_plan(Workspace& workspace, int64_t num_rows, const LoraLimits& limits) {
  const TensorView memory =
      workspace.matrix(DType::kInt32, 1, lora_plan_size(num_rows, limits.num_slots));
  return {memory.as<int32_t>(), num_rows, limits.num_slots};
}

}  // namespace

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
  if (lora_limits().num_slots > 0) take_lora_plan(measure, num_tokens, lora_limits());
  activations(measure, num_tokens);
  return measure.peak_bytes();
}

TensorView Decoder::forward(const ForwardInputs& inputs, KVCache& cache, Workspace& workspace) {
  begin_loras(inputs, workspace);
  Activations x = activations(workspace, inputs.num_tokens);
  backend().embed(weights()[embedding_], inputs.token_ids, x.residual);
  begin(x);
  for (int64_t layer = 0; layer < config().num_layers; ++layer) {
    const bool is_last = layer + 1 == config().num_layers;
    const AttentionParams params = attention_params(config(), layer);
    project_qkv(layer, x);
    backend().rope_and_cache(x.qkv, rope_of(layer), inputs, params, cache);
    if (is_last && inputs.num_logits == 0) return x.normed.first_rows(0);
    backend().attention(x.qkv, inputs, params, cache, x.attended);
    if (is_last && inputs.num_logits < inputs.num_tokens) keep_logits_rows(inputs, x);
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

Activations Decoder::activations(Workspace& workspace, int64_t num_tokens) const {
  return {workspace, config(), {backend().activation_dtype(), residual_dtype()}, num_tokens};
}

void Decoder::begin_loras(const ForwardInputs& inputs, Workspace& workspace) {
  lora_plan_ = {};
  if (inputs.lora_slots == nullptr) return;
  check(lora_limits().num_slots > 0, "a row has an adapter, but there is room for none");
  lora_plan_ = take_lora_plan(workspace, inputs.num_tokens, lora_limits());
  backend().plan_lora(inputs.lora_slots, nullptr, lora_plan_);
}

void Decoder::keep_logits_rows(const ForwardInputs& inputs, Activations& x) {
  x.keep_logits_rows(backend(), inputs);
  if (lora_plan_.memory == nullptr) return;
  lora_plan_.num_rows = inputs.num_logits;
  backend().plan_lora(inputs.lora_slots, inputs.logits_indices, lora_plan_);
}

const LoraBank* Decoder::active_bank(LinearId weight) const {
  return lora_plan_.memory == nullptr ? nullptr : loras().bank_of(weight);
}

void Decoder::project(LinearId weight, TensorView x, TensorView out) {
  if (const LoraBank* bank = active_bank(weight)) {
    backend().lora_linear(weights()[weight], *bank, lora_plan_, x, out);
  } else {
    backend().linear(weights()[weight], x, out);
  }
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

void Decoder::run_gated_mlp(const GatedMlpWeights& mlp, TensorView input, Activations& x,
                            GatedFunction function) {
  const bool has_plain_gate_up = active_bank(mlp.gate_up) == nullptr;
  if (has_plain_gate_up && active_bank(mlp.down) == nullptr) {
    backend().gated_mlp({weights()[mlp.gate_up], weights()[mlp.down], function}, input,
                        {x.gate_up, x.gated}, x.delta);
    return;
  }
  // Adapters change what the function takes, or read what it gives.
  if (has_plain_gate_up && function == GatedFunction::kSilu) {
    backend().gated_linear(weights()[mlp.gate_up], input, x.gate_up, x.gated);
  } else {
    project(mlp.gate_up, input, x.gate_up);
    if (function == GatedFunction::kSilu) {
      backend().silu_mul(x.gate_up, x.gated);
    } else {
      backend().gelu_tanh_mul(x.gate_up, x.gated);
    }
  }
  project(mlp.down, x.gated, x.delta);
}

void Decoder::run_experts(const ExpertWeights& experts, TensorView input, Activations& x) {
  project(experts.router, input, x.router_logits);
  const ExpertBank bank{weights()[experts.gate_up], weights()[experts.down], config().num_experts,
                        config().experts_per_token, config().renormalize_experts};
  backend().experts(input, x.router_logits, bank, x.experts, x.delta);
}

}  // namespace octavo
