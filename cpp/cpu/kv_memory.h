// The paged KV cache in host memory.
#pragma once

#include "backend/backend.h"
#include "cpu/kernels.h"
#include "cpu/zero_pages.h"

namespace octavo::cpu {

// Layout: [layer][block]{keys [kv_head][head_dim][block_size], values
// [kv_head][block_size][head_dim]}. Keys are transposed inside a block so that one dimension of 16
// consecutive keys is one vector; the AMX table keeps bfloat16 in pairs instead (paired_cache.h).
// Pages are taken when a block is first written.
class KVMemory final : public KVCache {
 public:
  // Throws OutOfMemoryError, ConfigError for a dtype that the CPU does not keep.
  explicit KVMemory(const KVCacheSpec& spec);

  const KVCacheSpec& spec() const override { return spec_; }
  KVFormat format() const { return format_; }
  KVHeadView head(int64_t layer, int64_t kv_head) const;

 private:
  const KVCacheSpec spec_;
  const KVFormat format_;
  const int64_t scale_bytes_;         // of a block's keys, or of its values
  const int64_t data_bytes_;          // likewise
  const int64_t block_stride_bytes_;  // of one layer
  ZeroPages pages_;
};

}  // namespace octavo::cpu
