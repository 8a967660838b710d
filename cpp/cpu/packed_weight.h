// A weight matrix in panels of 16 output features, in the order in which the kernels read it.
#pragma once

#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "base/aligned_buffer.h"
#include "cpu/kernels.h"

namespace octavo::cpu {

// A range of output features in one format. Fused projections load from several tensors, and each
// may come in a type of its own.
struct PanelSegment {
  int64_t row_begin = 0;
  int64_t num_rows = 0;
  PanelFormat format = PanelFormat::kFloat32;
  int64_t panel_bytes = 0;
  AlignedBuffer panels;

  int64_t num_panels() const { return (num_rows + kPanelRows - 1) / kPanelRows; }
  const std::byte* panel(int64_t index) const {
    return panels.as<std::byte>() + index * panel_bytes;
  }
};

// Bytes of one panel of `depth` input features.
int64_t panel_bytes(PanelFormat format, int64_t depth);

// The format that weights are kept in. Requires: dtype is float32, bfloat16 or float16.
PanelFormat panel_format(DType dtype);

class PackedWeight final : public LinearWeight {
 public:
  PackedWeight(int64_t out_features, int64_t in_features, bool has_bias);

  int64_t out_features() const override { return out_features_; }
  int64_t in_features() const override { return in_features_; }
  int64_t size_bytes() const override;

  // Safe to call from several threads on disjoint rows.
  void load_rows(const Kernels& kernels, PanelFormat format, int64_t row_begin,
                 const WeightView& view);
  void load_bias(int64_t row_begin, const WeightView& view);

  // In ascending row order, once everything is loaded.
  std::span<const PanelSegment> segments() const { return segments_; }
  // [out_features], or null.
  const float* bias() const { return bias_.empty() ? nullptr : bias_.data(); }
  // The segment that holds `row`. Throws CheckError when that row was never loaded.
  const PanelSegment& segment_of(int64_t row) const;

 private:
  const int64_t out_features_;
  const int64_t in_features_;
  std::vector<float> bias_;
  std::mutex mutex_;  // guards segments_ while loading
  std::vector<PanelSegment> segments_;
};

}  // namespace octavo::cpu
