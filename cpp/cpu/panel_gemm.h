// A run of panels times rows, as the panels are or widened in cache first.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/activations.h"
#include "cpu/kernels.h"
#include "cpu/packed_weight.h"

namespace octavo::cpu {

// A run of panels of one segment.
struct PanelRun {
  const PanelSegment* segment = nullptr;
  int64_t first_panel = 0;
  int64_t num_panels = 0;

  int64_t num_cols() const {
    return std::min(num_panels * kPanelRows, segment->num_rows - first_panel * kPanelRows);
  }
  // The first of its output features.
  int64_t row_begin() const { return segment->row_begin + first_panel * kPanelRows; }
};

// The run against the rows of `activations`, from the first one on: all but num_rows and the
// output.
GemmArgs gemm_args(const PanelRun& run, const PackedWeight& weight, const Activations& activations);

// Whether any panel of `weight` is widened for so many rows.
bool widens(const Kernels& kernels, const PackedWeight& weight, int64_t num_rows);

// Bytes of a thread's buffer for multiply_panels(); 0 where nothing is widened.
int64_t widened_bytes(const Kernels& kernels, const PackedWeight& weight, int64_t num_rows);

// Runs args, whose panels have `format`; widens a few of them at a time in `buffer` where the table
// does so for `num_rows` rows. args may have fewer than those.
void multiply_panels(const Kernels& kernels, PanelFormat format, int64_t num_rows,
                     const GemmArgs& args, std::byte* buffer);

// The kernel that args takes against panels of `format` where the step has `num_rows` rows. Where
// the table widens for so many, args becomes that of a copy of all its panels in `buffer`, of
// num_panels * panel_bytes(kBFloat16, depth).
GemmKernel choose_gemm(const Kernels& kernels, PanelFormat format, int64_t num_rows, GemmArgs& args,
                       std::byte* buffer);

}  // namespace octavo::cpu
