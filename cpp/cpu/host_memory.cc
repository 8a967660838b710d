#include "cpu/host_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <string>

namespace octavo::cpu {
namespace {

// A number at the start of a file; nothing for "max" or a file that is not there.
std::optional<int64_t> read_number(const std::string& path) {
  std::ifstream file(path);
  int64_t value = 0;
  if (file >> value) return value;
  return std::nullopt;
}

// A line "<key> <number> kB" of /proc/meminfo, in bytes.
int64_t read_meminfo(const std::string& key) {
  std::ifstream file("/proc/meminfo");
  std::string name, rest;
  int64_t kib = 0;
  while (file >> name >> kib) {
    if (name == key) return kib * 1024;
    std::getline(file, rest);
  }
  return 0;
}

// The path of this process in the version 2 hierarchy, or of its memory controller in version 1.
std::string control_group(bool version2) {
  std::ifstream file("/proc/self/cgroup");
  std::string line;
  while (std::getline(file, line)) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool is_memory = controllers.find("memory") != std::string::npos;
    if (version2 ? controllers.empty() : is_memory) return line.substr(second + 1);
  }
  return "/";
}

struct Limit {
  int64_t bytes = std::numeric_limits<int64_t>::max();
  int64_t used_bytes = 0;
};

// The tightest limit from the process's group up to the root. Inside a container the path may lie
// outside the mounted tree; then only the root of the mount is found.
Limit tightest_limit(const std::string& root, std::string path, const char* limit_file,
                     const char* usage_file) {
  Limit tightest;
  while (true) {
    const std::string folder = root + (path == "/" ? "" : path);
    const auto bytes = read_number(folder + "/" + limit_file);
    if (bytes && *bytes < tightest.bytes) {
      tightest = {*bytes, read_number(folder + "/" + usage_file).value_or(0)};
    }
    if (path.size() <= 1) return tightest;
    path.resize(std::max<size_t>(path.rfind('/'), 1));
  }
}

}  // namespace

HostMemory host_memory() {
  HostMemory memory{read_meminfo("MemTotal:"), read_meminfo("MemAvailable:")};
  const Limit limits[] = {
      tightest_limit("/sys/fs/cgroup", control_group(true), "memory.max", "memory.current"),
      tightest_limit("/sys/fs/cgroup/memory", control_group(false), "memory.limit_in_bytes",
                     "memory.usage_in_bytes"),
  };
  for (const Limit& limit : limits) {
    memory.total_bytes = std::min(memory.total_bytes, limit.bytes);
    memory.free_bytes =
        std::min(memory.free_bytes, std::max<int64_t>(0, limit.bytes - limit.used_bytes));
  }
  return memory;
}

}  // namespace octavo::cpu
