// The shape of a model, as read from config.json or GGUF metadata by the Python shell. Plain data.
#pragma once

#include <cstdint>
#include <string>

namespace octavo {

enum class RopeScaling : uint8_t { kNone, kLinear, kLlama3, kYarn };

// Rotary position embedding. Names follow the fields of a checkpoint's `rope_scaling`.
struct RopeConfig {
  double theta = 10000.0;
  int32_t rotary_dim = 0;    // leading dimensions of a head that rotate; 0 = head_dim
  bool interleaved = false;  // pairs (2i, 2i + 1) as in GGUF Llama files; else (i, i + dim / 2)
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1.0;
  int64_t original_max_position_embeddings = 0;  // llama3, yarn
  double low_freq_factor = 1.0;                  // llama3
  double high_freq_factor = 4.0;                 // llama3
  double beta_fast = 32.0;                       // yarn
  double beta_slow = 1.0;                        // yarn
  double attention_factor = 0.0;                 // yarn; 0 = 0.1 ln(factor) + 1
  double mscale = 0.0;                           // yarn; 0 = unset
  double mscale_all_dim = 0.0;                   // yarn; 0 = unset
  bool truncate = true;                          // yarn; round the correction range
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
};

}  // namespace octavo
