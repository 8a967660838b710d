// Paged attention of a step: chooses the kernels for its mixture of prefills and decodes.
#pragma once

#include "backend/backend.h"
#include "cuda/attention_plan.h"
#include "cuda/common/device_context.h"
#include "cuda/common/memory.h"
#include "cuda/kv_cache.h"

namespace octavo::cuda {

class Attention {
 public:
  explicit Attention(const DeviceContext& context) : plan_(context) {}

  // See Backend::attention. The plan of a step is made with its first layer and holds for the
  // others. The first call for a model allocates; later ones never do.
  void run(const DeviceContext& context, TensorView qkv, const ForwardInputs& inputs,
           const AttentionParams& params, const CudaKVCache& cache, TensorView out);

 private:
  // What the host knows of the step.
  struct Step {
    int num_decodes = 0;
    int num_tiles = 0;  // of tile_rows
    int tile_rows = 0;
    int num_splits = 1;
    bool on_sm90 = false;
  };

  void start_step(const DeviceContext& context, const ForwardInputs& inputs,
                  const AttentionParams& params, const CudaKVCache& cache);
  void reserve(const DeviceContext& context, const AttentionParams& params);
  template <typename T, typename KV>
  void run_typed(const DeviceContext& context, TensorView qkv, const ForwardInputs& inputs,
                 const AttentionParams& params, const CudaKVCache& cache, TensorView out);

  AttentionPlan plan_;
  Step step_;
  int64_t partial_rows_ = 0;
  int64_t head_dim_ = 0;
  DeviceMemory partial_out_;
  DeviceMemory partial_stats_;
  DeviceMemory counters_;
};

}  // namespace octavo::cuda
