#include "cpu/quantized_block.h"

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/check.h"

namespace octavo::cpu {
namespace {

// Every instruction set of this backend has F16C; without it the compiler calls a routine of some
// fifty instructions, which took a third of the packing.
[[gnu::target("f16c")]] float widen_half(uint16_t bits) { return _cvtsh_ss(bits); }
[[gnu::target("f16c")]] uint16_t narrow_half(float value) {
  return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
}

float load_half(const std::byte* p) {
  uint16_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return widen_half(bits);
}

const uint8_t* bytes(const std::byte* p) { return reinterpret_cast<const uint8_t*>(p); }

// The low halves of 16 bytes, then the high ones.
void split_nibbles(const uint8_t* packed, uint8_t* quants) {
  for (int i = 0; i < 16; ++i) {
    quants[i] = packed[i] & 15;
    quants[i + 16] = packed[i] >> 4;
  }
}

void decode_q4_0(const std::byte* source, QuantizedBlock& out) {
  out.scale[0] = out.scale[1] = load_half(source);
  out.minimum = 0.0f;
  split_nibbles(bytes(source + 2), out.quants);
}

void decode_q4_1(const std::byte* source, QuantizedBlock& out) {
  out.scale[0] = out.scale[1] = load_half(source);
  out.minimum = load_half(source + 2);
  split_nibbles(bytes(source + 4), out.quants);
}

void decode_q8_0(const std::byte* source, QuantizedBlock& out) {
  out.scale[0] = out.scale[1] = load_half(source);
  out.minimum = 0.0f;
  for (int i = 0; i < 32; ++i) out.quants[i] = bytes(source + 2)[i] ^ 0x80;
}

uint32_t load_word(const std::byte* p) {
  uint32_t word;
  std::memcpy(&word, p, sizeof(word));
  return word;
}

void decode_int4(const std::byte* source, std::span<QuantizedBlock> out) {
  const uint32_t term = load_word(source);
  const float scale = std::bit_cast<float>(term & ~kInt4ZeroMask);
  const uint8_t* codes = bytes(source + 4);
  for (QuantizedBlock& block : out) {
    block.scale[0] = block.scale[1] = scale;
    block.minimum = -scale * static_cast<float>(term & kInt4ZeroMask);
    for (int64_t k = 0; k < kBlockDepth; k += 2, ++codes) {
      block.quants[k] = *codes & 15;
      block.quants[k + 1] = *codes >> 4;
    }
  }
}

// The 6-bit scale and minimum of sub-block i in the 12 bytes that Q4_K and Q5_K share.
struct ScaleAndMinimum {
  int scale, minimum;
};
ScaleAndMinimum unpack_k_scale(const uint8_t* packed, int i) {
  if (i < 4) return {packed[i] & 63, packed[i + 4] & 63};
  return {(packed[i + 4] & 15) | (packed[i - 4] >> 6 << 4),
          (packed[i + 4] >> 4) | (packed[i] >> 6 << 4)};
}

// Eight sub-blocks; `high` holds the fifth bits of Q5_K, bit i of byte k for weight k of block i.
void decode_q45_k(const std::byte* source, const uint8_t* high, const uint8_t* low,
                  std::span<QuantizedBlock> out) {
  const float d = load_half(source), dmin = load_half(source + 2);
  for (int i = 0; i < 8; ++i) {
    const ScaleAndMinimum packed = unpack_k_scale(bytes(source + 4), i);
    out[i].scale[0] = out[i].scale[1] = d * static_cast<float>(packed.scale);
    out[i].minimum = -(dmin * static_cast<float>(packed.minimum));
    for (int k = 0; k < 32; ++k) {
      const int nibble = low[i / 2 * 32 + k] >> (i % 2 * 4) & 15;
      const int fifth = high == nullptr ? 0 : (high[k] >> i & 1) << 4;
      out[i].quants[k] = static_cast<uint8_t>(nibble | fifth);
    }
  }
}

// Two halves of 128 weights, each of four blocks that share 64 bytes of nibbles and 32 of top bits.
void decode_q6_k(const std::byte* source, std::span<QuantizedBlock> out) {
  const float d = load_half(source + 208);
  for (int64_t i = 0; i < 8; ++i) {
    const int64_t half = i / 4, quarter = i % 4;
    const uint8_t* low = bytes(source) + half * 64 + quarter % 2 * 32;
    const uint8_t* high = bytes(source) + 128 + half * 32;
    const auto* scales = reinterpret_cast<const int8_t*>(source + 192) + i * 2;
    out[i].scale[0] = d * static_cast<float>(scales[0]);
    out[i].scale[1] = d * static_cast<float>(scales[1]);
    out[i].minimum = 0.0f;
    for (int k = 0; k < 32; ++k) {
      const int nibble = low[k] >> (quarter / 2 * 4) & 15;
      out[i].quants[k] = static_cast<uint8_t>(nibble | (high[k] >> quarter * 2 & 3) << 4);
    }
  }
}

uint32_t four_bytes(const uint8_t* p) {
  uint32_t four;
  std::memcpy(&four, p, sizeof(four));
  return four;
}

void merge_four_bytes(std::byte* p, uint32_t four) {
  four |= four_bytes(bytes(p));
  std::memcpy(p, &four, sizeof(four));
}

void pack_quants(PanelFormat format, const uint8_t* quants, int64_t lane, std::byte* block) {
  std::byte* column = block + lane * kVectorDepth;
  if (format == PanelFormat::kInt8) {
    for (int64_t g = 0; g < kBlockVectors; ++g) {
      std::memcpy(column + g * kVectorBytes, quants + g * kVectorDepth, kVectorDepth);
    }
    return;
  }
  constexpr uint32_t kLowNibbles = 0x0F0F0F0F, kTopBits = 0x03030303;
  for (int64_t g = 0; g < 4; ++g) {
    const uint32_t first = four_bytes(quants + g * 4) & kLowNibbles;
    const uint32_t second = four_bytes(quants + g * 4 + 16) & kLowNibbles;
    merge_four_bytes(column + g * kVectorBytes, first | second << 4);
  }
  std::byte* rest = block + 4 * kVectorBytes;
  for (int64_t g = 0; g < kBlockVectors; ++g) {
    const uint32_t top = four_bytes(quants + g * 4) >> 4 & kTopBits;
    if (format == PanelFormat::kInt6) {
      merge_four_bytes(rest + g / 4 * kVectorBytes + lane * kVectorDepth, top << g % 4 * 2);
    } else if (format == PanelFormat::kInt5Min) {
      const uint32_t nibble = (top | top >> 7 | top >> 14 | top >> 21) & 15;
      rest[g * 8 + lane / 2] |= static_cast<std::byte>(nibble << lane % 2 * 4);
    }
  }
}

bool store_half(float value, std::byte* p) {
  const uint16_t half = narrow_half(value);
  std::memcpy(p, &half, sizeof(half));
  constexpr uint16_t kExponent = 0x7C00;  // all ones: infinity or NaN
  return (half & kExponent) != kExponent;
}

float rounded_to_half(float value) { return widen_half(narrow_half(value)); }

}  // namespace

std::optional<PanelFormat> panel_format_of(DType dtype) {
  switch (dtype) {
    case DType::kQ8_0:
      return PanelFormat::kInt8;
    case DType::kQ4_0:
      return PanelFormat::kInt4;
    case DType::kQ4_1:
    case DType::kQ4_K:
    case DType::kInt4G32:
    case DType::kInt4G64:
    case DType::kInt4G128:
      return PanelFormat::kInt4Min;
    case DType::kQ5_K:
      return PanelFormat::kInt5Min;
    case DType::kQ6_K:
      return PanelFormat::kInt6;
    default:
      return std::nullopt;
  }
}

bool has_middle_zeros(const WeightView& view) {
  constexpr uint32_t kMiddle = 8;
  const DTypeInfo info = dtype_info(view.dtype);
  const auto* block = static_cast<const std::byte*>(view.data);
  const auto* end = block + dtype_bytes(view.dtype, view.rows * view.cols);
  for (; block < end; block += info.block_bytes) {
    if ((load_word(block) & kInt4ZeroMask) != kMiddle) return false;
  }
  return true;
}

void decode_block(DType dtype, const std::byte* source, std::span<QuantizedBlock> out) {
  switch (dtype) {
    case DType::kQ8_0:
      return decode_q8_0(source, out[0]);
    case DType::kQ4_0:
      return decode_q4_0(source, out[0]);
    case DType::kQ4_1:
      return decode_q4_1(source, out[0]);
    case DType::kQ4_K:
      return decode_q45_k(source, nullptr, bytes(source + 16), out);
    case DType::kQ5_K:
      return decode_q45_k(source, bytes(source + 16), bytes(source + 48), out);
    case DType::kQ6_K:
      return decode_q6_k(source, out);
    case DType::kInt4G32:
    case DType::kInt4G64:
    case DType::kInt4G128:
      return decode_int4(source, out);
    default:
      check(false, "not a quantised type");
  }
}

QuantizedBlock quantize_block(PanelFormat format, const float* weights) {
  QuantizedBlock block{};
  const auto [least, greatest] = std::minmax_element(weights, weights + kBlockDepth);
  const bool is_symmetric = format == PanelFormat::kInt8;
  const float span =
      is_symmetric ? std::max(std::abs(*least), std::abs(*greatest)) : *greatest - *least;
  const float steps = is_symmetric ? 127.0f : 15.0f;
  block.scale[0] = block.scale[1] = rounded_to_half(span / steps);
  block.minimum = is_symmetric ? 0.0f : rounded_to_half(*least);
  const float inverse = block.scale[0] > 0.0f ? 1.0f / block.scale[0] : 0.0f;
  const float zero = is_symmetric ? 128.0f : 0.0f;
  for (int64_t k = 0; k < kBlockDepth; ++k) {
    const float step = std::nearbyint((weights[k] - block.minimum) * inverse);
    const float bounded = std::clamp(step, is_symmetric ? -steps : 0.0f, steps);
    block.quants[k] = static_cast<uint8_t>(bounded + zero);
  }
  return block;
}

bool pack_block(PanelFormat format, const QuantizedBlock& block, int64_t index, int64_t lane,
                std::byte* panel) {
  const QuantLayout layout = quant_layout(format);
  std::byte* record = panel + index * layout.record_bytes();
  bool fits = true;
  for (int64_t s = 0; s < layout.num_scales; ++s) {
    fits = store_half(block.scale[s], record + s * kScaleBytes + lane * 2) && fits;
  }
  if (layout.has_minimum) {
    fits = store_half(block.minimum, record + layout.minima_offset() + lane * 2) && fits;
  }
  pack_quants(format, block.quants, lane, record + layout.quants_offset());
  return fits;
}

}  // namespace octavo::cpu
