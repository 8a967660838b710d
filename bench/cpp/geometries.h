// Geometries of models that more than one benchmark runs with made-up weights.
#pragma once

#include "model/registry.h"

namespace octavo::bench {

// SmolLM2-135M, which the demo is too. max_position_embeddings is the caller's.
inline ModelConfig smollm2_geometry() {
  ModelConfig config;
  config.architecture = "llama";
  config.vocab_size = 49152;
  config.hidden_size = 576;
  config.intermediate_size = 1536;
  config.num_layers = 30;
  config.num_q_heads = 9;
  config.num_kv_heads = 3;
  config.head_dim = 64;
  config.tie_word_embeddings = true;
  return config;
}

}  // namespace octavo::bench
