// Single rows of the quantised formats: activations to int8, weights back to float32.
#pragma once

#include "cpu/kernels.h"
#include "cpu/kernels/vec_math.h"

namespace octavo::cpu {
namespace {

// The arrays of an activation record (layout in panel_layout.h).
struct QuantizedRow {
  static const std::byte* quants(const std::byte* row, int64_t block) {
    return row + block * kBlockDepth;
  }
  static const float* scale(const std::byte* row, int64_t depth, int64_t block) {
    return reinterpret_cast<const float*>(row + depth) + block;
  }
  static const float* scaled_sum(const std::byte* row, int64_t depth, int64_t block) {
    return scale(row, depth, block) + depth / kBlockDepth;
  }
  // -zero times the sum of the quants that meet scale s. Requires: kFormat has a zero.
  template <PanelFormat kFormat>
  static const int32_t* offset(const std::byte* row, int64_t depth, int64_t block, int64_t s) {
    constexpr QuantLayout kLayout = quant_layout(kFormat);
    static_assert(kLayout.zero == 8 || kLayout.zero == 128 || kLayout.zero == 32);
    constexpr int64_t kBefore = kLayout.zero == 8 ? 2 : kLayout.zero == 128 ? 3 : 4;  // arrays
    const int64_t num_blocks = depth / kBlockDepth;
    return reinterpret_cast<const int32_t*>(row + depth) + kBefore * num_blocks +
           kLayout.num_scales * block + s;
  }
};

// A block with a NaN or an infinity gets the scale NaN, so that the row's results are NaN.
inline void quantize_blocks(const float* x, int64_t first_block, int64_t num_blocks, int64_t depth,
                            std::byte* row) {
  const int64_t blocks_of_row = depth / kBlockDepth;
  auto* scales = reinterpret_cast<float*>(row + depth);
  float* scaled_sums = scales + blocks_of_row;
  auto* offsets_8 = reinterpret_cast<int32_t*>(scaled_sums + blocks_of_row);
  int32_t* offsets_128 = offsets_8 + blocks_of_row;
  int32_t* half_offsets_32 = offsets_128 + blocks_of_row;
  for (int64_t b = first_block; b < first_block + num_blocks; ++b, x += kBlockDepth) {
    auto* quants = reinterpret_cast<int8_t*>(row + b * kBlockDepth);
    const Vec first = load(x), second = load(x + kLanes);
    const float greatest = reduce_max(max(absolute(first), absolute(second)));
    const bool is_bad = (mask_nan(first) | mask_nan(second)) != 0 || greatest > 3e38f;
    const float inverse = greatest > 0.0f && !is_bad ? 127.0f / greatest : 0.0f;
    const auto [low, high] =
        round_to_int8(mul(first, set1(inverse)), mul(second, set1(inverse)), quants);
    scales[b] = is_bad ? __builtin_nanf("") : greatest / 127.0f;
    scaled_sums[b] = scales[b] * static_cast<float>(low + high);
    offsets_8[b] = -8 * (low + high);
    offsets_128[b] = -128 * (low + high);
    half_offsets_32[2 * b] = -32 * low;
    half_offsets_32[2 * b + 1] = -32 * high;
  }
}

inline void quantize_row(const float* x, int64_t depth, std::byte* out) {
  quantize_blocks(x, 0, depth / kBlockDepth, depth, out);
}

inline const uint16_t* scales_of(const std::byte* record, int64_t s) {
  return reinterpret_cast<const uint16_t*>(record + s * kScaleBytes);
}

template <PanelFormat kFormat>
inline const uint16_t* minima_of(const std::byte* record) {
  return reinterpret_cast<const uint16_t*>(record + quant_layout(kFormat).minima_offset());
}

// Feature k of column `lane` in the quants of one block.
template <PanelFormat kFormat>
inline int32_t quant_at(const std::byte* block, int64_t lane, int64_t k) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(block);
  const int64_t g = k / kVectorDepth, in_vector = lane * kVectorDepth + k % kVectorDepth;
  if constexpr (kFormat == PanelFormat::kInt8) return bytes[g * kVectorBytes + in_vector];
  const int32_t nibble = bytes[g % 4 * kVectorBytes + in_vector] >> g / 4 * 4 & 15;
  const uint8_t* rest = bytes + 4 * kVectorBytes;
  if constexpr (kFormat == PanelFormat::kInt5Min) {
    return nibble | (rest[g * 8 + in_vector / 8] >> in_vector % 8 & 1) << 4;
  }
  if constexpr (kFormat == PanelFormat::kInt6) {
    return nibble | (rest[g / 4 * kVectorBytes + in_vector] >> g % 4 * 2 & 3) << 4;
  }
  return nibble;
}

template <PanelFormat kFormat>
void unpack_quantized(const std::byte* panel, int64_t lane, int64_t depth, float* out) {
  constexpr QuantLayout kLayout = quant_layout(kFormat);
  for (int64_t k = 0; k < depth; ++k) {
    const std::byte* record = panel + k / kBlockDepth * kLayout.record_bytes();
    const int64_t in_block = k % kBlockDepth, s = in_block * kLayout.num_scales / kBlockDepth;
    const int32_t quant =
        quant_at<kFormat>(record + kLayout.quants_offset(), lane, in_block) - kLayout.zero;
    out[k] = widen(scales_of(record, s)[lane]) * static_cast<float>(quant);
    if constexpr (kLayout.has_minimum) out[k] += widen(minima_of<kFormat>(record)[lane]);
  }
}

}  // namespace
}  // namespace octavo::cpu
