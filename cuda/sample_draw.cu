// One block a row. "Order" below is that of descending logits, the lower id first among equals.
//
// Greedy, plain temperature and min-p need only the runs: the token is found in one of them. For
// top-k and top-p the k-th greatest run maximum bounds the k-th greatest logit from below, so the
// runs above it hold all candidates; these are few and are sorted. Where they are too many (a flat
// distribution), digits of the cut are searched from the top, sixteen sums a pass over the row.
// All sums have a fixed order: a row gives the same token each time.
#include <climits>

#include "base/philox.h"
#include "cuda/common/launch.cuh"
#include "cuda/sampling.cuh"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kPerLane = kRunLength / kWarpSize;
constexpr int kMaxCandidates = 4096;
constexpr int kFirstGuess = 64;  // candidates of a first attempt without top-k
constexpr int kGuessGrowth = 8;

struct Min {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};

struct Shared {
  uint64_t candidates[kMaxCandidates];  // ~ordered_key << 32 | id: ascending is order
  float cumulative[kMaxCandidates];
  float bins[kWarps][16];
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

__device__ uint64_t candidate(float logit, int id) {
  return uint64_t{~ordered_key(logit)} << 32 | static_cast<uint32_t>(id);
}
__device__ int candidate_id(uint64_t c) { return static_cast<int>(c & 0xffffffffu); }
__device__ float candidate_logit(uint64_t c) {
  return from_ordered_key(~static_cast<uint32_t>(c >> 32));
}

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

// The first of `count` values whose running sum reaches `target`; the last positive one when
// rounding keeps the sum below it. `before` gets the sum of those ahead of it. value(i) >= 0.
template <typename Value>
__device__ int find_cumulative(int count, float target, Value&& value, Shared& shared,
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
  const int chosen = is_reached ? first_reached : block_reduce(last, Max{}, shared.int_scratch);
  if (begin <= chosen && chosen < end) {
    shared.scratch[0] = is_reached ? sum_before_reached : sum_before_last;
  }
  __syncthreads();
  *before = shared.scratch[0];
  __syncthreads();
  return chosen;
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
__device__ uint32_t candidate_bound(const Row& row, int k, Shared& shared) {
  constexpr int kLowestBit = 12;
  if (k > row.num_runs) return 0;
  uint32_t bound = 0;
  for (int bit = 31; bit >= kLowestBit; --bit) {
    const uint32_t trial = bound | 1u << bit;
    int count = 0;
    for (int i = threadIdx.x; i < row.num_runs; i += kThreads) {
      count += ordered_key(row.runs[i].x) >= trial ? 1 : 0;
    }
    if (block_reduce(count, Sum{}, shared.int_scratch) >= k) bound = trial;
  }
  return bound;
}

// Collects the logits that `keep` accepts, from runs that reach `bound`. False when they are too
// many.
template <typename Keep>
__device__ bool collect(const Row& row, uint32_t bound, Keep&& keep, Shared& shared) {
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

// Bitonic sort of the candidates into order; pads them to a power of two.
__device__ void sort_candidates(Shared& shared) {
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
__device__ void accumulate_candidates(const Row& row, Shared& shared) {
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
__device__ int prefix_length(int count, Condition&& condition, Shared& shared) {
  int mine = 0;
  for (int i = threadIdx.x; i < count; i += kThreads) mine += condition(i) ? 1 : 0;
  return block_reduce(mine, Sum{}, shared.int_scratch);
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

// Where the running sum over the order reaches a target: among the logits with this key.
struct Cut {
  uint32_t key;
  float above;  // sum of those before them
};

// Adds up the weights (or ones) of the logits whose key continues `prefix` with each digit.
template <bool kCount>
__device__ void sum_digits(const Row& row, uint32_t prefix, int shift, Shared& shared) {
  float sums[16] = {};
  for (int id = threadIdx.x; id < row.vocab; id += kThreads) {
    const float logit = row.logits[id];
    const uint32_t key = ordered_key(logit);
    if (shift < 28 && (key ^ prefix) >> (shift + 4) != 0) continue;
    const float w = kCount ? 1.0f : row.weight(logit);
    const uint32_t digit = key >> shift & 15;
#pragma unroll
    for (uint32_t j = 0; j < 16; ++j) sums[j] += digit == j ? w : 0.0f;
  }
#pragma unroll
  for (int j = 0; j < 16; ++j) {
    const float sum = warp_reduce(sums[j], Sum{});
    if (threadIdx.x % kWarpSize == 0) shared.bins[threadIdx.x / kWarpSize][j] = sum;
  }
  __syncthreads();
}

template <bool kCount>
__device__ Cut find_cut(const Row& row, float target, Shared& shared) {
  Cut cut{0, 0.0f};
  for (int shift = 28; shift >= 0; shift -= 4) {
    sum_digits<kCount>(row, cut.key, shift, shared);
    uint32_t digit = 0;
    float above = cut.above;
    float running = cut.above;
    for (int j = 15; j >= 0; --j) {
      float sum = 0.0f;
      for (int w = 0; w < kWarps; ++w) sum += shared.bins[w][j];
      if (sum <= 0.0f) continue;
      digit = j;
      above = running;
      running += sum;
      if (running >= target) break;
    }
    cut.key |= digit << shift;
    cut.above = above;
    __syncthreads();
  }
  return cut;
}

__device__ int count_key(const Row& row, uint32_t key, Shared& shared) {
  int mine = 0;
  for (int id = threadIdx.x; id < row.vocab; id += kThreads) {
    mine += ordered_key(row.logits[id]) == key ? 1 : 0;
  }
  return block_reduce(mine, Sum{}, shared.int_scratch);
}

// The id of the n-th (from 0) logit with this key. Requires: there is one.
__device__ int nth_with_key(const Row& row, uint32_t key, int n, Shared& shared) {
  int before = 0;
  for (int first = 0;; first += kThreads) {
    const int id = first + threadIdx.x;
    const bool equal = id < row.vocab && ordered_key(row.logits[id]) == key;
    int total = 0;
    const int rank = before + block_exclusive_scan(equal ? 1 : 0, shared.int_scratch, &total);
    if (before + total > n || first + kThreads >= row.vocab) {
      const int mine = equal && rank == n ? id : INT_MAX;
      return block_reduce(mine, Min{}, shared.int_scratch);
    }
    before += total;
  }
}

// How many equal weights w past `above` it takes to reach the target, from 1 to `available`.
__device__ int equals_to_reach(float target, float above, float w, int available) {
  const float needed = ceilf((target - above) / w);
  return max(1, min(available, needed < 1e9f ? static_cast<int>(needed) : available));
}

// The same draw as draw_sorted() without any list: cuts the order by sums.
__device__ int draw_by_digits(const Row& row, const SampleRowParams& params, float u, float total,
                              Shared& shared) {
  if (params.top_k > 0) {
    const Cut cut = find_cut<true>(row, static_cast<float>(params.top_k), shared);
    const int equals = params.top_k - static_cast<int>(cut.above);
    float mine = 0.0f;
    for (int id = threadIdx.x; id < row.vocab; id += kThreads) {
      if (ordered_key(row.logits[id]) > cut.key) mine += row.weight(row.logits[id]);
    }
    total = block_reduce(mine, Sum{}, shared.scratch) +
            static_cast<float>(equals) * row.weight(from_ordered_key(cut.key));
  }
  if (params.top_p < 1.0f) {
    const Cut cut = find_cut<false>(row, params.top_p * total, shared);
    const float w = row.weight(from_ordered_key(cut.key));
    const int available = count_key(row, cut.key, shared);
    total = cut.above +
            w * static_cast<float>(equals_to_reach(params.top_p * total, cut.above, w, available));
  }
  if (params.min_p > 0.0f) {
    float mine = 0.0f;
    for (int id = threadIdx.x; id < row.vocab; id += kThreads) {
      const float w = row.weight(row.logits[id]);
      mine += w >= params.min_p ? w : 0.0f;
    }
    total = fminf(total, block_reduce(mine, Sum{}, shared.scratch));
  }
  const Cut cut = find_cut<false>(row, u * total, shared);
  const float w = row.weight(from_ordered_key(cut.key));
  const int available = count_key(row, cut.key, shared);
  const int n = equals_to_reach(u * total, cut.above, w, available) - 1;
  return nth_with_key(row, cut.key, n, shared);
}

__device__ int draw_nucleus(const Row& row, const SampleRowParams& params, float u, float total,
                            Shared& shared) {
  const int limit = params.top_k > 0 ? params.top_k : min(row.num_runs, kMaxCandidates / 2);
  for (int k = params.top_k > 0 ? params.top_k : kFirstGuess; k <= limit; k *= kGuessGrowth) {
    const uint32_t bound = candidate_bound(row, k, shared);
    const auto keep = [&](float logit, int) { return ordered_key(logit) >= bound; };
    if (!collect(row, bound, keep, shared)) break;
    const int token = draw_sorted(row, params, u, total, shared);
    if (token >= 0) return token;
  }
  return draw_by_digits(row, params, u, total, shared);
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
  const uint32_t bound = candidate_bound(row, k, shared);
  if (!collect(
          row, bound, [&](float v, int) { return ordered_key(v) >= bound; }, shared)) {
    const Cut cut = find_cut<true>(row, static_cast<float>(k), shared);
    const int last = nth_with_key(row, cut.key, k - static_cast<int>(cut.above) - 1, shared);
    const auto keep = [&](float v, int id) {
      return ordered_key(v) > cut.key || (ordered_key(v) == cut.key && id <= last);
    };
    collect(row, cut.key, keep, shared);
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

__global__ void __launch_bounds__(kThreads) draw_kernel(SampleArrays arrays) {
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

void sample_draw(const SampleArrays& arrays, cudaStream_t stream) {
  const size_t shared_bytes = sizeof(Shared) + num_runs(arrays.vocab) * sizeof(float2);
  launch(draw_kernel,
         {.grid = dim3(arrays.num_rows), .block = dim3(kThreads), .shared_bytes = shared_bytes},
         stream, arrays);
}

}  // namespace octavo::cuda
