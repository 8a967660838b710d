// A small Llama on the reference backend, with dummy weights.
#pragma once

#include <cstdint>
#include <memory>

#include "model/reference_backend.h"
#include "model/registry.h"

namespace octavo::testing {

inline ModelConfig tiny_config() {
  ModelConfig config;
  config.architecture = "llama";
  config.vocab_size = 61;
  config.hidden_size = 24;
  config.intermediate_size = 40;
  config.num_layers = 2;
  config.num_q_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 10;
  config.max_position_embeddings = 256;
  return config;
}

inline std::unique_ptr<Model> tiny_model(Backend& backend, ModelConfig config = tiny_config()) {
  std::unique_ptr<Model> model = create_model(config, backend);
  model->weights().allocate();
  model->weights().load_dummy(7);
  return model;
}

}  // namespace octavo::testing
