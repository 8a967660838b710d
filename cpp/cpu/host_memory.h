// How much memory this process may use.
#pragma once

#include <cstdint>

namespace octavo::cpu {

struct HostMemory {
  int64_t total_bytes = 0;  // of the machine, or the control group's limit when that is lower
  int64_t free_bytes = 0;   // available without swapping, within that limit
};

HostMemory host_memory();

}  // namespace octavo::cpu
