// The shape of a model, as read from config.json or GGUF metadata by the Python shell. Plain data.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace octavo {

enum class RopeScaling : uint8_t { kNone, kLinear, kLlama3, kYarn, kLongRope };

// Rotary position embedding. Names follow the fields of a checkpoint's `rope_scaling`.
struct RopeConfig {
  double theta = 10000.0;
  int32_t rotary_dim = 0;    // leading dimensions of a head that rotate; 0 = head_dim
  bool interleaved = false;  // pairs (2i, 2i + 1) as in GGUF Llama files; else (i, i + dim / 2)
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1.0;
  int64_t original_max_position_embeddings = 0;  // llama3, yarn, longrope
  double low_freq_factor = 1.0;                  // llama3
  double high_freq_factor = 4.0;                 // llama3
  double beta_fast = 32.0;                       // yarn
  double beta_slow = 1.0;                        // yarn
  double attention_factor = 0.0;                 // yarn, longrope; 0 = from the factor
  double mscale = 0.0;                           // yarn; 0 = unset
  double mscale_all_dim = 0.0;                   // yarn; 0 = unset
  bool truncate = true;                          // yarn; round the correction range
  std::vector<double> short_factor{};            // longrope; divides each frequency
  std::vector<double> long_factor{};             // the same for sequences beyond the original
};

struct ModelConfig {
  std::string architecture;  // registry key, e.g. "llama"
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_layers = 0;
  int64_t num_q_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  double rms_norm_eps = 1e-5;
  bool tie_word_embeddings = false;
  bool qkv_bias = false;
  bool attention_output_bias = false;
  bool mlp_bias = false;
  int64_t max_position_embeddings = 0;
  RopeConfig rope;
  RopeConfig local_rope;  // of layers with a window, in families that rotate them differently

  // One element a layer; empty = the same everywhere.
  std::vector<int64_t> sliding_windows{};  // keys that a position sees; 0 = all
  std::vector<bool> rope_layers{};         // whether q and k rotate; empty = all do
  std::vector<bool> expert_layers{};       // whether the MLP is a mixture; empty = all are

  double attention_scale = 0.0;  // 0 = 1 / sqrt(head_dim)
  double attention_soft_cap = 0.0;
  double final_soft_cap = 0.0;  // of the logits
  double embedding_multiplier = 1.0;
  double residual_multiplier = 1.0;  // of what attention and MLP add
  double logits_divisor = 1.0;
  double norm_offset = 0.0;  // added to the weights of norms, which a checkpoint stores less this

  int64_t num_experts = 0;
  int64_t experts_per_token = 0;
  int64_t expert_intermediate_size = 0;
  bool renormalize_experts = false;  // the chosen experts' weights add up to 1
};

}  // namespace octavo
