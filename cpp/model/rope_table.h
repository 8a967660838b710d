// cos and sin of rotary position embeddings, with the scalings that checkpoints declare.
// Source: Su et al., "RoFormer", 2021; Peng et al., "YaRN", 2023; Ding et al., "LongRoPE", 2024;
// the Llama 3.1 release; field names and defaults as in Hugging Face transformers, whose float32
// results this reproduces.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "model/model_config.h"

namespace octavo {

// Radians a position, [rotary_dim / 2], after scaling. longrope has two sets: the long one serves
// every sequence once max_model_len exceeds the original context, so that keys in the cache never
// change their meaning.
// Requires: rotary_dim even and positive. Throws: UnsupportedModelError for parameters that make no
// sense.
std::vector<float> rope_frequencies(const RopeConfig& rope, int64_t rotary_dim,
                                    int64_t max_model_len);

// What cos and sin are multiplied by; 1 except for yarn and longrope.
double rope_attention_factor(const RopeConfig& rope);

// The table on the device, for positions [0, max_model_len).
class RopeTableBuffer {
 public:
  RopeTableBuffer(Backend& backend, const RopeConfig& rope, int64_t head_dim,
                  int64_t max_model_len);

  const RopeTable& table() const { return table_; }

  static int64_t size_bytes(const RopeConfig& rope, int64_t head_dim, int64_t max_model_len);

 private:
  std::unique_ptr<DeviceBuffer> buffer_;
  RopeTable table_;
};

// The leading dimensions of a head that rotate: rope.rotary_dim, or all of them.
int64_t resolve_rotary_dim(const RopeConfig& rope, int64_t head_dim);

}  // namespace octavo
