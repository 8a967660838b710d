#include "cpu/activations.h"

#include <algorithm>

namespace octavo::cpu {

void Activations::convert(const PackedWeight& weight, TensorView x) {
  rows_.fill({});
  for (const PanelSegment& segment : weight.segments()) {
    const ActivationFormat format = kernels_.activation_format[static_cast<int>(segment.format)];
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
  const int64_t rows_per_task = pool_.rows_per_task(x.rows(), 8);
  pool_.parallel_for((x.rows() + rows_per_task - 1) / rows_per_task, [&](int64_t task, int) {
    const int64_t end = std::min(x.rows(), (task + 1) * rows_per_task);
    for (int64_t r = task * rows_per_task; r < end; ++r) {
      convert_row(x.as<float>() + r * x.row_stride, x.cols(), data + r * stride);
    }
  });
}

std::optional<ActivationFormat> Activations::only_format(const PackedWeight& weight) const {
  std::optional<ActivationFormat> only;
  for (const PanelSegment& segment : weight.segments()) {
    const ActivationFormat format = kernels_.activation_format[static_cast<int>(segment.format)];
    if (only.value_or(format) != format) return std::nullopt;
    only = format;
  }
  return only;
}

std::byte* Activations::reserve(ActivationFormat format, int64_t num_rows, int64_t depth) {
  const int64_t stride = activation_row_bytes(format, depth);
  std::byte* data = scratch_[static_cast<int>(format)].get<std::byte>(num_rows * stride);
  rows_.fill({});
  rows_[static_cast<int>(format)] = {data, stride};
  return data;
}

}  // namespace octavo::cpu
