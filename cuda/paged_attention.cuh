// What the attention kernels share: their arguments and the transform of a score.
//   out[t, h] = softmax_j(cap(scale * q[t, h] . k[j, h / group])) v[j, h / group]
// over keys j <= position(t), and j > position(t) - window where there is a window. Scores are kept
// in units of log2 so that the exponential is one instruction.
#pragma once

#include <cstdint>

#include "cuda/attention_plan.h"
#include "cuda/common/mma.cuh"

namespace octavo::cuda {

template <typename T, typename KV>
struct PagedAttentionArgs {
  const T* qkv;  // [T, qkv_stride], queries first
  int64_t qkv_stride;
  T* out;  // [T, num_q_heads * head_dim]
  const KV* keys;
  const KV* values;
  const int32_t* query_start_loc;
  const int32_t* seq_lens;
  const int32_t* block_tables;
  int64_t block_table_stride;
  AttentionPlanView plan;
  float* partial_out;     // unnormalised rows of head_dim floats
  float2* partial_stats;  // (maximum, sum) of each such row
  int32_t* counters;      // chunks done, zero between launches
  int num_q_heads;
  int num_kv_heads;
  int group;
  int head_dim;
  int block_size;
  int window;
  float scale;         // of scores, log2(e) included; with a cap: scale / cap
  float soft_cap;      // cap * log2(e), 0 for none
  const float* sinks;  // [num_q_heads], see AttentionParams; may be null
};

inline constexpr float kMaskedScore = -INFINITY;

template <typename Args>
__device__ inline float transform_score(const Args& args, float dot) {
  const float s = dot * args.scale;
  return args.soft_cap > 0.0f ? args.soft_cap * tanh_fast(s) : s;
}

// What a row's sum of weighted values is multiplied with, by its (maximum, sum of weights).
template <typename Args>
__device__ inline float row_norm(const Args& args, int head, float2 stats) {
  constexpr float kLog2E = 1.4426950408889634f;
  if (args.sinks == nullptr) return __fdividef(1.0f, stats.y);
  const float sink = args.sinks[head] * kLog2E;
  const float maximum = fmaxf(stats.x, sink);
  const float weight = exp2_fast(stats.x - maximum);
  return __fdividef(weight, weight * stats.y + exp2_fast(sink - maximum));
}

// The maximum to subtract: a row that has seen only masked keys must not subtract infinity.
__device__ inline float finite_maximum(float m) { return m == kMaskedScore ? 0.0f : m; }

}  // namespace octavo::cuda
