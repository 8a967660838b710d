#include "cuda/kv_cache.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "base/check.h"
#include "base/errors.h"

namespace octavo::cuda {
namespace {

int64_t layer_half_bytes(const KVCacheSpec& spec) {
  return spec.num_blocks *
         dtype_bytes(spec.dtype, spec.num_kv_heads * spec.block_size * spec.head_dim);
}

void validate(const KVCacheSpec& spec) {
  if (spec.block_size <= 0 || spec.block_size % 16 != 0) {
    throw ConfigError("the CUDA backend needs a block size that is a multiple of 16");
  }
  if (spec.head_dim % 16 != 0 || spec.head_dim > 256) {
    throw ConfigError("the CUDA backend needs a head size that is a multiple of 16, up to 256");
  }
  if (spec.dtype != DType::kBFloat16 && spec.dtype != DType::kFloat16 &&
      spec.dtype != DType::kFloat8E4M3) {
    throw ConfigError("the CUDA backend keeps keys and values in bfloat16, float16 or fp8");
  }
}

}  // namespace

CudaKVCache::CudaKVCache(const DeviceContext& context, const KVCacheSpec& spec) : spec_(spec) {
  validate(spec);
  const int64_t size_bytes = 2 * spec.num_layers * layer_half_bytes(spec);
  memory_ = DeviceMemory(size_bytes);
  check_cuda(cudaMemsetAsync(memory_.data(), 0, size_bytes, context.stream));
  encode_tensor_map();
}

KVLayer CudaKVCache::layer(int64_t index) const {
  check(index >= 0 && index < spec_.num_layers, "layer outside the cache");
  const int64_t half = layer_half_bytes(spec_);
  std::byte* base = memory_.as() + 2 * index * half;
  return {base,
          base + half,
          spec_.dtype,
          static_cast<int>(spec_.num_kv_heads),
          static_cast<int>(spec_.head_dim),
          static_cast<int>(spec_.block_size)};
}

void CudaKVCache::encode_tensor_map() {
  constexpr cuuint32_t kBoxColumns = 64;  // 128 bytes: the span of the swizzle
  constexpr cuuint32_t kMaxBoxRows = 128;
  const int64_t rows = 2 * spec_.num_layers * rows_per_half();
  const bool fits = dtype_info(spec_.dtype).block_bytes == 2 && spec_.head_dim % kBoxColumns == 0 &&
                    std::has_single_bit(static_cast<uint64_t>(spec_.block_size)) &&
                    rows <= std::numeric_limits<int32_t>::max();
  if (!fits) return;
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found{};
  check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                              cudaEnableDefault, &found));
  if (entry == nullptr || found != cudaDriverEntryPointSuccess) return;
  const auto encode = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry);

  const cuuint64_t dims[2] = {static_cast<cuuint64_t>(spec_.head_dim),
                              static_cast<cuuint64_t>(rows)};
  const cuuint64_t row_bytes = dims[0] * 2;
  const cuuint32_t box[2] = {
      kBoxColumns, std::min<cuuint32_t>(static_cast<cuuint32_t>(spec_.block_size), kMaxBoxRows)};
  const cuuint32_t element_strides[2] = {1, 1};
  const CUtensorMapDataType type = spec_.dtype == DType::kBFloat16
                                       ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                       : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  has_tensor_map_ =
      encode(&tensor_map_, type, 2, memory_.data(), dims, &row_bytes, box, element_strides,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace octavo::cuda
