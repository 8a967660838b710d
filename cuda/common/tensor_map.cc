#include "cuda/common/tensor_map.h"

#include <cuda_runtime_api.h>

#include "base/check.h"
#include "cuda/common/error.h"

namespace octavo::cuda {
namespace {

CUtensorMapDataType type_of(DType dtype) {
  if (dtype == DType::kBFloat16) return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  if (dtype == DType::kFloat16) return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  check(dtype == DType::kFloat8E4M3, "tensor map: element type");
  return CU_TENSOR_MAP_DATA_TYPE_UINT8;
}

}  // namespace

std::optional<CUtensorMap> make_tensor_map(const TensorBox& tensor) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found{};
  check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                              cudaEnableDefault, &found));
  if (entry == nullptr || found != cudaDriverEntryPointSuccess) return std::nullopt;
  const auto encode = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry);

  cuuint64_t sizes[4];
  cuuint64_t stride_bytes[4];
  cuuint32_t box[4];
  const cuuint32_t element_strides[4] = {1, 1, 1, 1};
  for (int i = 0; i < tensor.rank; ++i) {
    sizes[i] = static_cast<cuuint64_t>(tensor.sizes[i]);
    box[i] = static_cast<cuuint32_t>(tensor.box[i]);
    if (i > 0) {
      stride_bytes[i - 1] = static_cast<cuuint64_t>(dtype_bytes(tensor.dtype, tensor.strides[i]));
    }
  }
  CUtensorMap map{};
  const CUresult status =
      encode(&map, type_of(tensor.dtype), static_cast<cuuint32_t>(tensor.rank),
             const_cast<void*>(tensor.data), sizes, stride_bytes, box, element_strides,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) return std::nullopt;
  return map;
}

}  // namespace octavo::cuda
