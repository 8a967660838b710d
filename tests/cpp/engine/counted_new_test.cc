#include "engine/counted_new.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <new>
#include <thread>
#include <vector>

namespace {

struct Counter {
  bool is_on = false;
  int64_t count = 0;
  size_t refuse_above = 0;
};
thread_local Counter counter;

// Neither is inlined: the compiler warns of a mismatch where it sees malloc or free behind the
// other half of a pair of operators.
[[gnu::noinline]] void* allocate(size_t size, size_t alignment) {
  if (counter.is_on) {
    ++counter.count;
    if (size > counter.refuse_above) throw std::bad_alloc();
  }
  const size_t rounded = (size + alignment - 1) / alignment * alignment;
  void* memory = alignment <= alignof(std::max_align_t) ? std::malloc(size == 0 ? 1 : size)
                                                        : std::aligned_alloc(alignment, rounded);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

[[gnu::noinline]] void* try_allocate(size_t size) {
  try {
    return allocate(size, 1);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

[[gnu::noinline]] void give_back(void* memory) { std::free(memory); }

}  // namespace

void* operator new(size_t size) { return allocate(size, 1); }
void* operator new[](size_t size) { return allocate(size, 1); }
void* operator new(size_t size, std::align_val_t alignment) {
  return allocate(size, static_cast<size_t>(alignment));
}
void* operator new[](size_t size, std::align_val_t alignment) {
  return allocate(size, static_cast<size_t>(alignment));
}
// The library's own of these would call those above, but not a sanitizer's.
void* operator new(size_t size, const std::nothrow_t&) noexcept { return try_allocate(size); }
void* operator new[](size_t size, const std::nothrow_t&) noexcept { return try_allocate(size); }
void operator delete(void* memory) noexcept { give_back(memory); }
void operator delete[](void* memory) noexcept { give_back(memory); }
void operator delete(void* memory, size_t) noexcept { give_back(memory); }
void operator delete[](void* memory, size_t) noexcept { give_back(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { give_back(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { give_back(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { give_back(memory); }
void operator delete[](void* memory, size_t, std::align_val_t) noexcept { give_back(memory); }

namespace octavo::testing {

CountedNew::CountedNew(size_t refuse_above) { counter = {true, 0, refuse_above}; }
CountedNew::~CountedNew() { counter.is_on = false; }
int64_t CountedNew::count() const { return counter.count; }

namespace {

TEST(CountedNewTest, CountsThisThreadOnly) {
  const CountedNew counted;
  EXPECT_EQ(counted.count(), 0);
  std::vector<int> grown(1000);
  EXPECT_EQ(counted.count(), 1);
  grown.resize(2000);
  EXPECT_EQ(counted.count(), 2);
}

TEST(CountedNewTest, RefusesLargeAllocations) {
  bool is_refused = false;
  {
    const CountedNew counted(1 << 20);
    try {
      const std::vector<char> large(2 << 20);
    } catch (const std::bad_alloc&) {
      is_refused = true;
    }
  }
  EXPECT_TRUE(is_refused);
}

}  // namespace
}  // namespace octavo::testing
