#include "cpu/host_memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

namespace octavo::cpu {
namespace {

TEST(HostMemory, IsWhatTheSystemHasOrLess) {
  const HostMemory memory = host_memory();
  const int64_t installed = sysconf(_SC_PHYS_PAGES) * int64_t{sysconf(_SC_PAGESIZE)};
  EXPECT_GT(memory.total_bytes, int64_t{64} << 20);
  EXPECT_LE(memory.total_bytes, installed);
  EXPECT_GT(memory.free_bytes, 0);
  EXPECT_LE(memory.free_bytes, memory.total_bytes);
}

}  // namespace
}  // namespace octavo::cpu
