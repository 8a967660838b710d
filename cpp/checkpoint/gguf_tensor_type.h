// The element types a GGUF file can name. Source: the GGUF format, enum ggml_type.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

#include "base/dtype.h"

namespace octavo {

struct GgufTensorType {
  uint32_t id;
  std::string_view name;
  std::optional<DType> dtype;  // empty: known, not supported
};

inline constexpr std::array kGgufTensorTypes = {
    GgufTensorType{0, "F32", DType::kFloat32},
    GgufTensorType{1, "F16", DType::kFloat16},
    GgufTensorType{2, "Q4_0", DType::kQ4_0},
    GgufTensorType{3, "Q4_1", DType::kQ4_1},
    GgufTensorType{6, "Q5_0", DType::kQ5_0},
    GgufTensorType{7, "Q5_1", DType::kQ5_1},
    GgufTensorType{8, "Q8_0", DType::kQ8_0},
    GgufTensorType{9, "Q8_1", {}},
    GgufTensorType{10, "Q2_K", DType::kQ2_K},
    GgufTensorType{11, "Q3_K", DType::kQ3_K},
    GgufTensorType{12, "Q4_K", DType::kQ4_K},
    GgufTensorType{13, "Q5_K", DType::kQ5_K},
    GgufTensorType{14, "Q6_K", DType::kQ6_K},
    GgufTensorType{15, "Q8_K", {}},
    GgufTensorType{16, "IQ2_XXS", {}},
    GgufTensorType{17, "IQ2_XS", {}},
    GgufTensorType{18, "IQ3_XXS", {}},
    GgufTensorType{19, "IQ1_S", {}},
    GgufTensorType{20, "IQ4_NL", DType::kIQ4_NL},
    GgufTensorType{21, "IQ3_S", {}},
    GgufTensorType{22, "IQ2_S", {}},
    GgufTensorType{23, "IQ4_XS", DType::kIQ4_XS},
    GgufTensorType{24, "I8", DType::kInt8},
    GgufTensorType{25, "I16", {}},
    GgufTensorType{26, "I32", DType::kInt32},
    GgufTensorType{27, "I64", DType::kInt64},
    GgufTensorType{28, "F64", {}},
    GgufTensorType{29, "IQ1_M", {}},
    GgufTensorType{30, "BF16", DType::kBFloat16},
    GgufTensorType{34, "TQ1_0", {}},
    GgufTensorType{35, "TQ2_0", {}},
    GgufTensorType{39, "MXFP4", {}},
    GgufTensorType{40, "NVFP4", {}},
    GgufTensorType{41, "Q1_0", {}},
};

// nullptr for an id that the format does not define.
constexpr const GgufTensorType* find_tensor_type(uint32_t id) {
  for (const GgufTensorType& type : kGgufTensorTypes) {
    if (type.id == id) return &type;
  }
  return nullptr;
}

}  // namespace octavo
