#include "model/layers.h"

#include <array>
#include <cmath>
#include <utility>

namespace octavo {

AttentionWeights declare_attention(Weights& weights, const ModelConfig& config,
                                   const std::string& prefix) {
  const int64_t q_size = config.num_q_heads * config.head_dim;
  const int64_t kv_size = config.num_kv_heads * config.head_dim;
  const std::array<Projection, 3> qkv = {
      {{prefix + ".q_proj", q_size}, {prefix + ".k_proj", kv_size}, {prefix + ".v_proj", kv_size}}};
  return {weights.declare_linear(qkv, config.hidden_size, config.qkv_bias),
          weights.declare_linear({prefix + ".o_proj", config.hidden_size}, q_size,
                                 config.attention_output_bias)};
}

GatedMlpWeights declare_gated_mlp(Weights& weights, const ModelConfig& config,
                                  const std::string& prefix) {
  const std::array<Projection, 2> gate_up = {{{prefix + ".gate_proj", config.intermediate_size},
                                              {prefix + ".up_proj", config.intermediate_size}}};
  return {weights.declare_linear(gate_up, config.hidden_size, config.mlp_bias),
          weights.declare_linear({prefix + ".down_proj", config.hidden_size},
                                 config.intermediate_size, config.mlp_bias)};
}

AttentionParams attention_params(const ModelConfig& config) {
  AttentionParams params;
  params.num_q_heads = config.num_q_heads;
  params.num_kv_heads = config.num_kv_heads;
  params.head_dim = config.head_dim;
  params.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(config.head_dim)));
  return params;
}

Activations::Activations(Workspace& workspace, const ModelConfig& config, DType dtype,
                         int64_t num_tokens) {
  const int64_t q_size = config.num_q_heads * config.head_dim;
  const int64_t kv_size = config.num_kv_heads * config.head_dim;
  residual = workspace.matrix(dtype, num_tokens, config.hidden_size);
  normed = workspace.matrix(dtype, num_tokens, config.hidden_size);
  delta = workspace.matrix(dtype, num_tokens, config.hidden_size);
  const int64_t shared = workspace.mark();
  qkv = workspace.matrix(dtype, num_tokens, q_size + 2 * kv_size);
  attended = workspace.matrix(dtype, num_tokens, q_size);
  workspace.release(shared);
  gate_up = workspace.matrix(dtype, num_tokens, 2 * config.intermediate_size);
  gated = workspace.matrix(dtype, num_tokens, config.intermediate_size);
  workspace.release(0);
}

void Activations::keep_logits_rows(Backend& backend, const ForwardInputs& inputs) {
  const int64_t n = inputs.num_logits;
  std::swap(residual, normed);
  residual = residual.first_rows(n);
  backend.gather_rows(normed, inputs.logits_indices, residual);
  const TensorView rows = TensorView::matrix(qkv.data, qkv.dtype, n, attended.cols());
  backend.gather_rows(attended, inputs.logits_indices, rows);
  attended = rows;
  normed = normed.first_rows(n);
  delta = delta.first_rows(n);
  gate_up = gate_up.first_rows(n);
  gated = gated.first_rows(n);
}

void run_gated_mlp(Backend& backend, const Weights& weights, const GatedMlpWeights& mlp,
                   const Activations& activations) {
  backend.gated_linear(weights[mlp.gate_up], activations.normed, activations.gate_up,
                       activations.gated);
  backend.linear(weights[mlp.down], activations.gated, activations.delta);
}

}  // namespace octavo
