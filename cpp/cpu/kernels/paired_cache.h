// The bfloat16 cache of the AMX table, kept as TDPBF16PS takes its right operand, so that nothing
// is laid out at each use: inside a head of a block keys are [head_dim / 2][block_size][2], values
// [block_size / 2][head_dim][2]. Sixteen keys are a row of a tile, sixteen dimensions likewise.
// Heads and blocks that are no multiples of sixteen are kept as everywhere else.
#pragma once

#include "cpu/kernels.h"
#include "cpu/kernels/attention.h"
#include "cpu/kernels/vec_math.h"

namespace octavo::cpu {
namespace {

struct BFloat16Pair {
  BFloat16 even, odd;
};

inline bool is_kept_in_pairs(const KVHeadView& kv) {
  return kv.head_dim % kLanes == 0 && kv.block_size % kLanes == 0;
}

// Writes nothing but this token's halves of the pairs: another thread may write the others.
inline void write_paired_kv(const KVHeadView& kv, int64_t slot, const float* key,
                            const float* value) {
  if (!is_kept_in_pairs(kv)) return write_kv<BFloat16>(kv, slot, key, value);
  const int64_t offset = slot / kv.block_size * kv.block_stride_bytes;
  const int64_t in_block = slot % kv.block_size;
  auto* key_out = reinterpret_cast<BFloat16Pair*>(kv.key_base + offset) + in_block;
  auto* value_out = reinterpret_cast<uint16_t*>(kv.value_base + offset) +
                    in_block / 2 * 2 * kv.head_dim + in_block % 2;
  for (int64_t d = 0; d < kv.head_dim; d += kLanes) {
    BFloat16Pair pairs[kLanes / 2];
    store_bfloat16(reinterpret_cast<uint16_t*>(pairs), load(key + d));
    for (int64_t i = 0; i < kLanes / 2; ++i) key_out[(d / 2 + i) * kv.block_size] = pairs[i];
    store_every_other(value_out + 2 * d, load(value + d));
  }
}

// The first of the pairs of a part's keys, whose rows are 2 * block_size apart, and of its values,
// whose rows are 2 * head_dim apart. Requires: the part begins with an even slot.
inline const uint16_t* paired_keys(const TilePart& part) {
  return reinterpret_cast<const uint16_t*>(part.keys<BFloat16Pair>());
}
inline const uint16_t* paired_values(const TilePart& part) { return part.values<uint16_t>(); }

}  // namespace
}  // namespace octavo::cpu
