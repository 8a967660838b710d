// A mixture of experts: each expert's tokens are gathered and multiplied as one batch.
#pragma once

#include <array>
#include <vector>

#include "backend/backend.h"
#include "cpu/kernels.h"
#include "cpu/packed_weight.h"
#include "cpu/scratch.h"
#include "cpu/thread_pool.h"

namespace octavo::cpu {

class Experts {
 public:
  Experts(const Kernels& kernels, ThreadPool& pool) : kernels_(kernels), pool_(pool) {}

  // See Backend::experts.
  void run(TensorView x, TensorView router_logits, const ExpertBank& bank,
           const ExpertScratch& scratch, TensorView out);

 private:
  // The arrays of ExpertScratch::plan. A pair is a token and one of its experts; pairs are sorted
  // by expert, and rows are their places in that order.
  struct Plan {
    int32_t* expert;        // [pairs]
    float* weight;          // [pairs]
    int32_t* row;           // [pairs]
    int32_t* token_of_row;  // [pairs]
    int32_t* first_row;     // [num_experts + 1]
    int64_t num_experts;
    int64_t experts_per_token;
    int64_t num_pairs;
  };
  struct Activations {
    const std::byte* data = nullptr;
    int64_t stride_bytes = 0;
  };
  // A run of panels of one segment against the rows of one expert.
  struct Task {
    const PanelSegment* segment;
    int64_t first_panel;
    int64_t num_panels;
    int64_t expert;
  };

  void route(TensorView router_logits, bool renormalize, const Plan& plan);
  static void sort_by_expert(const Plan& plan);
  // Experts share the choice of kernels, by the rows that each has on average.
  static int64_t rows_of_an_expert(const Plan& plan) { return plan.num_pairs / plan.num_experts; }
  // out[row] = x[row] W_e^T for the expert e of each row; `tokens` maps rows of the plan to rows of
  // x, or is null where x is in that order.
  void multiply(const PackedWeight& weight, TensorView x, const int32_t* tokens, const Plan& plan,
                TensorView out);
  void plan_tasks(const PackedWeight& weight, const Plan& plan);
  Activations gather(ActivationFormat format, TensorView x, const int32_t* tokens, int64_t rows);
  void run_task(const Task& task, const PackedWeight& weight, const Plan& plan, std::byte* buffer,
                TensorView out) const;
  void combine(TensorView rows, const Plan& plan, TensorView out);

  const Kernels& kernels_;
  ThreadPool& pool_;
  std::vector<Task> tasks_;
  std::array<Activations, kNumActivationFormats> activations_;
  std::array<Scratch, kNumActivationFormats> scratch_;
  Scratch widened_;  // one a thread
};

}  // namespace octavo::cpu
