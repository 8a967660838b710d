// Products of experts for few rows each, at the speed of reading the chosen experts' weights.
#pragma once

#include <cuda.h>

#include <map>
#include <tuple>

#include "base/tensor_view.h"
#include "cuda/common/device_context.h"
#include "cuda/common/memory.h"
#include "cuda/experts.h"

namespace octavo::cuda {

class GroupedStream {
 public:
  explicit GroupedStream(const DeviceContext& context);

  // An expert, on the average; above, grouped_linear() is faster.
  static constexpr int kMaxRows = 2;

  // Whether sizes allow it: x [., K], N features an expert come out. Coded weights need K a
  // multiple of 128 and N of 64.
  static bool accepts(const ExpertPlan& plan, TensorView weight, TensorView x,
                      int64_t out_features);

  // out[row] = silu(gate) * up with gate and up, the halves of x[token_of_row[row]] W_e^T, each
  // rounded to x's type. weight [num_experts * 2 N, K] of x's type or in units, out [num_pairs, N].
  // The plan may be written by the kernel before. Requires: accepts().
  void run_gated(const DeviceContext& context, TensorView weight, TensorView x,
                 const ExpertPlan& plan, TensorView out);

  // out[row] = x[row] W_e^T. weight [num_experts * N, K], out [num_pairs, N].
  // `follows_gated`: the operation before was run_gated() with the same plan; it overlaps with
  // that. Requires: accepts().
  void run(const DeviceContext& context, TensorView weight, TensorView x, const ExpertPlan& plan,
           TensorView out, bool follows_gated);

 private:
  struct Call;

  const CUtensorMap& find_map(TensorView weight);
  void run_call(const DeviceContext& context, const Call& call);

  std::map<std::tuple<const void*, int64_t, int64_t>, CUtensorMap> maps_;
  DeviceMemory partials_;
  DeviceMemory flags_;
};

}  // namespace octavo::cuda
