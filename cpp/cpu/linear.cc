#include "cpu/linear.h"

#include <algorithm>

#include "base/check.h"

namespace octavo::cpu {

void Linear::run(const PackedWeight& weight, TensorView x, TensorView out) {
  check(x.dtype == DType::kFloat32 && x.cols() == weight.in_features() && x.rows() == out.rows(),
        "linear: x has the wrong type or shape");
  activations_.convert(weight, x);
  multiply(weight, activations_, out);
}

void Linear::multiply(const PackedWeight& weight, const Activations& x, TensorView out) {
  check(out.dtype == DType::kFloat32 && out.cols() == weight.out_features(),
        "linear: out has the wrong type or shape");
  if (out.rows() == 0) return;
  plan(weight);
  const int64_t buffer_bytes = widened_bytes(kernels_, weight, out.rows());
  std::byte* buffers = widened_.get<std::byte>(buffer_bytes * pool_.num_threads());
  pool_.parallel_for(std::ssize(runs_), [&](int64_t index, int thread) {
    const PanelRun& run = runs_[index];
    GemmArgs args = gemm_args(run, weight, x);
    args.num_rows = out.rows();
    args.out = out.as<float>() + run.row_begin();
    args.out_stride = out.row_stride;
    multiply_panels(kernels_, run.segment->format, out.rows(), args,
                    buffers + thread * buffer_bytes);
  });
}

// Runs long enough for the prefetcher, small enough for the threads to end together.
void Linear::plan(const PackedWeight& weight) {
  constexpr int64_t kRunsPerThread = 2;
  int64_t num_panels = 0;
  for (const PanelSegment& segment : weight.segments()) num_panels += segment.num_panels();
  const int64_t num_shares = pool_.num_threads() * kRunsPerThread;
  const int64_t width = (num_panels + num_shares - 1) / num_shares;
  runs_.clear();
  for (const PanelSegment& segment : weight.segments()) {
    for (int64_t first = 0; first < segment.num_panels(); first += width) {
      runs_.push_back({&segment, first, std::min(width, segment.num_panels() - first)});
    }
  }
}

}  // namespace octavo::cpu
