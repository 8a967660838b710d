#include "cpu/paged_attention.h"

#include <algorithm>
#include <tuple>

#include "base/check.h"

namespace octavo::cpu {

void PagedAttention::rope_and_cache(TensorView qkv, const RopeTable& rope,
                                    const ForwardInputs& inputs, const AttentionParams& params,
                                    KVMemory& cache) {
  const int64_t num_q = params.num_q_heads, num_kv = params.num_kv_heads, dim = params.head_dim;
  check(qkv.cols() == (num_q + 2 * num_kv) * dim, "qkv has the wrong width");
  const auto rotate = rope.interleaved ? kernels_.rope_interleaved : kernels_.rope_half;
  const auto write = kernels_.write_kv[static_cast<int>(cache.format())];
  const int64_t half = rope.rotary_dim / 2;
  pool_.for_rows(qkv.rows(), 8, [&](int64_t t) {
    float* row = qkv.as<float>() + t * qkv.row_stride;
    const int64_t position = inputs.positions[t];
    for (int64_t h = 0; h < num_q + num_kv; ++h) {
      rotate(row + h * dim, rope.cos + position * half, rope.sin + position * half,
             rope.rotary_dim);
    }
    for (int64_t h = 0; h < num_kv; ++h) {
      const float* key = row + (num_q + h) * dim;
      write(cache.head(params.layer, h), inputs.slot_mapping[t], key, key + num_kv * dim);
    }
  });
}

// The longest first, so that the threads end together.
void PagedAttention::plan(const ForwardInputs& inputs, const AttentionParams& params) {
  const int64_t group = params.num_q_heads / params.num_kv_heads;
  blocks_.clear();
  for (int64_t s = 0; s < inputs.num_seqs; ++s) {
    const int64_t query_len = inputs.query_start_loc[s + 1] - inputs.query_start_loc[s];
    const int64_t rows = query_len * group, computed = inputs.seq_lens[s] - query_len;
    for (int64_t begin = 0; begin < rows; begin += kQueryRows) {
      const int64_t num_rows = std::min(kQueryRows, rows - begin);
      int64_t keys = computed + (begin + num_rows - 1) / group + 1;
      if (params.sliding_window > 0) {
        keys = std::min(keys, params.sliding_window + (num_rows - 1) / group);
      }
      blocks_.push_back({static_cast<int32_t>(s), begin, num_rows, num_rows * keys});
    }
  }
  std::ranges::sort(blocks_, [](const RowBlock& a, const RowBlock& b) {
    return std::tie(b.cost, a.sequence, a.row_begin) < std::tie(a.cost, b.sequence, b.row_begin);
  });
}

void PagedAttention::run(TensorView qkv, const ForwardInputs& inputs, const AttentionParams& params,
                         const KVMemory& cache, TensorView out) {
  check(params.num_q_heads % params.num_kv_heads == 0, "query heads do not divide over KV heads");
  const int64_t group = params.num_q_heads / params.num_kv_heads;
  plan(inputs, params);
  const int64_t scratch_floats = (attention_scratch_floats(params.head_dim) + 15) / 16 * 16;
  float* scratch = scratch_.get<float>(scratch_floats * pool_.num_threads());
  const auto kernel = kernels_.attention[static_cast<int>(cache.format())];
  const int64_t num_tasks = static_cast<int64_t>(blocks_.size()) * params.num_kv_heads;
  pool_.parallel_for(num_tasks, [&](int64_t index, int thread) {
    const RowBlock& block = blocks_[index / params.num_kv_heads];
    const int64_t kv_head = index % params.num_kv_heads;
    const int64_t first_token = inputs.query_start_loc[block.sequence];
    const int64_t query_len = inputs.query_start_loc[block.sequence + 1] - first_token;
    AttentionTask task;
    task.q = qkv.as<float>() + first_token * qkv.row_stride + kv_head * group * params.head_dim;
    task.q_stride = qkv.row_stride;
    task.out = out.as<float>() + first_token * out.row_stride + kv_head * group * params.head_dim;
    task.out_stride = out.row_stride;
    task.group = group;
    task.row_begin = block.row_begin;
    task.num_rows = block.num_rows;
    task.first_position = inputs.seq_lens[block.sequence] - query_len;
    task.kv = cache.head(params.layer, kv_head);
    task.block_table = inputs.block_tables + block.sequence * inputs.block_table_stride;
    task.scale = params.scale;
    task.soft_cap = params.logit_soft_cap;
    task.sliding_window = params.sliding_window;
    if (params.sinks != nullptr) task.sinks = params.sinks + kv_head * group;
    task.scratch = scratch + thread * scratch_floats;
    kernel(task);
  });
}

}  // namespace octavo::cpu
