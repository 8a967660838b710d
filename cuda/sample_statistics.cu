// Block (chunk of 4096 logits, row); each warp holds four runs in registers. Rows without rules are
// read once and not written. Bound: memory, num_rows * vocab * 4 bytes.
#include "cuda/common/launch.cuh"
#include "cuda/sampling.cuh"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kRunsPerWarp = 4;
constexpr int kPerLane = kRunLength / kWarpSize;
constexpr int kChunk = kWarps * kRunsPerWarp * kRunLength;

using Values = float[kRunsPerWarp][kPerLane];

// Position in the chunk of a lane's value i of run r.
__device__ int chunk_index(int r, int i) {
  const int warp = threadIdx.x / kWarpSize;
  return (r * kWarps + warp) * kRunLength + i * kWarpSize + threadIdx.x % kWarpSize;
}

__device__ float penalized(const SampleRowParams& row, float logit, int32_t count) {
  if (count == 0) return logit;
  if (row.repetition_penalty != 1.0f) {
    logit = logit > 0.0f ? logit / row.repetition_penalty : logit * row.repetition_penalty;
  }
  const int32_t outputs = count & (kPromptFlag - 1);
  if (outputs > 0) {
    logit -= row.frequency_penalty * static_cast<float>(outputs) + row.presence_penalty;
  }
  return logit;
}

// Biases, then bans, in the block's copy of its chunk.
__device__ void apply_lists(const SampleArrays& arrays, const SampleRowParams& row, int first,
                            float* chunk) {
  const int32_t* ids = arrays.lists + row.bias_at;
  const auto* biases = reinterpret_cast<const float*>(ids + row.num_biases);
  for (int i = threadIdx.x; i < row.num_biases; i += kThreads) {
    const int at = ids[i] - first;
    if (at >= 0 && at < kChunk) atomicAdd(&chunk[at], biases[i]);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < row.num_bans; i += kThreads) {
    const int at = arrays.lists[row.ban_at + i] - first;
    if (at >= 0 && at < kChunk) chunk[at] = -INFINITY;
  }
  __syncthreads();
}

__device__ void apply_rules(const SampleArrays& arrays, const SampleRowParams& row, int first,
                            float* chunk, Values& v) {
#pragma unroll
  for (int r = 0; r < kRunsPerWarp; ++r) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) chunk[chunk_index(r, i)] = v[r][i];
  }
  __syncthreads();
  apply_lists(arrays, row, first, chunk);
  float* logits = arrays.logits + blockIdx.y * arrays.stride;
#pragma unroll
  for (int r = 0; r < kRunsPerWarp; ++r) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int id = first + chunk_index(r, i);
      if (id >= arrays.vocab) continue;
      if (row.copy_row >= 0) {
        arrays.copies[static_cast<int64_t>(row.copy_row) * arrays.vocab + id] = v[r][i];
      }
      float logit = chunk[chunk_index(r, i)];
      if (row.mask_words > 0) {
        const bool inside = id / 32 < row.mask_words;
        const uint32_t word = inside ? arrays.lists[row.mask_at + id / 32] : 0;
        if ((word >> (id % 32) & 1) == 0) logit = -INFINITY;
      }
      if (row.counts != nullptr) logit = penalized(row, logit, row.counts[id]);
      v[r][i] = logit;
      logits[id] = logit;
    }
  }
}

// Writes the (maximum, sum of exponentials) of the warp's runs; the maximum is +infinity where the
// run was marked bad.
__device__ void write_runs(const Values& v, float scale, uint32_t bad, int first_run, int runs,
                           float2* out) {
  const int warp = threadIdx.x / kWarpSize;
#pragma unroll
  for (int r = 0; r < kRunsPerWarp; ++r) {
    float maximum = -INFINITY;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) maximum = fmaxf(maximum, v[r][i]);
    maximum = warp_reduce(maximum, Max{});
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) sum += sample_weight(v[r][i], maximum, scale);
    sum = warp_reduce(sum, Sum{});
    const int run = first_run + r * kWarps + warp;
    if (threadIdx.x % kWarpSize == 0 && run < runs) {
      out[run] = make_float2((bad >> r & 1) != 0 ? INFINITY : maximum, sum);
    }
  }
}

__global__ void __launch_bounds__(kThreads) statistics_kernel(SampleArrays arrays) {
  __shared__ float chunk[kChunk];
  allow_next_kernel();
  wait_for_previous_kernel();
  const SampleRowParams& row = arrays.rows[blockIdx.y];
  const int first = blockIdx.x * kChunk;
  const int runs = (arrays.vocab + kRunLength - 1) / kRunLength;
  const int first_run = first / kRunLength;
  const float* logits = arrays.logits + blockIdx.y * arrays.stride;

  Values v;
#pragma unroll
  for (int r = 0; r < kRunsPerWarp; ++r) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int id = first + chunk_index(r, i);
      v[r][i] = id < arrays.vocab ? logits[id] : -INFINITY;
    }
  }
  uint32_t bad = 0;
#pragma unroll
  for (int r = 0; r < kRunsPerWarp; ++r) {
    bool is_bad = false;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) is_bad |= !(v[r][i] < INFINITY);
    bad |= __any_sync(kFullMask, is_bad) ? 1u << r : 0u;
  }
  if (row.raw_row >= 0) {
    write_runs(v, 1.0f, bad, first_run, runs,
               arrays.raw_runs + static_cast<int64_t>(row.raw_row) * runs);
  }
  if (row.has_rules != 0) apply_rules(arrays, row, first, chunk, v);
  write_runs(v, row.inverse_temperature, bad, first_run, runs,
             arrays.runs + static_cast<int64_t>(blockIdx.y) * runs);
}

__global__ void __launch_bounds__(kThreads) count_kernel(HistoryArgs args) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= args.num_tokens) return;
  const int id = args.history[i];
  if (id < 0 || id >= args.vocab) return;
  if (i < args.num_prompt_tokens) {
    atomicOr(&args.counts[id], kPromptFlag);
  } else {
    atomicAdd(&args.counts[id], 1);
  }
}

}  // namespace

void sample_statistics(const SampleArrays& arrays, cudaStream_t stream) {
  const int chunks = (arrays.vocab + kChunk - 1) / kChunk;
  launch(statistics_kernel, {.grid = dim3(chunks, arrays.num_rows), .block = dim3(kThreads)},
         stream, arrays);
}

void count_history(const HistoryArgs& args, cudaStream_t stream) {
  check_cuda(cudaMemsetAsync(args.counts, 0, args.vocab * sizeof(int32_t), stream));
  if (args.num_tokens == 0) return;
  const int blocks = (args.num_tokens + kThreads - 1) / kThreads;
  launch(count_kernel, {.grid = dim3(blocks), .block = dim3(kThreads)}, stream, args);
}

}  // namespace octavo::cuda
