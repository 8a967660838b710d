// A weight matrix in panels of 16 output features, in the order in which the kernels read it.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "cpu/kernels.h"
#include "cpu/panel_layout.h"
#include "cpu/weight_arena.h"

namespace octavo::cpu {

// Which panel format a checkpoint tensor gets.
struct WeightPolicy {
  DType weight_dtype = DType::kBFloat16;   // of what is not quantised
  bool keep_quantized = false;             // quantised checkpoint types stay so
  std::optional<PanelFormat> quantize_to;  // plain checkpoint types are quantised

  PanelFormat format_for(DType source, int64_t in_features) const;
  // The format of weight_dtype.
  PanelFormat plain_format() const;
};

// Throws ConfigError for a weight_dtype or quantization that the CPU does not have.
WeightPolicy weight_policy(const BackendOptions& options);

// A range of output features in one format. Fused projections load from several tensors, and each
// may come in a type of its own.
struct PanelSegment {
  int64_t row_begin = 0;
  int64_t num_rows = 0;
  PanelFormat format = PanelFormat::kFloat32;
  int64_t panel_bytes = 0;
  std::byte* panels = nullptr;

  int64_t num_panels() const { return (num_rows + kPanelRows - 1) / kPanelRows; }
  std::byte* panel(int64_t index) const { return panels + index * panel_bytes; }
};

class PackedWeight final : public LinearWeight {
 public:
  PackedWeight(int64_t out_features, int64_t in_features, bool has_bias);

  int64_t out_features() const override { return out_features_; }
  int64_t in_features() const override { return in_features_; }
  int64_t size_bytes() const override;

  struct Loader {
    const Kernels& kernels;
    const WeightPolicy& policy;
    WeightArena& arena;
  };
  // Safe to call from several threads on disjoint rows.
  void load_rows(const Loader& loader, int64_t row_begin, const WeightView& view);
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
