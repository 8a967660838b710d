// How weights lie in memory for the GEMM kernels. Constants only: shared by the code that packs
// and by the kernels of every instruction set.
#pragma once

#include <cstdint>

namespace octavo::cpu {

// Output features are grouped into panels of 16, one vector lane each; the last panel of a segment
// is padded with zeros. A panel is contiguous, its elements in the order in which a GEMM reads:
//   kFloat32, kFloat16  [depth][16]
//   kBFloat16           [depth / 2][16][2], depth padded with zeros to a multiple of 32
// The quantised formats are records of 32 input features: float16 scales [1 or 2][16], float16
// minima [16] where the format has them, then the quants. One record after the other, because a
// second stream beside the quants takes a third of the memory bandwidth.
//   weight = scale * (quant - zero) + minimum, quants unsigned
// The quants are eight vectors of [16 columns][4 features], features 4g..4g+3 in vector g:
//   kInt8      eight vectors as they are
//   others     four vectors of nibbles: vector g in the low halves, vector g + 4 in the high ones,
//   kInt5Min   then eight 64-bit masks with the fifth bits, mask g for vector g,
//   kInt6      then two vectors with bits 4 and 5: vector g in bits 2 (g % 4) of vector g / 4.
enum class PanelFormat : uint8_t {
  kFloat32,
  kFloat16,
  kBFloat16,
  kInt8,
  kInt4,
  kInt4Min,
  kInt5Min,
  kInt6,
};
inline constexpr int kNumPanelFormats = 8;
inline constexpr int64_t kPanelRows = 16;
inline constexpr int64_t kBFloat16DepthMultiple = 32;

inline constexpr int64_t kBlockDepth = 32;
inline constexpr int64_t kBlockVectors = 8;
inline constexpr int64_t kVectorBytes = 64;
inline constexpr int64_t kVectorDepth = 4;
inline constexpr int64_t kBlockWeights = kBlockDepth * kPanelRows;
inline constexpr int64_t kScaleBytes = kPanelRows * 2;

struct QuantLayout {
  int64_t quant_bytes = 0;  // of one record, a multiple of 64
  int64_t num_scales = 0;   // of one record: 1, or 2 for halves of 16 input features
  bool has_minimum = false;
  int32_t zero = 0;

  constexpr int64_t minima_offset() const { return num_scales * kScaleBytes; }
  constexpr int64_t quants_offset() const {
    return minima_offset() + (has_minimum ? kScaleBytes : 0);
  }
  constexpr int64_t record_bytes() const { return quants_offset() + quant_bytes; }
};

static constexpr QuantLayout quant_layout(PanelFormat format) {
  switch (format) {
    case PanelFormat::kInt8:
      return {512, 1, false, 128};
    case PanelFormat::kInt4:
      return {256, 1, false, 8};
    case PanelFormat::kInt4Min:
      return {256, 1, true, 0};
    case PanelFormat::kInt5Min:
      return {320, 1, true, 0};
    case PanelFormat::kInt6:
      return {384, 2, false, 32};
    default:
      return {};
  }
}

static constexpr bool is_quantized(PanelFormat format) {
  return quant_layout(format).quant_bytes > 0;
}

static constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Bytes of one panel of `depth` input features. Requires: depth is a multiple of 32 for the
// quantised formats.
static constexpr int64_t panel_bytes(PanelFormat format, int64_t depth) {
  switch (format) {
    case PanelFormat::kFloat32:
      return depth * kPanelRows * 4;
    case PanelFormat::kFloat16:
      return depth * kPanelRows * 2;
    case PanelFormat::kBFloat16:
      return round_up(depth, kBFloat16DepthMultiple) * kPanelRows * 2;
    default:
      break;
  }
  return round_up(depth / kBlockDepth * quant_layout(format).record_bytes(), kVectorBytes);
}

// How a GEMM wants its activations. Rows of kInt8 are records of whole blocks of 32 features:
//   int8 quants [depth], float32 scales [blocks], float32 scale * sum [blocks],
//   int32 -8 * sum [blocks], int32 -128 * sum [blocks], int32 -32 * sum of each half [blocks][2]
// where sum is that of the block's quants: -zero * sum for kInt4, kInt8 and kInt6, ready to be the
// start of a sum of products.
enum class ActivationFormat : uint8_t {
  kFloat32,   // as they are
  kBFloat16,  // rounded to nearest even; rows padded with zeros to a multiple of 32
  kInt8,      // rounded to 1/127 of the greatest magnitude of each block
};
inline constexpr int kNumActivationFormats = 3;

// An odd number of cache lines: rows a power of two apart would share a few sets of L1.
static constexpr int64_t odd_lines(int64_t bytes) {
  constexpr int64_t kLineBytes = 64;
  return ((bytes + kLineBytes - 1) / kLineBytes | 1) * kLineBytes;
}

// Bytes of a row of activations. kFloat32 is used where it lies.
static constexpr int64_t activation_row_bytes(ActivationFormat format, int64_t depth) {
  switch (format) {
    case ActivationFormat::kFloat32:
      return depth * 4;
    case ActivationFormat::kBFloat16:
      return odd_lines(round_up(depth, kBFloat16DepthMultiple) * 2);
    case ActivationFormat::kInt8:
      return odd_lines(depth + depth / kBlockDepth * 24);
  }
  return 0;
}

}  // namespace octavo::cpu
