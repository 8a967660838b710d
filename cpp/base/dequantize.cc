#include "base/dequantize.h"

#include <bit>
#include <cstring>

#include "base/check.h"

namespace octavo {
namespace {

// Subnormal halves go through an integer, so that a thread that flushes subnormals reads them too.
float float16_to_float32(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16;
  const uint32_t magnitude = half & 0x7FFFu;
  uint32_t bits;
  if (magnitude < 0x0400u) {
    bits = std::bit_cast<uint32_t>(static_cast<float>(magnitude) * 0x1p-24f);
  } else if (magnitude < 0x7C00u) {
    bits = (magnitude << 13) + (uint32_t{127 - 15} << 23);
  } else {  // infinity and NaN keep their payload
    bits = 0x7F800000u | (magnitude & 0x3FFu) << 13;
  }
  return std::bit_cast<float>(sign | bits);
}

float bfloat16_to_float32(uint16_t value) { return std::bit_cast<float>(uint32_t{value} << 16); }

float float32_to_float32(float value) { return value; }

// OCP 8-bit float E4M3: bias 7, no infinity, S.1111.111 is NaN.
float float8_e4m3_to_float32(uint8_t value) {
  const uint32_t sign = uint32_t{value & 0x80u} << 24;
  const uint32_t magnitude = value & 0x7Fu;
  uint32_t bits;
  if (magnitude < 0x08u) {
    bits = std::bit_cast<uint32_t>(static_cast<float>(magnitude) * 0x1p-9f);
  } else if (magnitude < 0x7Fu) {
    bits = (magnitude << 20) + (uint32_t{127 - 7} << 23);
  } else {
    bits = 0x7FC00000u;
  }
  return std::bit_cast<float>(sign | bits);
}

template <typename T>
T load(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

float load_float16(const uint8_t* p) { return float16_to_float32(load<uint16_t>(p)); }

// Q8_0: float16 d, int8 q[32]; value = d q.
void dequantize_q8_0(const uint8_t* block, float* out) {
  const float d = load_float16(block);
  const auto* q = reinterpret_cast<const int8_t*>(block + 2);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(q[i]) * d;
}

// Q4_0: float16 d, 16 bytes whose low halves are values 0..15, high halves 16..31;
// value = d (q - 8).
void dequantize_q4_0(const uint8_t* block, float* out) {
  const float d = load_float16(block);
  const uint8_t* q = block + 2;
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>((q[i] & 0xF) - 8);
    out[i + 16] = d * static_cast<float>((q[i] >> 4) - 8);
  }
}

// Q4_1: float16 d and m, 16 bytes as in Q4_0; value = d q + m.
void dequantize_q4_1(const uint8_t* block, float* out) {
  const float d = load_float16(block);
  const float m = load_float16(block + 2);
  const uint8_t* q = block + 4;
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>(q[i] & 0xF) + m;
    out[i + 16] = d * static_cast<float>(q[i] >> 4) + m;
  }
}

// The 8 scales and 8 minima of Q4_K and Q5_K, 6 bits each in 12 bytes: bytes 0..3 and 4..7 hold
// the first four of either, and on top of them the high 2 bits of the last four, whose low 4 bits
// are in bytes 8..11.
struct ScaleMin {
  uint8_t scale;
  uint8_t min;
};

ScaleMin unpack_scale_min(const uint8_t* packed, int i) {
  if (i < 4) {
    return {static_cast<uint8_t>(packed[i] & 0x3F), static_cast<uint8_t>(packed[i + 4] & 0x3F)};
  }
  const uint8_t low = packed[i + 4];
  return {static_cast<uint8_t>((low & 0xF) | (packed[i - 4] >> 6) << 4),
          static_cast<uint8_t>((low >> 4) | (packed[i] >> 6) << 4)};
}

// Q4_K: float16 d and dmin, 12 bytes of scales and minima, 128 bytes of values: 32 bytes hold
// sub-block 2k in their low halves and 2k + 1 in their high ones; value = d scale q - dmin min.
void dequantize_q4_k(const uint8_t* block, float* out) {
  const float d = load_float16(block);
  const float dmin = load_float16(block + 2);
  for (int sub = 0; sub < 8; ++sub) {
    const auto [scale, min] = unpack_scale_min(block + 4, sub);
    const float ds = d * static_cast<float>(scale);
    const float dm = dmin * static_cast<float>(min);
    const uint8_t* q = block + 16 + int64_t{32} * (sub / 2);
    const int shift = sub % 2 * 4;
    for (int i = 0; i < 32; ++i) {
      out[sub * 32 + i] = ds * static_cast<float>((q[i] >> shift) & 0xF) - dm;
    }
  }
}

// Q5_K: Q4_K with 32 bytes of fifth bits before the values: bit `sub` of byte i.
void dequantize_q5_k(const uint8_t* block, float* out) {
  const float d = load_float16(block);
  const float dmin = load_float16(block + 2);
  const uint8_t* high = block + 16;
  for (int sub = 0; sub < 8; ++sub) {
    const auto [scale, min] = unpack_scale_min(block + 4, sub);
    const float ds = d * static_cast<float>(scale);
    const float dm = dmin * static_cast<float>(min);
    const uint8_t* low = block + 48 + int64_t{32} * (sub / 2);
    const int shift = sub % 2 * 4;
    for (int i = 0; i < 32; ++i) {
      const int q = ((low[i] >> shift) & 0xF) | ((high[i] >> sub) & 1) << 4;
      out[sub * 32 + i] = ds * static_cast<float>(q) - dm;
    }
  }
}

// Q6_K: 128 bytes of low halves, 64 bytes of high 2 bits, int8 scale[16], float16 d. Each half of
// the block has four runs of 32 values; value = d scale (q - 32), a scale for 16 values.
void dequantize_q6_k(const uint8_t* block, float* out) {
  const float d = load_float16(block + 208);
  const auto* scales = reinterpret_cast<const int8_t*>(block + 192);
  for (int run = 0; run < 8; ++run) {
    const int64_t half = run / 4;
    const int quarter = run % 4;
    const uint8_t* low = block + half * 64 + int64_t{32} * (quarter % 2);
    const uint8_t* high = block + 128 + half * 32;
    const float ds[2] = {d * static_cast<float>(scales[int64_t{2} * run]),
                         d * static_cast<float>(scales[int64_t{2} * run + 1])};
    for (int i = 0; i < 32; ++i) {
      const int q = ((low[i] >> (quarter / 2 * 4)) & 0xF) | ((high[i] >> (quarter * 2)) & 3) << 4;
      out[run * 32 + i] = ds[i / 16] * static_cast<float>(q - 32);
    }
  }
}

template <typename Stored, float (*kConvert)(Stored)>
void each_value(const uint8_t* source, int64_t num_elements, float* out) {
  constexpr int64_t kBytes = sizeof(Stored);
  for (int64_t i = 0; i < num_elements; ++i) out[i] = kConvert(load<Stored>(source + i * kBytes));
}

template <DType kType, void (*kDequantizeBlock)(const uint8_t*, float*)>
void each_block(const uint8_t* source, int64_t num_elements, float* out) {
  constexpr DTypeInfo kInfo = dtype_info(kType);
  for (int64_t i = 0; i < num_elements; i += kInfo.block_elements, source += kInfo.block_bytes) {
    kDequantizeBlock(source, out + i);
  }
}

}  // namespace

void dequantize(DType dtype, const void* source, int64_t num_elements, float* out) {
  const auto* bytes = static_cast<const uint8_t*>(source);
  const int64_t n = num_elements;
  check(n >= 0 && n % dtype_info(dtype).block_elements == 0, "dequantize of a part of a block");
  switch (dtype) {
    case DType::kFloat32:
      return each_value<float, float32_to_float32>(bytes, n, out);
    case DType::kFloat16:
      return each_value<uint16_t, float16_to_float32>(bytes, n, out);
    case DType::kBFloat16:
      return each_value<uint16_t, bfloat16_to_float32>(bytes, n, out);
    case DType::kFloat8E4M3:
      return each_value<uint8_t, float8_e4m3_to_float32>(bytes, n, out);
    case DType::kQ8_0:
      return each_block<DType::kQ8_0, dequantize_q8_0>(bytes, n, out);
    case DType::kQ4_0:
      return each_block<DType::kQ4_0, dequantize_q4_0>(bytes, n, out);
    case DType::kQ4_1:
      return each_block<DType::kQ4_1, dequantize_q4_1>(bytes, n, out);
    case DType::kQ4_K:
      return each_block<DType::kQ4_K, dequantize_q4_k>(bytes, n, out);
    case DType::kQ5_K:
      return each_block<DType::kQ5_K, dequantize_q5_k>(bytes, n, out);
    case DType::kQ6_K:
      return each_block<DType::kQ6_K, dequantize_q6_k>(bytes, n, out);
    case DType::kInt8:
    case DType::kInt32:
    case DType::kInt64:
    case DType::kUInt8:
      break;
  }
  check(false, "dequantize of an integer type");
}

}  // namespace octavo
