#include "cpu/kv_memory.h"

#include <string>

#include "base/errors.h"

namespace octavo::cpu {
namespace {

KVFormat kv_format(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return KVFormat::kFloat32;
    case DType::kFloat16:
      return KVFormat::kFloat16;
    case DType::kBFloat16:
      return KVFormat::kBFloat16;
    default:
      throw ConfigError("the CPU keeps no KV cache in " + std::string(dtype_info(dtype).name));
  }
}

}  // namespace

KVMemory::KVMemory(const KVCacheSpec& spec)
    : spec_(spec), format_(kv_format(spec.dtype)), pages_(spec.num_blocks * spec.block_bytes()) {}

KVHeadView KVMemory::head(int64_t layer, int64_t kv_head) const {
  const int64_t head_bytes = dtype_bytes(spec_.dtype, spec_.head_dim * spec_.block_size);
  const int64_t keys_bytes = spec_.num_kv_heads * head_bytes;
  KVHeadView view;
  view.block_stride_bytes = 2 * keys_bytes;
  view.key_base =
      pages_.data() + layer * spec_.num_blocks * view.block_stride_bytes + kv_head * head_bytes;
  view.value_base = view.key_base + keys_bytes;
  view.block_size = spec_.block_size;
  view.head_dim = spec_.head_dim;
  return view;
}

}  // namespace octavo::cpu
