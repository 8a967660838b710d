// A block: `block_size` token positions of keys and values in every layer, named by its id.
#pragma once

#include <cstdint>

namespace octavo {

inline constexpr int32_t kNoBlock = -1;

// Host-side state of a block. The links are of the free list and meaningful while ref_count is 0.
struct Block {
  int32_t ref_count = 0;  // sequences whose block table holds the block
  int32_t previous = kNoBlock;
  int32_t next = kNoBlock;
};

}  // namespace octavo
