// The adapters (LoRA) of a model: one bank beside each projection of attention and dense MLPs. What
// a checkpoint names as one projection is a target, whether or not it is fused with others here.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "backend/backend.h"
#include "model/weights.h"

namespace octavo {

// A projection that an adapter may change; the name is without ".weight".
struct LoraTarget {
  std::string name;
  int64_t in_features = 0;
  int64_t out_features = 0;
};

// In the order of declaration. Embeddings, the head, routers and experts are none.
std::vector<LoraTarget> lora_targets(const Weights& weights);

// load() and clear() are for any thread, as far as no step runs that names the slot.
class Loras {
 public:
  // Takes the memory of every slot. Throws: OutOfMemoryError.
  Loras(Backend& backend, const Weights& weights, const LoraLimits& limits);

  // Device bytes that such an object takes.
  static int64_t planned_bytes(const Backend& backend, const Weights& weights,
                               const LoraLimits& limits);

  // Sets one projection of a slot. Throws: CheckpointError naming the target when there is none of
  // that name, or shapes do not fit.
  void load(int32_t slot, std::string_view target, const LoraView& view);
  // Empties a slot.
  void clear(int32_t slot);

  const LoraLimits& limits() const { return limits_; }
  // Null where the weight is no target.
  const LoraBank* bank_of(LinearId id) const { return banks_[id.index].get(); }

 private:
  struct Place {
    int32_t linear = 0;
    int64_t part = 0;
    int64_t in_features = 0;
    int64_t out_features = 0;
  };

  Backend& backend_;
  const LoraLimits limits_;
  std::vector<std::unique_ptr<LoraBank>> banks_;  // by index of the linear weight
  std::unordered_map<std::string, Place> places_;
};

}  // namespace octavo
