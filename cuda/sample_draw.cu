// One block a row. "Order" below is that of descending logits, the lower id first among equals.
//
// Greedy, plain temperature and min-p need only the runs: the token is found in one of them. For
// top-k and top-p the k-th greatest run maximum bounds the k-th greatest logit from below, so the
// runs above it hold all candidates; these are few and are sorted. Where they are too many (a flat
// distribution), a histogram over the logits leads to the few that lie where the running sum
// reaches its target, and only those are sorted.
// All sums have a fixed order or are of integers: a row gives the same token each time.
#include "base/philox.h"
#include "cuda/common/launch.cuh"
#include "cuda/sample_bins.cuh"
#include "cuda/sample_row.cuh"

namespace octavo::cuda {
namespace sampling {
namespace {

constexpr int kFirstGuess = 128;  // candidates of a first attempt without top-k

__device__ void load_runs(Row& row, const float2* source, Shared& shared) {
  float maximum = -INFINITY;
  for (int i = threadIdx.x; i < row.num_runs; i += kThreads) {
    row.runs[i] = source[i];
    maximum = fmaxf(maximum, source[i].x);
  }
  row.maximum = block_reduce(maximum, Max{}, shared.scratch);
}

// Makes the runs' sums relative to the row's maximum; returns their total.
__device__ float weigh_runs(Row& row, Shared& shared) {
  float total = 0.0f;
  for (int i = threadIdx.x; i < row.num_runs; i += kThreads) {
    row.runs[i].y *= row.weight(row.runs[i].x);
    total += row.runs[i].y;
  }
  return block_reduce(total, Sum{}, shared.scratch);
}

__device__ int greedy_token(const Row& row, Shared& shared) {
  int first = INT_MAX;
  for (int i = threadIdx.x; i < row.num_runs; i += kThreads) {
    if (row.runs[i].x == row.maximum) first = min(first, i);
  }
  const int run = block_reduce(first, Min{}, shared.int_scratch);
  int id = INT_MAX;
  if (threadIdx.x < kRunLength) {
    const int at = run * kRunLength + threadIdx.x;
    if (at < row.vocab && row.logits[at] == row.maximum) id = at;
  }
  return block_reduce(id, Min{}, shared.int_scratch);
}

// The token at which the running sum of weights in the order of ids reaches u times `total`; the
// runs hold the weights' sums, least is the smallest weight that counts.
__device__ int draw_by_id(const Row& row, float u, float total, float least, Shared& shared) {
  float before = 0.0f;
  const int run = find_cumulative(
      row.num_runs, u * total, [&](int i) { return row.runs[i].y; }, shared, &before);
  const int first = run * kRunLength;
  float ignored = 0.0f;
  const int at = find_cumulative(
      kRunLength, u * total - before,
      [&](int i) {
        const float w = row.weight(row.at(first + i));
        return w >= least ? w : 0.0f;
      },
      shared, &ignored);
  return first + at;
}

// Leaves in the runs only the weights of at least min_p; returns their total.
__device__ float keep_above_min_p(Row& row, float min_p, Shared& shared) {
  const int lane = threadIdx.x % kWarpSize;
  for (int run = threadIdx.x / kWarpSize; run < row.num_runs; run += kWarps) {
    float sum = 0.0f;
    if (row.weight(row.runs[run].x) >= min_p) {
      for (int i = 0; i < kPerLane; ++i) {
        const float w = row.weight(row.at(run * kRunLength + i * kWarpSize + lane));
        sum += w >= min_p ? w : 0.0f;
      }
      sum = warp_reduce(sum, Sum{});
    }
    if (lane == 0) row.runs[run].y = sum;
  }
  __syncthreads();
  float total = 0.0f;
  for (int i = threadIdx.x; i < row.num_runs; i += kThreads) total += row.runs[i].y;
  return block_reduce(total, Sum{}, shared.scratch);
}

// A key that at least k logits reach: that of the k-th greatest run maximum, its low bits cleared.
__device__ uint32_t candidate_bound(const Row& row, int k) {
  constexpr int kLowestBit = 12;
  if (k > row.num_runs) return 0;
  uint32_t bound = 0;
  for (int bit = 31; bit >= kLowestBit; --bit) {
    const uint32_t trial = bound | 1u << bit;
    int count = 0;
    for (int first = 0; first < row.num_runs; first += kThreads) {
      const int i = first + static_cast<int>(threadIdx.x);
      count += __syncthreads_count(i < row.num_runs && ordered_key(row.runs[i].x) >= trial);
    }
    if (count >= k) bound = trial;
  }
  return bound;
}

// Tries to draw from candidates sorted into order. -1: more of them are needed.
__device__ int draw_sorted(const Row& row, const SampleRowParams& params, float u, float total,
                           Shared& shared) {
  sort_candidates(shared);
  accumulate_candidates(row, shared);
  const float* cumulative = shared.cumulative;
  int count = shared.num_candidates;
  const bool has_top_k = params.top_k > 0;
  if (has_top_k) {
    count = min(count, params.top_k);
    total = cumulative[count - 1];
  }
  if (params.top_p < 1.0f) {
    const float mass = params.top_p * total;
    const int below = prefix_length(
        count, [&](int i) { return cumulative[i] < mass; }, shared);
    if (below == count && !has_top_k && count < row.vocab) return -1;
    count = min(count, below + 1);
  }
  const int kept = prefix_length(
      count,
      [&](int i) { return row.weight(candidate_logit(shared.candidates[i])) >= params.min_p; },
      shared);
  count = max(1, min(count, kept));
  const float target = u * cumulative[count - 1];
  const int at = prefix_length(
      count, [&](int i) { return cumulative[i] < target; }, shared);
  return candidate_id(shared.candidates[min(at, count - 1)]);
}

// Sum of the weights that `keep` accepts.
template <typename Keep>
__device__ float sum_weights(const Row& row, Keep&& keep, Shared& shared) {
  float mine = 0.0f;
  for_each_logit(row,
                 [&](float logit, int id) { mine += keep(logit, id) ? row.weight(logit) : 0.0f; });
  return block_reduce(mine, Sum{}, shared.scratch);
}

// The same draw as draw_sorted() where the candidates are many.
__device__ int draw_by_bins(const Row& row, const SampleRowParams& params, float u, float total,
                            Shared& shared) {
  if (params.top_k > 0) {
    const Place last = locate<true>(row, static_cast<float>(params.top_k), shared);
    total = sum_weights(
        row, [&](float logit, int id) { return is_at_or_before(logit, id, last); }, shared);
  }
  if (params.top_p < 1.0f) total = locate<false>(row, params.top_p * total, shared).sum;
  if (params.min_p > 0.0f) {
    const auto keep = [&](float logit, int) { return row.weight(logit) >= params.min_p; };
    total = fminf(total, sum_weights(row, keep, shared));
  }
  return locate<false>(row, u * total, shared).token;
}

__device__ int draw_nucleus(const Row& row, const SampleRowParams& params, float u, float total,
                            Shared& shared) {
  const int k = params.top_k > 0 ? params.top_k : kFirstGuess;
  const uint32_t bound = candidate_bound(row, k);
  const auto keep = [&](float logit, int) { return ordered_key(logit) >= bound; };
  if (collect(row, bound, keep, shared)) {
    const int token = draw_sorted(row, params, u, total, shared);
    if (token >= 0) return token;
  }
  return draw_by_bins(row, params, u, total, shared);
}

// -1 when the rules leave no token.
__device__ int choose_token(Row& row, const SampleRowParams& params, Shared& shared) {
  if (!isfinite(row.maximum)) return -1;
  if (row.scale == 0.0f) return greedy_token(row, shared);
  const float u = philox_uniform(params.seed, params.position, 0);
  float total = weigh_runs(row, shared);
  if (params.top_k > 0 || params.top_p < 1.0f) return draw_nucleus(row, params, u, total, shared);
  if (params.min_p > 0.0f) total = keep_above_min_p(row, params.min_p, shared);
  return draw_by_id(row, u, total, params.min_p, shared);
}

// Logits before `token` in order.
__device__ int count_before(const Row& row, float logit, int token, Shared& shared) {
  int mine = 0;
  const int lane = threadIdx.x % kWarpSize;
  for (int run = threadIdx.x / kWarpSize; run < row.num_runs; run += kWarps) {
    if (row.runs[run].x < logit) continue;
    for (int i = 0; i < kPerLane; ++i) {
      const int id = run * kRunLength + i * kWarpSize + lane;
      const float other = row.at(id);
      mine += other > logit || (other == logit && id < token) ? 1 : 0;
    }
  }
  return block_reduce(mine, Sum{}, shared.int_scratch);
}

// Leaves the k first logits in order among the sorted candidates.
__device__ void sort_top(const Row& row, int k, Shared& shared) {
  const uint32_t bound = candidate_bound(row, k);
  if (!collect(
          row, bound, [&](float v, int) { return ordered_key(v) >= bound; }, shared)) {
    const Place last = locate<true>(row, static_cast<float>(k), shared);
    collect(
        row, 0, [&](float v, int id) { return is_at_or_before(v, id, last); }, shared);
  }
  sort_candidates(shared);
}

// The chosen token's log-probability, then those of the most likely ones.
__device__ void write_entries(Row& row, const SampleRowParams& params, int token,
                              LogprobEntry* entries, Shared& shared) {
  const float log_sum = row.maximum + logf(weigh_runs(row, shared));
  const float logit = row.logits[token];
  const int rank = 1 + count_before(row, logit, token, shared);
  if (threadIdx.x == 0) entries[0] = {token, logit - log_sum, rank};
  const int count = min(params.num_entries - 1, row.vocab);
  if (count <= 0) return;
  sort_top(row, count, shared);
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const uint64_t c = shared.candidates[i];
    entries[i + 1] = {candidate_id(c), candidate_logit(c) - log_sum, i + 1};
  }
}

__global__ void __launch_bounds__(kThreads, 1) draw_kernel(SampleArrays arrays) {
  extern __shared__ __align__(16) char raw[];
  Shared& shared = *reinterpret_cast<Shared*>(raw);
  allow_next_kernel();
  wait_for_previous_kernel();
  const int index = blockIdx.x;
  const SampleRowParams& params = arrays.rows[index];
  Row row{.logits = arrays.logits + index * arrays.stride,
          .runs = reinterpret_cast<float2*>(raw + sizeof(Shared)),
          .vocab = arrays.vocab,
          .num_runs = (arrays.vocab + kRunLength - 1) / kRunLength,
          .maximum = 0.0f,
          .scale = params.inverse_temperature};
  load_runs(row, arrays.runs + static_cast<int64_t>(index) * row.num_runs, shared);
  const bool is_draw = params.target_id < 0;
  int token = isfinite(row.maximum) ? params.target_id : -1;
  if (is_draw) token = choose_token(row, params, shared);
  if (threadIdx.x == 0) {
    arrays.tokens[index] = {is_draw ? token : -1, token < 0 ? 1 : 0};
    if (is_draw && token >= 0 && params.counts != nullptr) ++params.counts[token];
    if (params.drawn_id != nullptr) *params.drawn_id = max(token, 0);
  }
  if (token < 0 || params.raw_row < 0) return;
  __syncthreads();
  if (params.copy_row >= 0) {
    row.logits = arrays.copies + static_cast<int64_t>(params.copy_row) * arrays.vocab;
  }
  row.scale = 1.0f;
  load_runs(row, arrays.raw_runs + static_cast<int64_t>(params.raw_row) * row.num_runs, shared);
  write_entries(row, params, token, arrays.entries + params.first_entry, shared);
}

}  // namespace
}  // namespace sampling

void sample_draw(const SampleArrays& arrays, cudaStream_t stream) {
  const size_t shared_bytes = sizeof(sampling::Shared) + num_runs(arrays.vocab) * sizeof(float2);
  launch(sampling::draw_kernel,
         {.grid = dim3(arrays.num_rows),
          .block = dim3(sampling::kThreads),
          .shared_bytes = shared_bytes},
         stream, arrays);
}

}  // namespace octavo::cuda
