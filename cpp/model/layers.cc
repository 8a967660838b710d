#include "model/layers.h"

#include <array>
#include <cmath>
#include <vector>

namespace octavo {

AttentionWeights declare_attention(Weights& weights, const ModelConfig& config,
                                   const std::string& prefix) {
  const std::array<Projection, 3> qkv = {{{prefix + ".q_proj", q_size(config)},
                                          {prefix + ".k_proj", kv_size(config)},
                                          {prefix + ".v_proj", kv_size(config)}}};
  return {weights.declare_linear(qkv, config.hidden_size, config.qkv_bias),
          weights.declare_linear({prefix + ".o_proj", config.hidden_size}, q_size(config),
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

ExpertWeights declare_experts(Weights& weights, const ModelConfig& config,
                              const std::string& prefix, const ExpertNames& names) {
  const int64_t inner = config.expert_intermediate_size;
  std::vector<Projection> gate_up, down;
  for (int64_t e = 0; e < config.num_experts; ++e) {
    const std::string expert = prefix + ".experts." + std::to_string(e) + ".";
    gate_up.push_back({expert + names.gate, inner});
    gate_up.push_back({expert + names.up, inner});
    down.push_back({expert + names.down, config.hidden_size});
  }
  return {weights.declare_linear({prefix + ".gate", config.num_experts}, config.hidden_size),
          weights.declare_linear(gate_up, config.hidden_size, false),
          weights.declare_linear(down, inner, false)};
}

AttentionParams attention_params(const ModelConfig& config, int64_t layer) {
  AttentionParams params;
  params.layer = layer;
  params.num_q_heads = config.num_q_heads;
  params.num_kv_heads = config.num_kv_heads;
  params.head_dim = config.head_dim;
  params.scale = static_cast<float>(config.attention_scale > 0.0
                                        ? config.attention_scale
                                        : 1.0 / std::sqrt(static_cast<double>(config.head_dim)));
  params.logit_soft_cap = static_cast<float>(config.attention_soft_cap);
  if (!config.sliding_windows.empty()) params.sliding_window = config.sliding_windows[layer];
  return params;
}

Activations::Activations(Workspace& workspace, const ModelConfig& config, ActivationTypes types,
                         int64_t num_tokens) {
  const DType dtype = types.activation;
  check(dtype_bytes(types.residual, 1) <= 2 * dtype_bytes(dtype, 1), "the residual is too wide");
  const int64_t begin = workspace.mark();
  kept_normed_ = workspace.matrix(dtype, num_tokens, config.hidden_size);
  kept_delta_ = workspace.matrix(dtype, num_tokens, config.hidden_size);
  kept_residual_ = workspace.matrix(types.residual, num_tokens, config.hidden_size);
  workspace.release(begin);
  residual = workspace.matrix(types.residual, num_tokens, config.hidden_size);
  normed = workspace.matrix(dtype, num_tokens, config.hidden_size);
  delta = workspace.matrix(dtype, num_tokens, config.hidden_size);
  const int64_t shared = workspace.mark();
  qkv = workspace.matrix(dtype, num_tokens, qkv_size(config));
  attended = workspace.matrix(dtype, num_tokens, q_size(config));
  workspace.release(shared);
  gate_up = workspace.matrix(dtype, num_tokens, 2 * config.intermediate_size);
  gated = workspace.matrix(dtype, num_tokens, config.intermediate_size);
  workspace.release(shared);
  if (config.num_experts > 0) take_experts(workspace, config, dtype, num_tokens);
  workspace.release(0);
}

void Activations::take_experts(Workspace& workspace, const ModelConfig& config, DType dtype,
                               int64_t num_tokens) {
  const int64_t num_pairs = num_tokens * config.experts_per_token;
  const int64_t inner = config.expert_intermediate_size;
  router_logits = workspace.matrix(DType::kFloat32, num_tokens, config.num_experts);
  experts.plan =
      workspace.matrix(DType::kInt32, 1, expert_plan_size(num_pairs, config.num_experts));
  experts.gate_up = workspace.matrix(dtype, num_pairs, 2 * inner);
  experts.gated = workspace.matrix(dtype, num_pairs, inner);
  experts.out = workspace.matrix(dtype, num_pairs, config.hidden_size);
}

void Activations::keep_logits_rows(Backend& backend, const ForwardInputs& inputs) {
  const int64_t n = inputs.num_logits;
  backend.gather_rows(residual, inputs.logits_indices, kept_residual_.first_rows(n));
  residual = kept_residual_.first_rows(n);
  normed = kept_normed_.first_rows(n);
  delta = kept_delta_.first_rows(n);
  const TensorView rows = TensorView::matrix(qkv.data, qkv.dtype, n, attended.cols());
  backend.gather_rows(attended, inputs.logits_indices, rows);
  attended = rows;
  gate_up = gate_up.first_rows(n);
  gated = gated.first_rows(n);
  if (router_logits.data != nullptr) router_logits = router_logits.first_rows(n);
}

}  // namespace octavo
