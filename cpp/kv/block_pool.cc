#include "kv/block_pool.h"

#include <limits>

#include "base/check.h"

namespace octavo {

BlockPool::BlockPool(int64_t num_blocks) {
  check(num_blocks > 0 && num_blocks < std::numeric_limits<int32_t>::max(),
        "number of blocks out of range");
  blocks_.resize(num_blocks + 1);
  blocks_[sentinel()] = {1, sentinel(), sentinel()};
  for (int32_t id = 0; id < sentinel(); ++id) link(id, blocks_[sentinel()].previous);
}

int32_t BlockPool::take() {
  check(num_free_ > 0, "no free block to take");
  const int32_t id = blocks_[sentinel()].next;
  unlink(id);
  blocks_[id].ref_count = 1;
  return id;
}

void BlockPool::add_reference(int32_t id) {
  if (blocks_[id].ref_count++ == 0) unlink(id);
}

void BlockPool::release(int32_t id, Reuse reuse) {
  check(blocks_[id].ref_count > 0, "release of a block that nobody holds");
  if (--blocks_[id].ref_count > 0) return;
  link(id, reuse == Reuse::kLast ? blocks_[sentinel()].previous : sentinel());
}

void BlockPool::link(int32_t id, int32_t after) {
  const int32_t before = blocks_[after].next;
  blocks_[id].previous = after;
  blocks_[id].next = before;
  blocks_[after].next = id;
  blocks_[before].previous = id;
  ++num_free_;
}

void BlockPool::unlink(int32_t id) {
  const Block& block = blocks_[id];
  blocks_[block.previous].next = block.next;
  blocks_[block.next].previous = block.previous;
  --num_free_;
}

void BlockPool::self_check() const {
  int64_t num_listed = 0;
  for (int32_t id = blocks_[sentinel()].next; id != sentinel(); id = blocks_[id].next) {
    check(blocks_[id].ref_count == 0, "a held block is in the free list");
    check(blocks_[blocks_[id].next].previous == id, "the free list's links disagree");
    check(++num_listed <= num_blocks(), "the free list has a loop");
  }
  int64_t num_held = 0;
  for (int32_t id = 0; id < sentinel(); ++id) {
    check(blocks_[id].ref_count >= 0, "negative reference count");
    num_held += blocks_[id].ref_count > 0;
  }
  check(num_listed == num_free_, "the free count is not the free list's length");
  check(num_held + num_listed == num_blocks(), "a block is neither held nor free");
}

}  // namespace octavo
