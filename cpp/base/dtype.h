// Element types of tensors, plain and block-quantised.
#pragma once

#include <cstdint>
#include <string_view>

namespace octavo {

// The quantised types are blocks of `block_elements` values along the last (input-feature)
// dimension, `block_bytes` bytes each: those of GGUF (Source: the GGUF/ggml block layouts), and
// those that codes of other checkpoints are brought to, whatever their own layout:
//   kInt4G*        the scale as float32 with the zero, 0 to 16, in place of its last five bits;
//                  then the codes, two a byte: code 2 i in the low half of byte i and
//                  code 2 i + 1 in the high one;
//                  value = scale (code - zero)
//   kFloat8Rows    a float32 scale, the same in all blocks of a row, then e4m3 values, a byte each
//   kFloat8Blocks  the same with scales that differ
enum class DType : uint8_t {
  kFloat32,
  kFloat16,
  kBFloat16,
  kInt8,
  kInt32,
  kInt64,
  kUInt8,
  kFloat8E4M3,
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kIQ4_NL,
  kIQ4_XS,
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kInt4G32,
  kInt4G64,
  kInt4G128,
  kFloat8Rows,
  kFloat8Blocks,
};

struct DTypeInfo {
  std::string_view name;
  int32_t block_elements;  // values in a block; 1 for plain types
  int32_t block_bytes;     // bytes of a block
};

constexpr DTypeInfo dtype_info(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return {"float32", 1, 4};
    case DType::kFloat16:
      return {"float16", 1, 2};
    case DType::kBFloat16:
      return {"bfloat16", 1, 2};
    case DType::kInt8:
      return {"int8", 1, 1};
    case DType::kInt32:
      return {"int32", 1, 4};
    case DType::kInt64:
      return {"int64", 1, 8};
    case DType::kUInt8:
      return {"uint8", 1, 1};
    case DType::kFloat8E4M3:
      return {"float8_e4m3", 1, 1};
    case DType::kQ8_0:
      return {"q8_0", 32, 34};
    case DType::kQ4_0:
      return {"q4_0", 32, 18};
    case DType::kQ4_1:
      return {"q4_1", 32, 20};
    case DType::kQ5_0:
      return {"q5_0", 32, 22};
    case DType::kQ5_1:
      return {"q5_1", 32, 24};
    case DType::kIQ4_NL:
      return {"iq4_nl", 32, 18};
    case DType::kIQ4_XS:
      return {"iq4_xs", 256, 136};
    case DType::kQ2_K:
      return {"q2_k", 256, 84};
    case DType::kQ3_K:
      return {"q3_k", 256, 110};
    case DType::kQ4_K:
      return {"q4_k", 256, 144};
    case DType::kQ5_K:
      return {"q5_k", 256, 176};
    case DType::kQ6_K:
      return {"q6_k", 256, 210};
    case DType::kInt4G32:
      return {"int4_g32", 32, 20};
    case DType::kInt4G64:
      return {"int4_g64", 64, 36};
    case DType::kInt4G128:
      return {"int4_g128", 128, 68};
    case DType::kFloat8Rows:
      return {"float8_rows", 64, 68};
    case DType::kFloat8Blocks:
      return {"float8_blocks", 128, 132};
  }
  return {"unknown", 1, 0};
}

constexpr bool is_int4(DType dtype) {
  return dtype == DType::kInt4G32 || dtype == DType::kInt4G64 || dtype == DType::kInt4G128;
}
constexpr bool is_scaled_float8(DType dtype) {
  return dtype == DType::kFloat8Rows || dtype == DType::kFloat8Blocks;
}
inline constexpr uint32_t kInt4ZeroMask = 31;  // the zero's place in a scale of kInt4G*

constexpr bool is_quantized(DType dtype) { return dtype_info(dtype).block_elements > 1; }

// Bytes of `num_elements` values. Requires: num_elements is a multiple of block_elements.
constexpr int64_t dtype_bytes(DType dtype, int64_t num_elements) {
  const DTypeInfo info = dtype_info(dtype);
  return num_elements / info.block_elements * info.block_bytes;
}

}  // namespace octavo
