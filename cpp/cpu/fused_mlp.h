// down(f(gate x) * up x), without a trip of the wide rows in between to memory.
#pragma once

#include <vector>

#include "base/tensor_view.h"
#include "cpu/activations.h"
#include "cpu/kernels.h"
#include "cpu/linear.h"
#include "cpu/packed_weight.h"
#include "cpu/scratch.h"
#include "cpu/thread_pool.h"

namespace octavo::cpu {

// A task has the same output features of gate and of up. It multiplies a chunk of rows into a
// buffer of its thread's, small enough for L2, and takes that through the activation function to
// where the next product wants it, in the format in which it wants it. The kernels and their order
// are those of Linear and of the activation function alone, so the results are the same bits.
class FusedMlp {
 public:
  // kernels.silu_mul or gelu_tanh_mul.
  using Function = void (*)(const float* gate, const float* up, int64_t size, float* out);

  FusedMlp(const Kernels& kernels, ThreadPool& pool, Linear& linear)
      : kernels_(kernels), pool_(pool), linear_(linear), x_(kernels, pool), gated_(kernels, pool) {}

  // out = function(gate, up) with gate | up = x W^T + b. x [T, in], out [T, intermediate], float32,
  // rows may be strided. Does nothing and returns false where gate and up have no panels of the
  // same features: out_features / 2 or the border of a segment is inside of one.
  bool multiply_gate_up(const PackedWeight& gate_up, Function function, TensorView x,
                        TensorView out);

  // out = down(function(gate, up)). `gated` float32 [T, intermediate] is scratch for weights that
  // take float32. Returns false likewise, or where `down` does not take whole blocks of one format.
  bool run(const PackedWeight& gate_up, Function function, const PackedWeight& down, TensorView x,
           TensorView gated, TensorView out);

 private:
  struct Task {
    PanelRun gate, up;
    int64_t col = 0;  // of gate, of up and of the output
    int64_t num_cols = 0;
  };
  struct Buffers {
    float* products = nullptr;     // [chunk of rows, gate and up of a task]
    std::byte* widened = nullptr;  // panels of a task
  };
  // Where rows go, [T, intermediate] in one format, and on which way.
  struct Output {
    Function function = nullptr;
    ActivationFormat format = ActivationFormat::kFloat32;
    std::byte* data = nullptr;
    int64_t stride_bytes = 0;
  };

  bool plan(const PackedWeight& gate_up, int64_t num_rows);
  int64_t panels_per_task(const PackedWeight& gate_up) const;
  void multiply(const PackedWeight& gate_up, TensorView x, const Output& out);
  void run_task(const Task& task, const PackedWeight& gate_up, int64_t num_rows,
                const Buffers& buffers, const Output& out) const;
  // From the task's columns of gate and up of one row, which are overwritten.
  void finish_row(const Task& task, float* gate_up, std::byte* row, const Output& out) const;

  const Kernels& kernels_;
  ThreadPool& pool_;
  Linear& linear_;
  Activations x_, gated_;
  std::vector<Task> tasks_;
  int64_t chunk_rows_ = 0;
  int64_t inner_ = 0;  // intermediate
  // Panels of a task are widened in L2 once for all chunks of rows.
  bool widens_ = false;
  int64_t widened_bytes_ = 0;  // of a task's gate or up
  Scratch buffers_, widened_;  // one a thread
};

}  // namespace octavo::cpu
