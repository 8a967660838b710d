#include "cpu/kv_memory.h"

#include <string>

#include "base/errors.h"
#include "cpu/panel_layout.h"

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
    case DType::kInt8:
      return KVFormat::kInt8;
    default:
      throw ConfigError("the CPU keeps no KV cache in " + std::string(dtype_info(dtype).name));
  }
}

}  // namespace

KVMemory::KVMemory(const KVCacheSpec& spec)
    : spec_(spec),
      format_(kv_format(spec.dtype)),
      scale_bytes_(format_ == KVFormat::kInt8 ? spec.num_kv_heads * spec.block_size * 4 : 0),
      data_bytes_(dtype_bytes(spec.dtype, spec.num_kv_heads * spec.block_size * spec.head_dim)),
      block_stride_bytes_(round_up(2 * (scale_bytes_ + data_bytes_), kVectorBytes)),
      pages_(spec.num_layers * spec.num_blocks * block_stride_bytes_) {}

KVHeadView KVMemory::head(int64_t layer, int64_t kv_head) const {
  const int64_t head_bytes = data_bytes_ / spec_.num_kv_heads;
  const int64_t head_scale_bytes = scale_bytes_ / spec_.num_kv_heads;
  KVHeadView view;
  view.block_stride_bytes = block_stride_bytes_;
  view.key_scale_base =
      pages_.data() + layer * spec_.num_blocks * block_stride_bytes_ + kv_head * head_scale_bytes;
  view.value_scale_base = view.key_scale_base + scale_bytes_;
  view.key_base = view.value_scale_base + scale_bytes_ + kv_head * (head_bytes - head_scale_bytes);
  view.value_base = view.key_base + data_bytes_;
  view.block_size = spec_.block_size;
  view.head_dim = spec_.head_dim;
  return view;
}

}  // namespace octavo::cpu
