#include "cpu/packed_weight.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/dequantize.h"

namespace octavo::cpu {

int64_t panel_bytes(PanelFormat format, int64_t depth) {
  switch (format) {
    case PanelFormat::kFloat32:
      return depth * kPanelRows * 4;
    case PanelFormat::kFloat16:
      return depth * kPanelRows * 2;
    case PanelFormat::kBFloat16: {
      const int64_t steps = (depth + kBFloat16DepthMultiple - 1) / kBFloat16DepthMultiple;
      return steps * kBFloat16DepthMultiple * kPanelRows * 2;
    }
  }
  return 0;
}

PanelFormat panel_format(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return PanelFormat::kFloat32;
    case DType::kFloat16:
      return PanelFormat::kFloat16;
    default:
      return PanelFormat::kBFloat16;
  }
}

PackedWeight::PackedWeight(int64_t out_features, int64_t in_features, bool has_bias)
    : out_features_(out_features), in_features_(in_features) {
  if (has_bias) bias_.resize(out_features);
}

int64_t PackedWeight::size_bytes() const {
  int64_t total = static_cast<int64_t>(bias_.size() * sizeof(float));
  for (const PanelSegment& segment : segments_) total += segment.panels.size_bytes();
  return total;
}

void PackedWeight::load_rows(const Kernels& kernels, PanelFormat format, int64_t row_begin,
                             const WeightView& view) {
  check(view.cols == in_features_, "weight has the wrong number of columns");
  check(row_begin >= 0 && row_begin + view.rows <= out_features_, "rows outside the weight");
  PanelSegment segment;
  segment.row_begin = row_begin;
  segment.num_rows = view.rows;
  segment.format = format;
  segment.panel_bytes = panel_bytes(format, in_features_);
  segment.panels = AlignedBuffer(segment.num_panels() * segment.panel_bytes);

  std::vector<float> rows(kPanelRows * in_features_);
  const int64_t row_bytes = dtype_bytes(view.dtype, view.cols);
  for (int64_t p = 0; p < segment.num_panels(); ++p) {
    const int64_t first = p * kPanelRows;
    const int64_t count = std::min(kPanelRows, view.rows - first);
    dequantize(view.dtype, static_cast<const std::byte*>(view.data) + first * row_bytes,
               count * in_features_, rows.data());
    kernels.pack_panel[static_cast<int>(format)](
        rows.data(), count, in_features_, segment.panels.as<std::byte>() + p * segment.panel_bytes);
  }
  const std::lock_guard lock(mutex_);
  const auto place = std::ranges::lower_bound(segments_, row_begin, {}, &PanelSegment::row_begin);
  segments_.insert(place, std::move(segment));
}

void PackedWeight::load_bias(int64_t row_begin, const WeightView& view) {
  const int64_t size = view.rows * view.cols;
  check(row_begin >= 0 && row_begin + size <= static_cast<int64_t>(bias_.size()),
        "rows outside the bias");
  dequantize(view.dtype, view.data, size, bias_.data() + row_begin);
}

const PanelSegment& PackedWeight::segment_of(int64_t row) const {
  const auto after = std::ranges::upper_bound(segments_, row, {}, &PanelSegment::row_begin);
  check(after != segments_.begin(), "row of a weight that was never loaded");
  const PanelSegment& segment = *std::prev(after);
  check(row < segment.row_begin + segment.num_rows, "row of a weight that was never loaded");
  return segment;
}

}  // namespace octavo::cpu
