// A model: weights and a forward pass, written once against the Backend. An architecture is one
// file that derives from Model and one line in registry.cc.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>

#include "backend/backend.h"
#include "model/loras.h"
#include "model/model_config.h"
#include "model/rope_table.h"
#include "model/weights.h"
#include "model/workspace.h"

namespace octavo {

// Throws: UnsupportedModelError when sizes are absent or do not fit together.
void validate(const ModelConfig& config);

// Life: constructed (declares its weights) -> weights().allocate() -> loaded -> prepare() ->
// forward(). The backend outlives it. forward() and compute_logits() are for one thread.
class Model {
 public:
  // Throws: UnsupportedModelError.
  Model(const ModelConfig& config, Backend& backend);
  virtual ~Model() = default;
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const ModelConfig& config() const { return config_; }
  Weights& weights() { return weights_; }
  const Weights& weights() const { return weights_; }

  // Lets rows have adapters; before workspace_bytes() is asked for. allocate_loras() takes their
  // memory, lora_bytes(): after weights().allocate(). Throws: OutOfMemoryError.
  void enable_loras(const LoraLimits& limits) { lora_limits_ = limits; }
  void allocate_loras();
  int64_t lora_bytes() const;
  const LoraLimits& lora_limits() const { return lora_limits_; }
  // Requires: allocate_loras().
  Loras& loras() { return *loras_; }

  // The cache's geometry; block_size, num_blocks and dtype are left to the caller.
  virtual KVCacheSpec kv_cache_spec() const;

  // Keys that the layer with the widest window sees; 0 when a layer sees all.
  int64_t widest_window() const;

  // Device bytes that prepare(max_model_len) takes.
  virtual int64_t prepared_bytes(int64_t max_model_len) const;
  // Makes what depends on the longest sequence served.
  virtual void prepare(int64_t max_model_len);

  // Workspace bytes of a forward pass over `num_tokens` tokens, any number of logits.
  virtual int64_t workspace_bytes(int64_t num_tokens) const = 0;

  // Writes keys and values of every token to the cache and returns the final hidden states,
  // normalised, of the rows logits_indices: [num_logits, hidden_size] inside `workspace`, valid
  // until the next pass. Work that only other rows would need is left out of the last layer.
  virtual TensorView forward(const ForwardInputs& inputs, KVCache& cache, Workspace& workspace) = 0;

  // logits [n, vocab_size] float32 of hidden [n, hidden_size].
  virtual void compute_logits(TensorView hidden, TensorView logits) = 0;

 protected:
  Backend& backend() const { return backend_; }
  // Requires: prepare().
  const RopeTable& rope() const { return rope_->table(); }
  const Loras& loras() const { return *loras_; }

 private:
  const ModelConfig config_;
  Backend& backend_;
  Weights weights_;
  std::optional<RopeTableBuffer> rope_;
  LoraLimits lora_limits_;
  std::optional<Loras> loras_;
};

}  // namespace octavo
