// Rotary embedding with the write to the cache, and attention over it, for a ragged batch.
#pragma once

#include <vector>

#include "backend/backend.h"
#include "cpu/kernels.h"
#include "cpu/kv_memory.h"
#include "cpu/scratch.h"
#include "cpu/thread_pool.h"

namespace octavo::cpu {

class PagedAttention {
 public:
  PagedAttention(const Kernels& kernels, ThreadPool& pool) : kernels_(kernels), pool_(pool) {}

  // See Backend::rope_and_cache and Backend::attention.
  void rope_and_cache(TensorView qkv, const RopeTable& rope, const ForwardInputs& inputs,
                      const AttentionParams& params, KVMemory& cache);
  void run(TensorView qkv, const ForwardInputs& inputs, const AttentionParams& params,
           const KVMemory& cache, TensorView out);

 private:
  // Up to kQueryRows rows (token * group + head) of one sequence, for every KV head.
  struct RowBlock {
    int32_t sequence;
    int64_t row_begin;
    int64_t num_rows;
    int64_t cost;  // rows x keys
  };

  void plan(const ForwardInputs& inputs, const AttentionParams& params);

  const Kernels& kernels_;
  ThreadPool& pool_;
  std::vector<RowBlock> blocks_;
  Scratch scratch_;
};

}  // namespace octavo::cpu
