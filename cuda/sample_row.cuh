// One row of logits in the hands of one block: running sums, and candidates sorted into order,
// which is that of descending logits, the lower id first among equals.
#pragma once

#include <climits>

#include "cuda/sampling.cuh"

namespace octavo::cuda::sampling {

inline constexpr int kThreads = 512;
inline constexpr int kWarps = kThreads / kWarpSize;
inline constexpr int kPerLane = kRunLength / kWarpSize;
inline constexpr int kMaxCandidates = 4096;
inline constexpr int kBins = 2048;

struct Min {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};

struct Shared {
  uint64_t candidates[kMaxCandidates];  // ~ordered_key << 32 | id: ascending is order
  float cumulative[kMaxCandidates];
  uint32_t bins[kBins];
  float scratch[kWarps];
  int int_scratch[kWarps];
  int num_candidates;
};

// One row of logits with its runs: maxima, and sums relative to them until weigh_runs().
struct Row {
  const float* logits;
  float2* runs;
  int vocab;
  int num_runs;
  float maximum;
  float scale;

  __device__ float weight(float logit) const { return sample_weight(logit, maximum, scale); }
  __device__ float at(int id) const { return id < vocab ? logits[id] : -INFINITY; }
};

__device__ inline uint64_t candidate(float logit, int id) {
  return uint64_t{~ordered_key(logit)} << 32 | static_cast<uint32_t>(id);
}
__device__ inline int candidate_id(uint64_t c) { return static_cast<int>(c & 0xffffffffu); }
__device__ inline float candidate_logit(uint64_t c) {
  return from_ordered_key(~static_cast<uint32_t>(c >> 32));
}

// Calls f(logit, id) for every logit of the row, with several loads in flight.
template <typename F>
__device__ inline void for_each_logit(const Row& row, F&& f) {
  constexpr int kBatch = 16;
  for (int first = threadIdx.x; first < row.vocab; first += kBatch * kThreads) {
    float logits[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) logits[i] = row.at(first + i * kThreads);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (first + i * kThreads < row.vocab) f(logits[i], first + i * kThreads);
    }
  }
}

// The first of `count` values whose running sum reaches `target`; the last positive one when
// rounding keeps the sum below it. `before` gets the sum of those ahead of it. value(i) >= 0.
template <typename Value>
__device__ inline int find_cumulative(int count, float target, Value&& value, Shared& shared,
                                      float* before) {
  const int per_thread = (count + kThreads - 1) / kThreads;
  const int begin = min(static_cast<int>(threadIdx.x) * per_thread, count);
  const int end = min(begin + per_thread, count);
  float mine = 0.0f;
  for (int i = begin; i < end; ++i) mine += value(i);
  float total = 0.0f;
  float sum = block_exclusive_scan(mine, shared.scratch, &total);
  int reached = INT_MAX;
  int last = -1;
  float sum_before_reached = 0.0f;
  float sum_before_last = 0.0f;
  for (int i = begin; i < end; ++i) {
    const float v = value(i);
    if (v <= 0.0f) continue;
    if (reached == INT_MAX && sum + v >= target) {
      reached = i;
      sum_before_reached = sum;
    }
    last = i;
    sum_before_last = sum;
    sum += v;
  }
  const int first_reached = block_reduce(reached, Min{}, shared.int_scratch);
  const bool is_reached = first_reached != INT_MAX;
  const int chosen =
      is_reached ? first_reached : max(0, block_reduce(last, Max{}, shared.int_scratch));
  if (begin <= chosen && chosen < end) {
    shared.scratch[0] = is_reached ? sum_before_reached : sum_before_last;
  }
  __syncthreads();
  *before = shared.scratch[0];
  __syncthreads();
  return chosen;
}

// Collects the logits that `keep` accepts, from runs that reach `bound`. False when they are too
// many.
template <typename Keep>
__device__ inline bool collect(const Row& row, uint32_t bound, Keep&& keep, Shared& shared) {
  if (threadIdx.x == 0) shared.num_candidates = 0;
  __syncthreads();
  const int lane = threadIdx.x % kWarpSize;
  for (int run = threadIdx.x / kWarpSize; run < row.num_runs; run += kWarps) {
    if (ordered_key(row.runs[run].x) < bound) continue;
    for (int i = 0; i < kPerLane; ++i) {
      const int id = run * kRunLength + i * kWarpSize + lane;
      if (id >= row.vocab || !keep(row.logits[id], id)) continue;
      const int place = atomicAdd(&shared.num_candidates, 1);
      if (place < kMaxCandidates) shared.candidates[place] = candidate(row.logits[id], id);
    }
  }
  __syncthreads();
  return shared.num_candidates <= kMaxCandidates;
}

// The same over the whole row.
template <typename Keep>
__device__ inline bool collect_all(const Row& row, Keep&& keep, Shared& shared) {
  if (threadIdx.x == 0) shared.num_candidates = 0;
  __syncthreads();
  for_each_logit(row, [&](float logit, int id) {
    if (!keep(logit)) return;
    const int place = atomicAdd(&shared.num_candidates, 1);
    if (place < kMaxCandidates) shared.candidates[place] = candidate(logit, id);
  });
  __syncthreads();
  return shared.num_candidates <= kMaxCandidates;
}

// Bitonic sort of the candidates into order; pads them to a power of two.
__device__ inline void sort_candidates(Shared& shared) {
  const int count = shared.num_candidates;
  int size = 2;
  while (size < count) size *= 2;
  for (int i = count + threadIdx.x; i < size; i += kThreads) shared.candidates[i] = ~uint64_t{0};
  __syncthreads();
  for (int span = 2; span <= size; span *= 2) {
    for (int stride = span / 2; stride > 0; stride /= 2) {
      for (int i = threadIdx.x; i < size / 2; i += kThreads) {
        const int low = 2 * stride * (i / stride) + i % stride;
        const bool ascending = (low & span) == 0;
        const uint64_t a = shared.candidates[low];
        const uint64_t b = shared.candidates[low + stride];
        if ((a > b) == ascending) {
          shared.candidates[low] = b;
          shared.candidates[low + stride] = a;
        }
      }
      __syncthreads();
    }
  }
}

// Running sums of the sorted candidates' weights into shared.cumulative.
__device__ inline void accumulate_candidates(const Row& row, Shared& shared) {
  const int count = shared.num_candidates;
  const int per_thread = (count + kThreads - 1) / kThreads;
  const int begin = min(static_cast<int>(threadIdx.x) * per_thread, count);
  const int end = min(begin + per_thread, count);
  float mine = 0.0f;
  for (int i = begin; i < end; ++i) mine += row.weight(candidate_logit(shared.candidates[i]));
  float total = 0.0f;
  float sum = block_exclusive_scan(mine, shared.scratch, &total);
  for (int i = begin; i < end; ++i) {
    sum += row.weight(candidate_logit(shared.candidates[i]));
    shared.cumulative[i] = sum;
  }
  __syncthreads();
}

// How many i < count satisfy the condition, which holds for a prefix.
template <typename Condition>
__device__ inline int prefix_length(int count, Condition&& condition, Shared& shared) {
  int mine = 0;
  for (int i = threadIdx.x; i < count; i += kThreads) mine += condition(i) ? 1 : 0;
  return block_reduce(mine, Sum{}, shared.int_scratch);
}

}  // namespace octavo::cuda::sampling
