#include "cpu/panel_gemm.h"

namespace octavo::cpu {
namespace {

// Of widened panels together: they stay in L2 beside the rows that meet them.
constexpr int64_t kWidenedBytes = int64_t{512} << 10;
// The tiles take two panels at a time.
constexpr int64_t kMinPanels = 2;

int64_t panels_at_once(int64_t depth) {
  return std::max(kMinPanels, kWidenedBytes / panel_bytes(PanelFormat::kBFloat16, depth));
}

}  // namespace

GemmArgs gemm_args(const PanelRun& run, const PackedWeight& weight,
                   const Activations& activations) {
  const Activations::Rows& x = activations.rows(run.segment->format);
  GemmArgs args;
  args.x = x.data;
  args.x_stride_bytes = x.stride_bytes;
  args.panels = run.segment->panel(run.first_panel);
  args.panel_bytes = run.segment->panel_bytes;
  args.depth = weight.in_features();
  args.num_cols = run.num_cols();
  args.bias = weight.bias() == nullptr ? nullptr : weight.bias() + run.row_begin();
  return args;
}

bool widens(const Kernels& kernels, const PackedWeight& weight, int64_t num_rows) {
  return std::ranges::any_of(weight.segments(), [&](const PanelSegment& segment) {
    return kernels.widens(segment.format, num_rows);
  });
}

int64_t widened_bytes(const Kernels& kernels, const PackedWeight& weight, int64_t num_rows) {
  if (!widens(kernels, weight, num_rows)) return 0;
  const int64_t depth = weight.in_features();
  return panels_at_once(depth) * panel_bytes(PanelFormat::kBFloat16, depth);
}

GemmKernel choose_gemm(const Kernels& kernels, PanelFormat format, int64_t num_rows, GemmArgs& args,
                       std::byte* buffer) {
  const int index = static_cast<int>(format);
  if (!kernels.widens(format, num_rows)) return kernels.gemm[index];
  const int64_t wide_bytes = panel_bytes(PanelFormat::kBFloat16, args.depth);
  const int64_t num_panels = (args.num_cols + kPanelRows - 1) / kPanelRows;
  for (int64_t p = 0; p < num_panels; ++p) {
    kernels.widen_panel[index](args.panels + p * args.panel_bytes, args.depth,
                               buffer + p * wide_bytes);
  }
  args.panels = buffer;
  args.panel_bytes = wide_bytes;
  return kernels.gemm[static_cast<int>(PanelFormat::kBFloat16)];
}

void multiply_panels(const Kernels& kernels, PanelFormat format, int64_t num_rows,
                     const GemmArgs& args, std::byte* buffer) {
  const bool widens = kernels.widens(format, num_rows);
  const int64_t step = widens ? panels_at_once(args.depth) * kPanelRows : args.num_cols;
  for (int64_t col = 0; col < args.num_cols; col += step) {
    GemmArgs some = args;
    some.panels += col / kPanelRows * args.panel_bytes;
    some.num_cols = std::min(step, args.num_cols - col);
    some.out += col;
    if (args.bias != nullptr) some.bias += col;
    choose_gemm(kernels, format, num_rows, some, buffer)(some);
  }
}

}  // namespace octavo::cpu
