// Runs the scheduler's batches on a model: KV cache, activations, logits, sampling.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "model/model.h"
#include "runner/forward_batch.h"
#include "runner/memory_plan.h"
#include "runner/step_runner.h"
#include "runner/warm_up.h"

namespace octavo {

// Not thread-safe. The model's weights are loaded; backend and model outlive the runner.
class ModelRunner final : public StepRunner {
 public:
  // Allocates all that serving needs; a step allocates nothing. Throws: OutOfMemoryError,
  // ConfigError when the backend has no cache of that dtype.
  ModelRunner(Backend& backend, Model& model, const RunnerConfig& config, const MemoryPlan& plan);
  ~ModelRunner() override;
  ModelRunner(const ModelRunner&) = delete;
  ModelRunner& operator=(const ModelRunner&) = delete;

  int32_t max_steps_in_flight() const override { return backend_.max_steps_in_flight(); }
  int64_t row_multiple() const override { return backend_.row_multiple(); }
  int64_t sliding_window() const override { return model_.widest_window(); }
  void launch(const ScheduledBatch& batch) override;
  void wait(StepResult& result) override;
  void free_kv_cache() override;
  void restore_kv_cache() override;

  // Runs every class of step that serving will: decode at growing batch sizes, a full prefill
  // chunk, both mixed, each sampler path. Where the backend has graphs, captures one for each of
  // the batch sizes. Leaves garbage in the cache's blocks, which nobody owns yet.
  // `report_progress` gets the share done.
  void warm_up(const std::function<void(double)>& report_progress);

  // A prompt and one decoded token. Throws: DeviceError when a logit is NaN or the token makes no
  // sense.
  void self_test();

 private:
  // A whole decode step up to the logits, replayed for any step of at most so many sequences.
  struct DecodeGraph {
    int64_t num_seqs = 0;
    bool has_loras = false;
    int32_t id = -1;
    TensorView hidden;  // what forward() returned
  };

  const DecodeGraph* find_graph(const ScheduledBatch& batch) const;
  void capture_graphs(std::span<const WarmUpShape> shapes);
  TensorView forward(const ForwardInputs& inputs);
  void compute(const ScheduledBatch& batch, StepResult& result);
  void pool(TensorView hidden, int64_t num_sequences, StepResult& result);
  void sample(TensorView hidden, int64_t num_logits, StepResult& result);
  TensorView logits(int64_t num_rows) const;

  Backend& backend_;
  Model& model_;
  const RunnerConfig config_;
  const MemoryPlan plan_;
  ForwardBatch batch_;
  std::unique_ptr<KVCache> cache_;  // null between free_kv_cache() and restore_kv_cache()
  Workspace workspace_;
  std::unique_ptr<DeviceBuffer> logits_;  // float32 [max_logits_rows, vocab_size]
  std::vector<DecodeGraph> graphs_;       // by has_loras, then num_seqs
  std::vector<StepResult> results_;       // [max_steps_in_flight], of step number i modulo that
  int64_t num_launched_ = 0;
  int64_t num_waited_ = 0;
};

}  // namespace octavo
