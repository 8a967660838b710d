// out = x W^T + b over packed panels.
#pragma once

#include <array>
#include <vector>

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
    const std::byte* data = nullptr;
    int64_t stride_bytes = 0;
  };
  // A run of panels of one segment, for one thread.
  struct Task {
    const PanelSegment* segment;
    int64_t first_panel;
    int64_t num_panels;
  };

  void plan(const PackedWeight& weight);
  void convert(const PackedWeight& weight, TensorView x);
  Activations convert_to(ActivationFormat format, TensorView x);
  void run_task(const Task& task, const PackedWeight& weight, TensorView x, TensorView out) const;

  const Kernels& kernels_;
  ThreadPool& pool_;
  std::vector<Task> tasks_;
  std::array<Activations, kNumActivationFormats> activations_;
  std::array<Scratch, kNumActivationFormats> scratch_;
};

}  // namespace octavo::cpu
