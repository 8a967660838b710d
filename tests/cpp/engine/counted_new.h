// Counts, and on request refuses, the heap allocations of the calling thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

namespace octavo::testing {

// While one lives, allocations of this thread are counted and those of more than `refuse_above`
// bytes throw std::bad_alloc. One at a time.
class CountedNew {
 public:
  explicit CountedNew(size_t refuse_above = std::numeric_limits<size_t>::max());
  ~CountedNew();
  CountedNew(const CountedNew&) = delete;
  CountedNew& operator=(const CountedNew&) = delete;

  int64_t count() const;
};

}  // namespace octavo::testing
