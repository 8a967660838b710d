// out = x W^T + b over packed panels.
#pragma once

#include <vector>

#include "base/tensor_view.h"
#include "cpu/activations.h"
#include "cpu/kernels.h"
#include "cpu/packed_weight.h"
#include "cpu/panel_gemm.h"
#include "cpu/scratch.h"
#include "cpu/thread_pool.h"

namespace octavo::cpu {

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
  Scratch widened_;  // one a thread
};

}  // namespace octavo::cpu
