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

void validate(const DeviceContext& context, const KVCacheSpec& spec) {
  if (spec.block_size <= 0 || spec.block_size % 16 != 0) {
    throw ConfigError("the CUDA backend needs a block size that is a multiple of 16");
  }
  if (spec.head_dim % 16 != 0 || spec.head_dim > 256) {
    throw ConfigError("the CUDA backend needs a head size that is a multiple of 16, up to 256");
  }
  if (spec.head_dim > 128 && !context.is_hopper) {
    throw ConfigError(
        "heads of more than 128 need a Hopper GPU: their tiles fit no other's memory");
  }
  if (spec.dtype != DType::kBFloat16 && spec.dtype != DType::kFloat16 &&
      spec.dtype != DType::kFloat8E4M3) {
    throw ConfigError("the CUDA backend keeps keys and values in bfloat16, float16 or fp8");
  }
}

}  // namespace

CudaKVCache::CudaKVCache(const DeviceContext& context, const KVCacheSpec& spec) : spec_(spec) {
  validate(context, spec);
  const int64_t size_bytes = 2 * spec.num_layers * layer_half_bytes(spec);
  memory_ = DeviceMemory(size_bytes);
  check_cuda(cudaMemsetAsync(memory_.data(), 0, size_bytes, context.stream));
  if (context.is_hopper) encode_tensor_map();
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
  constexpr int64_t kBoxColumns = 64;  // 128 bytes: the span of the swizzle
  constexpr int64_t kMaxBoxRows = 128;
  const int64_t rows = 2 * spec_.num_layers * rows_per_half();
  const bool fits = dtype_info(spec_.dtype).block_bytes == 2 && spec_.head_dim % kBoxColumns == 0 &&
                    std::has_single_bit(static_cast<uint64_t>(spec_.block_size)) &&
                    rows <= std::numeric_limits<int32_t>::max();
  if (!fits) return;
  TensorBox tensor{.data = memory_.data(), .dtype = spec_.dtype};
  tensor.sizes = {spec_.head_dim, rows};
  tensor.strides = {1, spec_.head_dim};
  tensor.box = {kBoxColumns, std::min(spec_.block_size, kMaxBoxRows)};
  tensor_map_ = make_tensor_map(tensor);
}

}  // namespace octavo::cuda
