// All blocks with their reference counts, and the free ones in the order in which they are reused.
#pragma once

#include <cstdint>
#include <vector>

#include "kv/block.h"

namespace octavo {

// Which end of the free list a block goes to when its last reference goes.
enum class Reuse : uint8_t {
  kLast,   // its content may be asked for again: least recently used order
  kFirst,  // its content is worthless: reuse it before anything worth keeping
};

// Every operation is O(1) and allocates nothing.
class BlockPool {
 public:
  // Requires: 0 < num_blocks <= 2^31 - 1.
  explicit BlockPool(int64_t num_blocks);

  int64_t num_blocks() const { return static_cast<int64_t>(blocks_.size()) - 1; }
  int64_t num_free() const { return num_free_; }
  int32_t ref_count(int32_t id) const { return blocks_[id].ref_count; }

  // The first block of the free list, with one reference. Requires: num_free() > 0.
  int32_t take();

  // One more holder; a free block leaves the free list.
  void add_reference(int32_t id);

  // One holder less; without holders the block joins the free list. Requires: ref_count(id) > 0.
  void release(int32_t id, Reuse reuse);

  // Throws CheckError unless the free list is sound and holds exactly the blocks without holders.
  void self_check() const;

 private:
  void link(int32_t id, int32_t after);
  void unlink(int32_t id);
  int32_t sentinel() const { return static_cast<int32_t>(num_blocks()); }

  std::vector<Block> blocks_;  // [num_blocks + 1]; the last closes the free list to a ring
  int64_t num_free_ = 0;
};

}  // namespace octavo
