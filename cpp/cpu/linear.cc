#include "cpu/linear.h"

#include "base/check.h"

namespace octavo::cpu {
namespace {

// Panels that a task takes: enough columns to fill a register tile, unless that leaves threads
// without work.
int64_t panels_per_task(int64_t num_panels, int num_threads) {
  constexpr int64_t kFullTile = 4, kTasksPerThread = 4;
  const int64_t even = num_panels / (num_threads * kTasksPerThread);
  return std::clamp<int64_t>(even, 1, kFullTile);
}

}  // namespace

void Linear::run(const PackedWeight& weight, TensorView x, TensorView out) {
  check(x.dtype == DType::kFloat32 && out.dtype == DType::kFloat32, "linear is float32 outside");
  check(x.cols() == weight.in_features() && out.cols() == weight.out_features() &&
            x.rows() == out.rows(),
        "linear: shapes do not match");
  for (const PanelSegment& segment : weight.segments()) run_segment(weight, segment, x, out);
}

void Linear::run_segment(const PackedWeight& weight, const PanelSegment& segment, TensorView x,
                         TensorView out) {
  const int format = static_cast<int>(segment.format);
  const Activations activations = convert(kernels_.activation_format[format], x);
  const int64_t num_panels = segment.num_panels();
  const int64_t width = panels_per_task(num_panels, pool_.num_threads());
  pool_.parallel_for((num_panels + width - 1) / width, [&](int64_t task, int) {
    const int64_t col = task * width * kPanelRows;
    GemmArgs args;
    args.x = activations.data;
    args.x_stride = activations.stride;
    args.num_rows = x.rows();
    args.panels = segment.panel(task * width);
    args.panel_bytes = segment.panel_bytes;
    args.depth = weight.in_features();
    args.num_cols = std::min(width * kPanelRows, segment.num_rows - col);
    args.out = out.as<float>() + segment.row_begin + col;
    args.out_stride = out.row_stride;
    args.bias = weight.bias() == nullptr ? nullptr : weight.bias() + segment.row_begin + col;
    kernels_.gemm[format](args);
  });
}

Linear::Activations Linear::convert(ActivationFormat format, TensorView x) {
  if (format == ActivationFormat::kFloat32) return {x.data, x.row_stride};
  const int64_t steps = (x.cols() + kBFloat16DepthMultiple - 1) / kBFloat16DepthMultiple;
  const int64_t stride = steps * kBFloat16DepthMultiple;
  uint16_t* rows = scratch_.get<uint16_t>(x.rows() * stride);
  constexpr int64_t kRowsPerTask = 16;
  pool_.parallel_for((x.rows() + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int) {
    const int64_t end = std::min(x.rows(), (task + 1) * kRowsPerTask);
    for (int64_t r = task * kRowsPerTask; r < end; ++r) {
      kernels_.to_bfloat16(x.as<float>() + r * x.row_stride, x.cols(), stride, rows + r * stride);
    }
  });
  return {rows, stride};
}

}  // namespace octavo::cpu
