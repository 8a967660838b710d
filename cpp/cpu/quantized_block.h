// Blocks of 32 quantised weights: from checkpoint formats or from floats, into panels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "backend/backend.h"
#include "base/dtype.h"
#include "cpu/panel_layout.h"

namespace octavo::cpu {

// weight = scale * (quant - zero) + minimum, with the zero of the panel format; scale[1] holds from
// weight 16 on.
struct QuantizedBlock {
  uint8_t quants[kBlockDepth];
  float scale[2];
  float minimum;
};

// The panel format that keeps the quants of a checkpoint type, if one does. For kInt4G* it is
// kInt4Min; where has_middle_zeros(), kInt4 keeps them exactly.
std::optional<PanelFormat> panel_format_of(DType dtype);

// Whether blocks of kInt4G* have no zero but 8.
bool has_middle_zeros(const WeightView& view);

// Takes apart one checkpoint block of dtype_info(dtype).block_elements weights.
// The minimum of kInt4G* stands for its zero; what has middle zeros needs none.
// Requires: out has block_elements / 32 places.
void decode_block(DType dtype, const std::byte* source, std::span<QuantizedBlock> out);

// Rounds 32 floats to a block whose scale and minimum are float16 values. kInt8: symmetric, 1/127
// of the greatest magnitude a step. kInt4Min: fifteen steps between the least and the greatest.
QuantizedBlock quantize_block(PanelFormat format, const float* weights);

// Writes column `lane` of record `index` of a panel. Returns false when a scale or the minimum does
// not fit float16; a scale that is no float16 value is rounded to nearest.
// Requires: a panel of zeros; each column of a block is written once.
bool pack_block(PanelFormat format, const QuantizedBlock& block, int64_t index, int64_t lane,
                std::byte* panel);

}  // namespace octavo::cpu
