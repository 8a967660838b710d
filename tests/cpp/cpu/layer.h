// A linear layer on a table of kernels.
#pragma once

#include <optional>
#include <vector>

#include "cpu/cpu_testing.h"
#include "cpu/kernels.h"
#include "cpu/linear.h"

namespace octavo::cpu {

inline const WeightPolicy kKeepQuantized{DType::kBFloat16, true, std::nullopt};

// With a random bias.
class Layer {
 public:
  Layer(const Kernels& kernels, int64_t out, int64_t in, int num_threads = 1)
      : kernels_(kernels), pool_(num_threads), weight_(out, in, true) {
    weight_.load_bias(0, float_view(random_floats(out, 77), 1, out));
  }
  Layer(const Kernels& kernels, const WeightView& view, int num_threads = 1)
      : Layer(kernels, view.rows, view.cols, num_threads) {
    load(0, view);
  }

  void load(int64_t row_begin, const WeightView& view) {
    weight_.load_rows({kernels_, kKeepQuantized, arena_}, row_begin, view);
  }
  std::vector<float> run(std::vector<float> x) {
    const int64_t rows = std::ssize(x) / weight_.in_features();
    std::vector<float> out(rows * weight_.out_features());
    Linear(kernels_, pool_)
        .run(weight_, matrix(x, rows, weight_.in_features()),
             matrix(out, rows, weight_.out_features()));
    return out;
  }

 private:
  const Kernels kernels_;
  WeightArena arena_;
  ThreadPool pool_;
  PackedWeight weight_;
};

}  // namespace octavo::cpu
