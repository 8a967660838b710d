// Routing of tokens to experts, and the sum of what experts return. One warp chooses for a token,
// its logits in registers; one block an expert then finds the expert's pairs in order, so the plan
// does not depend on timing. Up to 32 pairs are routed by a single block, in one launch instead of
// two. Bound: latency.
#include <type_traits>

#include "base/check.h"
#include "cuda/common/element.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/experts.h"

namespace octavo::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kSortThreads = 256;
constexpr int kFewThreads = kMaxExperts;
constexpr int kFewPairs = 32;  // more take longer than a second launch

struct Candidate {
  float logit;
  int expert;
};

// The greater logit; of equal ones the first expert.
struct Better {
  __device__ Candidate operator()(Candidate a, Candidate b) const {
    return b.logit > a.logit || (b.logit == a.logit && b.expert < a.expert) ? b : a;
  }
};

__device__ Candidate warp_best(Candidate c) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    const Candidate other{__shfl_xor_sync(kFullMask, c.logit, offset),
                          __shfl_xor_sync(kFullMask, c.expert, offset)};
    c = Better{}(c, other);
  }
  return c;
}

// One warp: the experts of a token and their weights. kPerLane: logits of a lane.
template <int kPerLane>
__device__ void choose(const float* logits, bool renormalize, const ExpertPlan& plan,
                       int64_t token) {
  const int lane = threadIdx.x % kWarpSize;
  float v[kPerLane];
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int e = j * kWarpSize + lane;
    v[j] = e < plan.num_experts ? logits[token * plan.num_experts + e] : -INFINITY;
  }
  float greatest = 0.0f;
  float total = 0.0f;
  uint32_t taken = 0;
  for (int k = 0; k < plan.experts_per_token; ++k) {
    Candidate mine{-INFINITY, plan.num_experts - 1};
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      const int e = j * kWarpSize + lane;
      if (e < plan.num_experts && (taken >> j & 1) == 0) mine = Better{}(mine, {v[j], e});
    }
    const Candidate best = warp_best(mine);
    if (best.expert % kWarpSize == lane) taken |= 1u << best.expert / kWarpSize;
    if (k == 0) greatest = best.logit;
    const float term = __expf(best.logit - greatest);
    total += term;
    const int64_t pair = token * plan.experts_per_token + k;
    if (lane == 0) plan.expert[pair] = best.expert;
    if (lane == 0) plan.weight[pair] = term;
  }
  if (!renormalize) {
    total = 0.0f;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) total += __expf(v[j] - greatest);
    total = warp_reduce(total, Sum{});
  }
  __syncwarp();
  for (int k = lane; k < plan.experts_per_token; k += kWarpSize) {
    plan.weight[token * plan.experts_per_token + k] /= total;
  }
}

template <int kPerLane>
__global__ void __launch_bounds__(kWarps* kWarpSize)
    choose_kernel(const float* logits, bool renormalize, ExpertPlan plan) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  if (token * plan.experts_per_token >= plan.num_pairs) return;
  choose<kPerLane>(logits, renormalize, plan, token);
}

// All of it in one block, where pairs are few: a warp a token, then a thread an expert.
template <int kPerLane>
__global__ void __launch_bounds__(kFewThreads)
    route_few_kernel(const float* logits, bool renormalize, ExpertPlan plan) {
  __shared__ int4 experts[kFewPairs / 4];
  __shared__ int scratch[kFewThreads / kWarpSize];
  allow_next_kernel();
  wait_for_previous_kernel();
  const int num_tokens = plan.num_pairs / plan.experts_per_token;
  for (int t = threadIdx.x / kWarpSize; t < num_tokens; t += kFewThreads / kWarpSize) {
    choose<kPerLane>(logits, renormalize, plan, t);
  }
  __syncthreads();
  const int num_fours = (plan.num_pairs + 3) / 4;
  auto* copy = reinterpret_cast<int*>(experts);
  for (int p = threadIdx.x; p < num_fours * 4; p += kFewThreads) {
    copy[p] = p < plan.num_pairs ? plan.expert[p] : -1;
  }
  __syncthreads();
  const int expert = threadIdx.x;
  const bool is_one = expert < plan.num_experts;
  int count = 0;
  for (int i = 0; is_one && i < num_fours; ++i) {
    const int4 e = experts[i];
    count += (e.x == expert) + (e.y == expert) + (e.z == expert) + (e.w == expert);
  }
  int total = 0;
  int row = block_exclusive_scan(count, scratch, &total);
  if (is_one) plan.first_row[expert] = row;
  if (expert == 0) plan.first_row[plan.num_experts] = plan.num_pairs;
  const auto give_row = [&](int p) {
    plan.row[p] = row;
    plan.token_of_row[row] = p / plan.experts_per_token;
    ++row;
  };
  for (int i = 0; count > 0 && i < num_fours; ++i) {
    const int4 e = experts[i];
    if (e.x == expert) give_row(4 * i);
    if (e.y == expert) give_row(4 * i + 1);
    if (e.z == expert) give_row(4 * i + 2);
    if (e.w == expert) give_row(4 * i + 3);
  }
}

// Block e gives rows to the pairs of expert e.
__global__ void __launch_bounds__(kSortThreads) sort_kernel(ExpertPlan plan) {
  __shared__ int scratch[kSortThreads / kWarpSize];
  allow_next_kernel();
  wait_for_previous_kernel();
  const int expert = blockIdx.x;
  int before = 0;
  for (int p = threadIdx.x; p < plan.num_pairs; p += kSortThreads) {
    before += plan.expert[p] < expert ? 1 : 0;
  }
  int row = block_reduce(before, Sum{}, scratch);
  if (threadIdx.x == 0) plan.first_row[expert] = row;
  if (threadIdx.x == 0 && expert + 1 == plan.num_experts) {
    plan.first_row[plan.num_experts] = plan.num_pairs;
  }
  for (int first = 0; first < plan.num_pairs; first += kSortThreads) {
    const int p = first + threadIdx.x;
    const bool is_mine = p < plan.num_pairs && plan.expert[p] == expert;
    int count = 0;
    const int place = row + block_exclusive_scan(is_mine ? 1 : 0, scratch, &count);
    row += count;
    if (!is_mine) continue;
    plan.row[p] = place;
    plan.token_of_row[place] = p / plan.experts_per_token;
  }
}

template <typename T>
__global__ void combine_kernel(const T* rows, ExpertPlan plan, T* out, int hidden) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t token = blockIdx.x;
  for (int i = threadIdx.x * 8; i < hidden; i += blockDim.x * 8) {
    float sum[8] = {};
    for (int k = 0; k < plan.experts_per_token; ++k) {
      const int64_t pair = token * plan.experts_per_token + k;
      const float weight = plan.weight[pair];
      float v[8];
      load8(rows + static_cast<int64_t>(plan.row[pair]) * hidden + i, v);
#pragma unroll
      for (int j = 0; j < 8; ++j) sum[j] += weight * v[j];
    }
    store8(out + token * hidden + i, sum);
  }
}

}  // namespace

ExpertPlan expert_plan(TensorView memory, int64_t num_tokens, int64_t num_experts,
                       int64_t experts_per_token) {
  const int64_t pairs = num_tokens * experts_per_token;
  check(memory.num_elements() >= expert_plan_size(pairs, num_experts), "experts: scratch");
  auto* words = memory.as<int32_t>();
  return {words,
          reinterpret_cast<float*>(words + pairs),
          words + 2 * pairs,
          words + 3 * pairs,
          words + 4 * pairs,
          static_cast<int>(pairs),
          static_cast<int>(num_experts),
          static_cast<int>(experts_per_token)};
}

void route_experts(const DeviceContext& context, TensorView router_logits, bool renormalize,
                   const ExpertPlan& plan) {
  check(router_logits.dtype == DType::kFloat32 && plan.num_experts <= kMaxExperts,
        "route_experts: router");
  if (plan.num_pairs == 0) return;
  const auto route = [&]<int kPerLane>(std::integral_constant<int, kPerLane>) {
    const auto* logits = router_logits.as<const float>();
    if (plan.num_pairs <= kFewPairs) {
      const LaunchShape one{.grid = dim3(1), .block = dim3(kFewThreads)};
      launch(route_few_kernel<kPerLane>, one, context.stream, logits, renormalize, plan);
      return;
    }
    const LaunchShape choose{.grid = dim3((router_logits.rows() + kWarps - 1) / kWarps),
                             .block = dim3(kWarps * kWarpSize)};
    launch(choose_kernel<kPerLane>, choose, context.stream, logits, renormalize, plan);
    const LaunchShape sort{.grid = dim3(plan.num_experts), .block = dim3(kSortThreads)};
    launch(sort_kernel, sort, context.stream, plan);
  };
  constexpr int kUsual = 128;
  if (plan.num_experts <= kUsual) {
    route(std::integral_constant<int, kUsual / kWarpSize>{});
  } else {
    route(std::integral_constant<int, kMaxExperts / kWarpSize>{});
  }
}

void combine_experts(const DeviceContext& context, TensorView rows, const ExpertPlan& plan,
                     TensorView out) {
  check(out.cols() % 8 == 0 && rows.cols() == out.cols() && rows.dtype == out.dtype,
        "combine_experts: shape");
  if (out.rows() == 0) return;
  const LaunchShape shape{.grid = dim3(out.rows()), .block = dim3(256)};
  dispatch_half(out.dtype, [&]<typename T>(T) {
    launch(combine_kernel<T>, shape, context.stream, rows.as<const T>(), plan, out.as<T>(),
           static_cast<int>(out.cols()));
  });
}

}  // namespace octavo::cuda
