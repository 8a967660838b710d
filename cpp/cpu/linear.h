// out = x W^T + b over packed panels.
#pragma once

#include <algorithm>
#include <vector>

#include "base/tensor_view.h"
#include "cpu/activations.h"
#include "cpu/kernels.h"
#include "cpu/packed_weight.h"
#include "cpu/thread_pool.h"

namespace octavo::cpu {

// A run of panels of one segment.
struct PanelRun {
  const PanelSegment* segment = nullptr;
  int64_t first_panel = 0;
  int64_t num_panels = 0;

  int64_t num_cols() const {
    return std::min(num_panels * kPanelRows, segment->num_rows - first_panel * kPanelRows);
  }
  // The first of its output features.
  int64_t row_begin() const { return segment->row_begin + first_panel * kPanelRows; }
};

// All but num_rows and the output; from the first row of `activations` on.
GemmArgs gemm_args(const PanelRun& run, const PackedWeight& weight, const Activations& activations);

// Output features are divided over the threads, input features never, so each element has one
// order of accumulation.
class Linear {
 public:
  Linear(const Kernels& kernels, ThreadPool& pool)
      : kernels_(kernels), pool_(pool), activations_(kernels, pool) {}

  // x [T, in], out [T, out], float32, rows may be strided.
  void run(const PackedWeight& weight, TensorView x, TensorView out);
  // The same with rows that were converted for the weight.
  void multiply(const PackedWeight& weight, const Activations& x, TensorView out);

 private:
  void plan(const PackedWeight& weight);

  const Kernels& kernels_;
  ThreadPool& pool_;
  Activations activations_;
  std::vector<PanelRun> runs_;
};

}  // namespace octavo::cpu
