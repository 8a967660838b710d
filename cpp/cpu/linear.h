// out = x W^T + b over packed panels.
#pragma once

#include "base/tensor_view.h"
#include "cpu/kernels.h"
#include "cpu/packed_weight.h"
#include "cpu/scratch.h"
#include "cpu/thread_pool.h"

namespace octavo::cpu {

// Output features are divided over the threads, input features never, so each element has one
// order of accumulation.
class Linear {
 public:
  Linear(const Kernels& kernels, ThreadPool& pool) : kernels_(kernels), pool_(pool) {}

  // x [T, in], out [T, out], float32, rows may be strided.
  void run(const PackedWeight& weight, TensorView x, TensorView out);

 private:
  struct Activations {
    const void* data;
    int64_t stride;
  };

  Activations convert(ActivationFormat format, TensorView x);
  void run_segment(const PackedWeight& weight, const PanelSegment& segment, TensorView x,
                   TensorView out);

  const Kernels& kernels_;
  ThreadPool& pool_;
  Scratch scratch_;
};

}  // namespace octavo::cpu
