#include "cpu/linear.h"

#include "base/check.h"

namespace octavo::cpu {

void Linear::run(const PackedWeight& weight, TensorView x, TensorView out) {
  check(x.dtype == DType::kFloat32 && out.dtype == DType::kFloat32, "linear is float32 outside");
  check(x.cols() == weight.in_features() && out.cols() == weight.out_features() &&
            x.rows() == out.rows(),
        "linear: shapes do not match");
  if (x.rows() == 0) return;
  convert(weight, x);
  plan(weight);
  pool_.parallel_for(std::ssize(tasks_),
                     [&](int64_t task, int) { run_task(tasks_[task], weight, x, out); });
}

// Runs of panels long enough for the prefetcher, small enough for the threads to end together.
void Linear::plan(const PackedWeight& weight) {
  constexpr int64_t kTasksPerThread = 2;
  int64_t num_panels = 0;
  for (const PanelSegment& segment : weight.segments()) num_panels += segment.num_panels();
  const int64_t num_shares = pool_.num_threads() * kTasksPerThread;
  const int64_t width = (num_panels + num_shares - 1) / num_shares;
  tasks_.clear();
  for (const PanelSegment& segment : weight.segments()) {
    for (int64_t first = 0; first < segment.num_panels(); first += width) {
      tasks_.push_back({&segment, first, std::min(width, segment.num_panels() - first)});
    }
  }
}

void Linear::convert(const PackedWeight& weight, TensorView x) {
  activations_.fill({});
  for (const PanelSegment& segment : weight.segments()) {
    const ActivationFormat format = kernels_.activation_format[static_cast<int>(segment.format)];
    Activations& activations = activations_[static_cast<int>(format)];
    if (activations.data == nullptr) activations = convert_to(format, x);
  }
}

Linear::Activations Linear::convert_to(ActivationFormat format, TensorView x) {
  if (format == ActivationFormat::kFloat32) return {x.as<std::byte>(), x.row_stride * 4};
  const auto convert_row = kernels_.convert_row[static_cast<int>(format)];
  const int64_t stride = activation_row_bytes(format, x.cols());
  std::byte* rows = scratch_[static_cast<int>(format)].get<std::byte>(x.rows() * stride);
  constexpr int64_t kRowsPerTask = 8;
  pool_.parallel_for((x.rows() + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int) {
    const int64_t end = std::min(x.rows(), (task + 1) * kRowsPerTask);
    for (int64_t r = task * kRowsPerTask; r < end; ++r) {
      convert_row(x.as<float>() + r * x.row_stride, x.cols(), rows + r * stride);
    }
  });
  return {rows, stride};
}

void Linear::run_task(const Task& task, const PackedWeight& weight, TensorView x,
                      TensorView out) const {
  const PanelSegment& segment = *task.segment;
  const int format = static_cast<int>(segment.format);
  const Activations& activations =
      activations_[static_cast<int>(kernels_.activation_format[format])];
  const int64_t col = task.first_panel * kPanelRows;
  GemmArgs args;
  args.x = activations.data;
  args.x_stride_bytes = activations.stride_bytes;
  args.num_rows = x.rows();
  args.panels = segment.panel(task.first_panel);
  args.panel_bytes = segment.panel_bytes;
  args.depth = weight.in_features();
  args.num_cols = std::min(task.num_panels * kPanelRows, segment.num_rows - col);
  args.out = out.as<float>() + segment.row_begin + col;
  args.out_stride = out.row_stride;
  args.bias = weight.bias() == nullptr ? nullptr : weight.bias() + segment.row_begin + col;
  kernels_.gemm[format](args);
}

}  // namespace octavo::cpu
