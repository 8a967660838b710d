// The paged cache of keys and values on the device.
#pragma once

#include <optional>

#include "backend/backend.h"
#include "cuda/common/device_context.h"
#include "cuda/common/memory.h"
#include "cuda/common/tensor_map.h"

namespace octavo::cuda {

// Keys or values of one layer: [num_blocks, num_kv_heads, block_size, head_dim], so that the
// tokens of a block lie together for each head: what attention reads is contiguous.
struct KVLayer {
  void* keys = nullptr;
  void* values = nullptr;
  DType dtype = DType::kBFloat16;
  int num_kv_heads = 0;
  int head_dim = 0;
  int block_size = 0;
};

// Zeroed at creation: slots never written are finite.
class CudaKVCache : public KVCache {
 public:
  // Requires: block_size a multiple of 16, head_dim a multiple of 16 and at most 256; dtype
  // bfloat16, float16 or float8_e4m3. Throws ConfigError, OutOfMemoryError.
  CudaKVCache(const DeviceContext& context, const KVCacheSpec& spec);

  const KVCacheSpec& spec() const override { return spec_; }
  KVLayer layer(int64_t index) const;

  // For the bulk copy engine: the whole cache as a matrix of head_dim columns, a row a token of a
  // head; box (64, min(block_size, 128)), 128-byte swizzle. Row of a token:
  // (2 * layer + is_value) * rows_per_half() + (block * num_kv_heads + kv_head) * block_size +
  // offset. Null where the layout has none: 8-bit elements, or a block size that is not a power of
  // two.
  const CUtensorMap* tensor_map() const { return tensor_map_ ? &*tensor_map_ : nullptr; }
  int64_t rows_per_half() const { return spec_.num_blocks * spec_.num_kv_heads * spec_.block_size; }

 private:
  void encode_tensor_map();

  KVCacheSpec spec_;
  DeviceMemory memory_;
  std::optional<CUtensorMap> tensor_map_;
};

}  // namespace octavo::cuda
