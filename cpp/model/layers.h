// Building blocks that architectures share: attention projections, the gated MLP, the mixture of
// experts, and the buffers that a layer's values pass through.
#pragma once

#include <cstdint>
#include <string>

#include "backend/backend.h"
#include "model/model_config.h"
#include "model/weights.h"
#include "model/workspace.h"

namespace octavo {

// q|k|v as one projection, and the output projection.
struct AttentionWeights {
  LinearId qkv;
  LinearId output;
};

// gate|up as one projection, and the way down.
struct GatedMlpWeights {
  LinearId gate_up;
  LinearId down;
};

// The router, and every expert's projections one below the other; see ExpertBank.
struct ExpertWeights {
  LinearId router;
  LinearId gate_up;
  LinearId down;
};

// What a checkpoint calls the projections of an expert.
struct ExpertNames {
  const char* gate = "gate_proj";
  const char* up = "up_proj";
  const char* down = "down_proj";
};

inline int64_t q_size(const ModelConfig& config) { return config.num_q_heads * config.head_dim; }
inline int64_t kv_size(const ModelConfig& config) { return config.num_kv_heads * config.head_dim; }
inline int64_t qkv_size(const ModelConfig& config) { return q_size(config) + 2 * kv_size(config); }

// `prefix` is the block's name in the checkpoint, e.g. "model.layers.0.self_attn".
AttentionWeights declare_attention(Weights& weights, const ModelConfig& config,
                                   const std::string& prefix);
GatedMlpWeights declare_gated_mlp(Weights& weights, const ModelConfig& config,
                                  const std::string& prefix);
// `prefix` holds "gate", the router, and "experts.0" and so on.
ExpertWeights declare_experts(Weights& weights, const ModelConfig& config,
                              const std::string& prefix, const ExpertNames& names = {});

AttentionParams attention_params(const ModelConfig& config, int64_t layer);

struct ActivationTypes {
  DType activation;
  DType residual;  // at most twice as wide
};

// The activations of one pass, T rows each. Attention and MLP take turns on the same memory.
class Activations {
 public:
  Activations(Workspace& workspace, const ModelConfig& config, ActivationTypes types,
              int64_t num_tokens);

  // From here on only the rows logits_indices are needed: gathers them into `residual` and
  // `attended`, and shortens every buffer to them; `normed` and `delta` move too. Requires:
  // between attention and its output projection, where qkv, normed and delta hold nothing of worth.
  void keep_logits_rows(Backend& backend, const ForwardInputs& inputs);

  TensorView residual;       // [T, hidden_size]
  TensorView normed;         // [T, hidden_size]
  TensorView delta;          // [T, hidden_size], to be added to the residual
  TensorView qkv;            // [T, (num_q_heads + 2 num_kv_heads) * head_dim]
  TensorView attended;       // [T, num_q_heads * head_dim]
  TensorView gate_up;        // [T, 2 intermediate_size], over qkv and attended
  TensorView gated;          // [T, intermediate_size]
  TensorView router_logits;  // float32 [T, num_experts], in place of gate_up
  ExpertScratch experts;

 private:
  void take_experts(Workspace& workspace, const ModelConfig& config, DType dtype,
                    int64_t num_tokens);

  // What `residual`, `normed` and `delta` become when rows are kept: the same memory in another
  // order, so that the new residual lies beside the old one whatever their types.
  TensorView kept_residual_;
  TensorView kept_normed_;
  TensorView kept_delta_;
};

}  // namespace octavo
