// A mixture of experts: routing, one batch of rows an expert, and the weighted sum.
#pragma once

#include "backend/backend.h"
#include "cuda/common/device_context.h"

namespace octavo::cuda {

// The arrays of ExpertScratch::plan; see expert_plan_size(). A pair is a token and one of its
// experts; rows are the pairs sorted by expert.
struct ExpertPlan {
  int32_t* expert = nullptr;        // [num_pairs]
  float* weight = nullptr;          // [num_pairs]
  int32_t* row = nullptr;           // [num_pairs]
  int32_t* token_of_row = nullptr;  // [num_pairs]
  int32_t* first_row = nullptr;     // [num_experts + 1]
  int num_pairs = 0;
  int num_experts = 0;
  int experts_per_token = 0;
};

// The plan for `num_tokens`, its arrays in `memory`. Requires: memory, int32, holds
// expert_plan_size() elements.
ExpertPlan expert_plan(TensorView memory, int64_t num_tokens, int64_t num_experts,
                       int64_t experts_per_token);

// Fills the plan from router_logits, float32 [T, num_experts].
void route_experts(const DeviceContext& context, TensorView router_logits, bool renormalize,
                   const ExpertPlan& plan);

// out[row] = x[token_of_row[row]] W_e^T for the expert e of each row, or x[row] W_e^T where
// `by_token` is false. weight [num_experts * N, K], out [num_pairs, N], one half type.
// Requires: K and N multiples of 8.
void grouped_linear(const DeviceContext& context, TensorView weight, TensorView x, bool by_token,
                    const ExpertPlan& plan, TensorView out);

// out[t] = sum of weight * rows[row] over the pairs of token t, in the order of its experts.
void combine_experts(const DeviceContext& context, TensorView rows, const ExpertPlan& plan,
                     TensorView out);

}  // namespace octavo::cuda
