#include "cpu/activations.h"

namespace octavo::cpu {

void Activations::convert(const PackedWeight& weight, TensorView x) {
  rows_.fill({});
  num_rows_ = x.rows();
  for (const PanelSegment& segment : weight.segments()) {
    const ActivationFormat format = kernels_.activation_format_for(segment.format, num_rows_);
    if (rows_[static_cast<int>(format)].data == nullptr) convert_to(format, x);
  }
}

void Activations::convert_to(ActivationFormat format, TensorView x) {
  Rows& rows = rows_[static_cast<int>(format)];
  if (format == ActivationFormat::kFloat32) {
    rows = {x.as<std::byte>(), x.row_stride * 4};
    return;
  }
  const auto convert_row = kernels_.convert_row[static_cast<int>(format)];
  const int64_t stride = activation_row_bytes(format, x.cols());
  std::byte* data = scratch_[static_cast<int>(format)].get<std::byte>(x.rows() * stride);
  rows = {data, stride};
  pool_.for_rows(x.rows(), 8, [&](int64_t r) {
    convert_row(x.as<float>() + r * x.row_stride, x.cols(), data + r * stride);
  });
}

std::optional<ActivationFormat> Activations::only_format(const PackedWeight& weight,
                                                         int64_t num_rows) const {
  std::optional<ActivationFormat> only;
  for (const PanelSegment& segment : weight.segments()) {
    const ActivationFormat format = kernels_.activation_format_for(segment.format, num_rows);
    if (only.value_or(format) != format) return std::nullopt;
    only = format;
  }
  return only;
}

std::byte* Activations::reserve(ActivationFormat format, int64_t num_rows, int64_t depth) {
  const int64_t stride = activation_row_bytes(format, depth);
  std::byte* data = scratch_[static_cast<int>(format)].get<std::byte>(num_rows * stride);
  rows_.fill({});
  num_rows_ = num_rows;
  rows_[static_cast<int>(format)] = {data, stride};
  return data;
}

}  // namespace octavo::cpu
