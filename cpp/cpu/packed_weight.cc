#include "cpu/packed_weight.h"

#include <algorithm>
#include <string>

#include "base/check.h"
#include "base/dequantize.h"
#include "base/errors.h"
#include "cpu/quantized_block.h"

namespace octavo::cpu {
namespace {

const std::byte* row_of(const WeightView& view, int64_t row) {
  return static_cast<const std::byte*>(view.data) + row * dtype_bytes(view.dtype, view.cols);
}

PanelSegment allocate_segment(PanelFormat format, int64_t row_begin, const WeightView& view,
                              WeightArena& arena) {
  PanelSegment segment;
  segment.row_begin = row_begin;
  segment.num_rows = view.rows;
  segment.format = format;
  segment.panel_bytes = panel_bytes(format, view.cols);
  segment.panels = arena.allocate(segment.num_panels() * segment.panel_bytes);
  return segment;
}

void pack_plain(const Kernels& kernels, const WeightView& view, const PanelSegment& segment) {
  std::vector<float> rows(kPanelRows * view.cols);
  const auto pack = kernels.pack_panel[static_cast<int>(segment.format)];
  for (int64_t p = 0; p < segment.num_panels(); ++p) {
    const int64_t first = p * kPanelRows, count = std::min(kPanelRows, view.rows - first);
    dequantize(view.dtype, row_of(view, first), count * view.cols, rows.data());
    pack(rows.data(), count, view.cols, segment.panel(p));
  }
}

// The blocks of one row, taken apart from a quantised type or rounded from a plain one.
void make_blocks(const WeightView& view, int64_t row, PanelFormat format,
                 std::vector<float>& floats, std::vector<QuantizedBlock>& blocks) {
  if (!octavo::is_quantized(view.dtype)) {
    dequantize(view.dtype, row_of(view, row), view.cols, floats.data());
    for (int64_t b = 0; b < std::ssize(blocks); ++b) {
      blocks[b] = quantize_block(format, floats.data() + b * kBlockDepth);
    }
    return;
  }
  const DTypeInfo info = dtype_info(view.dtype);
  const int64_t per_source = info.block_elements / kBlockDepth;
  const std::byte* source = row_of(view, row);
  for (int64_t b = 0; b < std::ssize(blocks); b += per_source, source += info.block_bytes) {
    decode_block(view.dtype, source, std::span(blocks).subspan(b, per_source));
  }
}

// False when a scale does not fit; the segment is then of no use.
bool pack_quantized(const WeightView& view, const PanelSegment& segment) {
  std::vector<float> floats(view.cols);
  std::vector<QuantizedBlock> blocks(view.cols / kBlockDepth);
  for (int64_t row = 0; row < view.rows; ++row) {
    make_blocks(view, row, segment.format, floats, blocks);
    for (int64_t b = 0; b < std::ssize(blocks); ++b) {
      if (!pack_block(segment.format, blocks[b], b, row % kPanelRows,
                      segment.panel(row / kPanelRows))) {
        return false;
      }
    }
  }
  return true;
}

}  // namespace

PanelFormat WeightPolicy::plain_format() const {
  switch (weight_dtype) {
    case DType::kFloat32:
      return PanelFormat::kFloat32;
    case DType::kFloat16:
      return PanelFormat::kFloat16;
    default:
      return PanelFormat::kBFloat16;
  }
}

PanelFormat WeightPolicy::format_for(DType source, int64_t in_features) const {
  if (in_features % kBlockDepth != 0) return plain_format();
  if (octavo::is_quantized(source)) {
    return keep_quantized ? panel_format_of(source).value_or(plain_format()) : plain_format();
  }
  return quantize_to.value_or(plain_format());
}

WeightPolicy weight_policy(const BackendOptions& options) {
  WeightPolicy policy{options.weight_dtype, options.keep_quantized, std::nullopt};
  if (options.weight_dtype != DType::kFloat32 && options.weight_dtype != DType::kBFloat16 &&
      options.weight_dtype != DType::kFloat16) {
    throw ConfigError("weights cannot be kept in " +
                      std::string(dtype_info(options.weight_dtype).name));
  }
  if (options.quantization == "int8") {
    policy.quantize_to = PanelFormat::kInt8;
  } else if (options.quantization == "int4") {
    policy.quantize_to = PanelFormat::kInt4Min;
  } else if (!options.quantization.empty()) {
    throw ConfigError("unknown quantization: " + options.quantization + " (int8 or int4)");
  }
  return policy;
}

PackedWeight::PackedWeight(int64_t out_features, int64_t in_features, bool has_bias)
    : out_features_(out_features), in_features_(in_features) {
  if (has_bias) bias_.resize(out_features);
}

int64_t PackedWeight::size_bytes() const {
  int64_t total = static_cast<int64_t>(bias_.size() * sizeof(float));
  for (const PanelSegment& segment : segments_) {
    total += segment.num_panels() * segment.panel_bytes;
  }
  return total;
}

void PackedWeight::load_rows(const Loader& loader, int64_t row_begin, const WeightView& view) {
  check(view.cols == in_features_, "weight has the wrong number of columns");
  check(row_begin >= 0 && row_begin + view.rows <= out_features_, "rows outside the weight");
  PanelFormat format = loader.policy.format_for(view.dtype, in_features_);
  if (format == PanelFormat::kInt4Min && is_int4(view.dtype) && has_middle_zeros(view)) {
    format = PanelFormat::kInt4;
  }
  PanelSegment segment = allocate_segment(format, row_begin, view, loader.arena);
  if (!is_quantized(format)) {
    pack_plain(loader.kernels, view, segment);
  } else if (!pack_quantized(view, segment)) {
    segment = allocate_segment(loader.policy.plain_format(), row_begin, view, loader.arena);
    pack_plain(loader.kernels, view, segment);
  }
  const std::lock_guard lock(mutex_);
  const auto place = std::ranges::lower_bound(segments_, row_begin, {}, &PanelSegment::row_begin);
  segments_.insert(place, segment);
}

void PackedWeight::load_bias(int64_t row_begin, const WeightView& view) {
  const int64_t size = view.rows * view.cols;
  check(row_begin >= 0 && row_begin + size <= std::ssize(bias_), "rows outside the bias");
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
