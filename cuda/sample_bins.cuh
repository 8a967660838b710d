// Where the running sum of weights over the order reaches a target, for rows with too many
// candidates to sort: a histogram leads to the few logits among which the place lies, and only
// those are sorted. Sums are of integers, so their order does not matter.
#pragma once

#include "cuda/sample_row.cuh"

namespace octavo::cuda::sampling {

inline constexpr int kMaxLevels = 4;   // of bins inside bins: beyond, the logits are equal
inline constexpr float kSpan = 24.0f;  // what lies further below the maximum weighs less than 1e-10

// An interval of logits below `high`, in kBins equal bins of which one is chosen.
struct Level {
  float high;
  float bins_per_unit;
  int bin;

  __device__ int bin_of(float logit) const {
    return max(0, min(kBins - 1, static_cast<int>((high - logit) * bins_per_unit)));
  }
  __device__ float edge(int i) const { return high - static_cast<float>(i) / bins_per_unit; }
};

// Bins inside bins: the logits that lie in the chosen bin of every level.
struct Search {
  Level levels[kMaxLevels];
  int depth = 0;

  __device__ bool holds(float logit) const {
    for (int i = 0; i < depth; ++i) {
      if (levels[i].bin_of(logit) != levels[i].bin) return false;
    }
    return logit != -INFINITY;
  }
};

// The unit of the integer sums: fine, and no bin overflows if all logits fall into it.
__device__ inline float sum_unit(const Row& row) {
  return row.vocab <= 1 << 17 ? 1.0f / (1 << 14) : 1.0f / (1 << 10);
}

// Sums the weights (in units, relative to the bin's upper edge), or ones, of the logits in each bin
// of `level` that the search holds.
template <bool kCount>
__device__ inline void fill_bins(const Row& row, const Search& search, const Level& level,
                                 Shared& shared) {
  for (int i = threadIdx.x; i < kBins; i += kThreads) shared.bins[i] = 0;
  __syncthreads();
  const float units = 1.0f / sum_unit(row);
  for_each_logit(row, [&](float logit, int) {
    if (!search.holds(logit)) return;
    const int bin = level.bin_of(logit);
    const float ratio = sample_weight(logit, level.edge(bin), row.scale);
    const float sum = kCount ? 1.0f : fminf(ratio, 1.0f) * units + 0.5f;
    atomicAdd(&shared.bins[bin], static_cast<uint32_t>(sum));
  });
  __syncthreads();
}

__device__ inline float smallest_logit(const Row& row, Shared& shared) {
  float smallest = row.maximum;
  for_each_logit(row, [&](float logit, int) {
    if (logit != -INFINITY) smallest = fminf(smallest, logit);
  });
  return block_reduce(smallest, Min{}, shared.scratch);
}

// Several times the distance from the maximum to the mean of the runs' maxima: where most of the
// logits lie, so that they spread over the bins.
__device__ inline float first_span(const Row& row, Shared& shared) {
  float sum = 0.0f;
  float count = 0.0f;
  for (int i = threadIdx.x; i < row.num_runs; i += kThreads) {
    if (row.runs[i].x == -INFINITY) continue;
    sum += row.maximum - row.runs[i].x;
    count += 1.0f;
  }
  sum = block_reduce(sum, Sum{}, shared.scratch);
  return 4.0f * sum / block_reduce(count, Sum{}, shared.scratch);
}

// The next level inside the last one's chosen bin. The last bin of the first level has no lower
// edge: it reaches down to the smallest logit.
__device__ inline Level next_level(const Row& row, const Search& search, Shared& shared) {
  float high = row.maximum;
  float low = high - fminf(kSpan / row.scale, first_span(row, shared));
  if (search.depth > 0) {
    const Level& last = search.levels[search.depth - 1];
    high = last.edge(last.bin);
    low = last.edge(last.bin + 1);
    if (search.depth == 1 && last.bin == kBins - 1) low = smallest_logit(row, shared);
  }
  return {high, static_cast<float>(kBins) / fmaxf(high - low, 1e-30f), 0};
}

// Where the running sum over the order reaches a target: the last token it takes, and the sum of
// weights (or the count) up to and with it.
struct Place {
  int token;
  float logit;
  float sum;
};

// The n-th (from 0) token of those that the search holds, by id; the last when there are fewer.
__device__ inline int nth_held(const Row& row, const Search& search, int n, Shared& shared) {
  int before = 0;
  int mine = 0;
  for (int first = 0; first < row.vocab && before <= n; first += kThreads) {
    const int id = first + static_cast<int>(threadIdx.x);
    const bool held = id < row.vocab && search.holds(row.logits[id]);
    int total = 0;
    const int rank = before + block_exclusive_scan(held ? 1 : 0, shared.int_scratch, &total);
    if (held && rank <= n) mine = id;
    before += total;
  }
  return block_reduce(mine, Max{}, shared.int_scratch);
}

// Finds the place among the candidates, which come after tokens that sum to `before`.
template <bool kCount>
__device__ inline Place place_among_candidates(const Row& row, float target, float before,
                                               Shared& shared) {
  sort_candidates(shared);
  accumulate_candidates(row, shared);
  const int count = shared.num_candidates;
  const auto sum = [&](int i) {
    return before + (kCount ? static_cast<float>(i + 1) : shared.cumulative[i]);
  };
  const int at = min(count - 1, prefix_length(
                                    count, [&](int i) { return sum(i) < target; }, shared));
  const uint64_t c = shared.candidates[at];
  return {candidate_id(c), candidate_logit(c), sum(at)};
}

template <bool kCount>
__device__ inline Place locate(const Row& row, float target, Shared& shared) {
  Search search;
  float before = 0.0f;
  while (search.depth < kMaxLevels) {
    Level level = next_level(row, search, shared);
    fill_bins<kCount>(row, search, level, shared);
    const auto bin_sum = [&](int i) {
      const auto units = static_cast<float>(shared.bins[i]);
      return kCount ? units : units * sum_unit(row) * row.weight(level.edge(i));
    };
    float ahead = 0.0f;
    level.bin = find_cumulative(kBins, target - before, bin_sum, shared, &ahead);
    before += ahead;
    search.levels[search.depth++] = level;
    if (collect_all(
            row, [&](float logit) { return search.holds(logit); }, shared)) {
      return place_among_candidates<kCount>(row, target, before, shared);
    }
    if (level.edge(level.bin) == level.edge(level.bin + 1)) break;
  }
  // More equal logits than candidates fit: their order is that of their ids.
  const Level& last = search.levels[search.depth - 1];
  const float logit = last.edge(last.bin);
  const float weight = kCount ? 1.0f : row.weight(logit);
  const float needed = fminf(ceilf((target - before) / weight), static_cast<float>(row.vocab));
  const int n = max(1, static_cast<int>(needed));
  const int token = nth_held(row, search, n - 1, shared);
  return {token, row.logits[token], before + weight * static_cast<float>(n)};
}

__device__ inline bool is_at_or_before(float logit, int id, const Place& place) {
  return logit > place.logit || (logit == place.logit && id <= place.token);
}

}  // namespace octavo::cuda::sampling
