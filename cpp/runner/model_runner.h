// Runs the scheduler's batches on a model: KV cache, activations, logits, sampling.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "backend/backend.h"
#include "model/model.h"
#include "runner/forward_batch.h"
#include "runner/memory_plan.h"
#include "runner/step_runner.h"

namespace octavo {

// Not thread-safe. The model's weights are loaded; backend and model outlive the runner.
class ModelRunner final : public StepRunner {
 public:
  // Allocates all that serving needs; run() allocates nothing. Throws: OutOfMemoryError,
  // ConfigError when the backend has no cache of that dtype.
  ModelRunner(Backend& backend, Model& model, const RunnerConfig& config, const MemoryPlan& plan);

  void run(const ScheduledBatch& batch, StepResult& result) override;

  // Runs every class of step that serving will: decode at growing batch sizes, a full prefill
  // chunk, both mixed, each sampler path. Leaves garbage in the cache's blocks, which nobody owns
  // yet. `report_progress` gets the share done.
  void warm_up(const std::function<void(double)>& report_progress);

  // A prompt and one decoded token. Throws: DeviceError when a logit is NaN or the token makes no
  // sense.
  void self_test();

 private:
  void compute(const ScheduledBatch& batch, StepResult& result);

  Backend& backend_;
  Model& model_;
  const RunnerConfig config_;
  const MemoryPlan plan_;
  ForwardBatch batch_;
  std::unique_ptr<KVCache> cache_;
  Workspace workspace_;
  std::unique_ptr<DeviceBuffer> logits_;  // float32 [max_logits_rows, vocab_size]
};

}  // namespace octavo
