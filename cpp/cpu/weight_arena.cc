#include "cpu/weight_arena.h"

#include <algorithm>

#include "cpu/panel_layout.h"

namespace octavo::cpu {

std::byte* WeightArena::allocate(int64_t size_bytes) {
  // Pages that are never written take no memory, so a chunk may be generous.
  constexpr int64_t kChunkBytes = int64_t{64} << 20;
  const int64_t rounded = round_up(size_bytes, kVectorBytes);
  const std::lock_guard lock(mutex_);
  if (used_bytes_ + rounded > chunk_bytes_) {
    chunk_bytes_ = std::max(kChunkBytes, rounded);
    chunks_.emplace_back(chunk_bytes_);
    used_bytes_ = 0;
  }
  std::byte* memory = chunks_.back().data() + used_bytes_;
  used_bytes_ += rounded;
  return memory;
}

}  // namespace octavo::cpu
