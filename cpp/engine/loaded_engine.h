// A model on a device, from its configuration to a running engine. The steps are those of the
// start-up sequence, so that the process that drives them can report phases and progress:
// construct -> load -> allocate -> warm up -> self-test -> start.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "engine/engine.h"
#include "engine/types.h"
#include "model/model.h"
#include "runner/memory_plan.h"
#include "runner/model_runner.h"

namespace octavo {

// One thread drives the start-up steps in order; load_weight() may run on several. progress() is
// for any thread. A step out of order throws CheckError.
class LoadedEngine {
 public:
  // Makes the backend and the empty weights; `dtype_of` says how each tensor will come.
  // Throws: ConfigError, UnsupportedModelError, OutOfMemoryError.
  LoadedEngine(const EngineConfig& config, const ModelConfig& model_config,
               const Weights::TypeOf& dtype_of);
  ~LoadedEngine();

  const std::vector<WeightSpec>& weight_specs() const { return model_->weights().specs(); }

  // See Weights.
  void load_weight(std::string_view name, const WeightView& view);
  void load_dummy_weights(uint64_t seed);
  void finish_loading();

  // Takes cache, workspace and all else that serving needs; returns the number of KV blocks.
  // Throws: OutOfMemoryError, ConfigError.
  int64_t allocate_kv_cache();
  void warm_up();
  void self_test();  // Throws: DeviceError
  void start();

  // Share of the running step that is done, 0 to 1.
  double progress() const;

  // Adapters, from allocate_kv_cache() on, by any thread: begin, load each target, open; see
  // Engine. Loading holds up no step. Throws: ConfigError when the configuration has none,
  // CheckpointError as Loras::load().
  uint64_t begin_lora();
  void load_lora(uint64_t id, std::string_view target, const LoraView& view);

  // Requires: allocate_kv_cache().
  Engine& engine();
  int64_t max_model_len() const;

  EngineStats stats() const;
  std::string device_name() const { return backend_->device_info().name; }

  // Ends the engine if it was started. Idempotent.
  void shutdown();

 private:
  enum class Phase : uint8_t { kLoading, kLoaded, kAllocated, kRunning };

  void require(Phase phase, std::string_view what) const;

  const EngineConfig config_;
  const std::unique_ptr<Backend> backend_;
  const std::unique_ptr<Model> model_;
  MemoryPlan plan_;
  std::unique_ptr<Engine> engine_;  // owns the runner
  ModelRunner* runner_ = nullptr;
  std::atomic<Phase> phase_{Phase::kLoading};
  std::atomic<double> warm_up_progress_{0.0};
};

// What adapters of such a model may change.
// Throws: ConfigError, UnsupportedModelError.
std::vector<LoraTarget> lora_targets(const ModelConfig& model_config);

// What would go where, before anything is loaded; `dtype_of` says how each tensor is stored.
// Throws: ConfigError, UnsupportedModelError, OutOfMemoryError.
MemoryPlan plan_memory(const EngineConfig& config, const ModelConfig& model_config,
                       const Weights::TypeOf& dtype_of);

// The tensors that such a model asks for, before anything is made.
// Throws: ConfigError, UnsupportedModelError.
std::vector<WeightSpec> weight_specs(const EngineConfig& config, const ModelConfig& model_config);

}  // namespace octavo
