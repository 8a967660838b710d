#include "base/dequantize.h"

#include <bit>
#include <cstring>

#include "base/check.h"
#include "base/dequantize_256.h"
#include "base/float_formats.h"

namespace octavo {
namespace {

float float32_to_float32(float value) { return value; }

template <typename T>
T load(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

// Q8_0: float16 d, int8 q[32]; value = d q.
void dequantize_q8_0(const uint8_t* __restrict block, float* __restrict out) {
  const float d = load_float16(block);
  const auto* q = reinterpret_cast<const int8_t*>(block + 2);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(q[i]) * d;
}

// Q4_0: float16 d, 16 bytes whose low halves are values 0..15, high halves 16..31;
// value = d (q - 8).
void dequantize_q4_0(const uint8_t* __restrict block, float* __restrict out) {
  const float d = load_float16(block);
  const uint8_t* q = block + 2;
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>((q[i] & 0xF) - 8);
    out[i + 16] = d * static_cast<float>((q[i] >> 4) - 8);
  }
}

// Q4_1: float16 d and m, 16 bytes as in Q4_0; value = d q + m.
void dequantize_q4_1(const uint8_t* __restrict block, float* __restrict out) {
  const float d = load_float16(block);
  const float m = load_float16(block + 2);
  const uint8_t* q = block + 4;
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>(q[i] & 0xF) + m;
    out[i + 16] = d * static_cast<float>(q[i] >> 4) + m;
  }
}

// Q5_0: float16 d, 32 fifth bits, 16 bytes as in Q4_0; value = d (q - 16).
void dequantize_q5_0(const uint8_t* __restrict block, float* __restrict out) {
  const float d = load_float16(block);
  const auto high = load<uint32_t>(block + 2);
  const uint8_t* low = block + 6;
  for (int i = 0; i < 16; ++i) {
    out[i] = d * (static_cast<float>((low[i] & 0xF) | (high >> i & 1) << 4) - 16.0f);
    out[i + 16] = d * (static_cast<float>((low[i] >> 4) | (high >> (i + 16) & 1) << 4) - 16.0f);
  }
}

// Q5_1: float16 d and m, 32 fifth bits, 16 bytes as in Q4_0; value = d q + m.
void dequantize_q5_1(const uint8_t* __restrict block, float* __restrict out) {
  const float d = load_float16(block);
  const float m = load_float16(block + 2);
  const auto high = load<uint32_t>(block + 4);
  const uint8_t* low = block + 8;
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>((low[i] & 0xF) | (high >> i & 1) << 4) + m;
    out[i + 16] = d * static_cast<float>((low[i] >> 4) | (high >> (i + 16) & 1) << 4) + m;
  }
}

// IQ4_NL: float16 d, 16 bytes as in Q4_0; value = d level[q].
void dequantize_iq4_nl(const uint8_t* __restrict block, float* __restrict out) {
  const float d = load_float16(block);
  const uint8_t* q = block + 2;
  for (int i = 0; i < 16; ++i) {
    out[i] = d * kNonlinearLevels[q[i] & 0xF];
    out[i + 16] = d * kNonlinearLevels[q[i] >> 4];
  }
}

// Group of codes of four bits, see dtype.h.
template <int kSize>
void dequantize_int4(const uint8_t* __restrict block, float* __restrict out) {
  const auto word = load<uint32_t>(block);
  const float scale = std::bit_cast<float>(word & ~kInt4ZeroMask);
  const auto zero = static_cast<int>(word & kInt4ZeroMask);
  for (int64_t i = 0; i < kSize / 2; ++i) {
    out[2 * i] = scale * static_cast<float>((block[4 + i] & 0xF) - zero);
    out[2 * i + 1] = scale * static_cast<float>((block[4 + i] >> 4) - zero);
  }
}

// Scaled e4m3 values, see dtype.h.
template <int kSize>
void dequantize_float8(const uint8_t* __restrict block, float* __restrict out) {
  const float scale = load<float>(block);
  for (int i = 0; i < kSize; ++i) out[i] = scale * float8_e4m3_to_float32(block[4 + i]);
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
    case DType::kQ5_0:
      return each_block<DType::kQ5_0, dequantize_q5_0>(bytes, n, out);
    case DType::kQ5_1:
      return each_block<DType::kQ5_1, dequantize_q5_1>(bytes, n, out);
    case DType::kIQ4_NL:
      return each_block<DType::kIQ4_NL, dequantize_iq4_nl>(bytes, n, out);
    case DType::kIQ4_XS:
      return each_block<DType::kIQ4_XS, dequantize_iq4_xs>(bytes, n, out);
    case DType::kQ2_K:
      return each_block<DType::kQ2_K, dequantize_q2_k>(bytes, n, out);
    case DType::kQ3_K:
      return each_block<DType::kQ3_K, dequantize_q3_k>(bytes, n, out);
    case DType::kQ4_K:
      return each_block<DType::kQ4_K, dequantize_q4_k>(bytes, n, out);
    case DType::kQ5_K:
      return each_block<DType::kQ5_K, dequantize_q5_k>(bytes, n, out);
    case DType::kQ6_K:
      return each_block<DType::kQ6_K, dequantize_q6_k>(bytes, n, out);
    case DType::kInt4G32:
      return each_block<DType::kInt4G32, dequantize_int4<32>>(bytes, n, out);
    case DType::kInt4G64:
      return each_block<DType::kInt4G64, dequantize_int4<64>>(bytes, n, out);
    case DType::kInt4G128:
      return each_block<DType::kInt4G128, dequantize_int4<128>>(bytes, n, out);
    case DType::kFloat8Rows:
      return each_block<DType::kFloat8Rows, dequantize_float8<64>>(bytes, n, out);
    case DType::kFloat8Blocks:
      return each_block<DType::kFloat8Blocks, dequantize_float8<128>>(bytes, n, out);
    case DType::kInt8:
    case DType::kInt32:
    case DType::kInt64:
    case DType::kUInt8:
      break;
  }
  check(false, "dequantize of an integer type");
}

}  // namespace octavo
