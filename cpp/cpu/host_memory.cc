#include "cpu/host_memory.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace octavo::cpu {
namespace {

// A small file as a whole, empty where it cannot be read. No stream reads it: where two copies of
// the C++ library are in one process, a stream may meet the other one's locale.
std::string read_text(const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"),
                                                             std::fclose);
  std::string text;
  char piece[4096];
  while (file != nullptr) {
    const size_t size = std::fread(piece, 1, sizeof(piece), file.get());
    if (size == 0) break;
    text.append(piece, size);
  }
  return text;
}

// Calls take(line) for each line until that returns true.
template <typename Take>
void for_each_line(std::string_view text, const Take& take) {
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    if (take(text.substr(0, end))) return;
    text.remove_prefix(std::min(end + 1, text.size()));
  }
}

// The number that a text begins with, behind blanks; nothing for "max" or an empty text.
std::optional<int64_t> number_at_start(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of(" \t"), text.size()));
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc()) return std::nullopt;
  return value;
}

std::optional<int64_t> read_number(const std::string& path) {
  return number_at_start(read_text(path));
}

// A line "<key> <number> kB" of /proc/meminfo, in bytes.
int64_t read_meminfo(std::string_view key) {
  int64_t bytes = 0;
  for_each_line(read_text("/proc/meminfo"), [&](std::string_view line) {
    if (!line.starts_with(key)) return false;
    bytes = number_at_start(line.substr(key.size())).value_or(0) * 1024;
    return true;
  });
  return bytes;
}

// The path of this process in the version 2 hierarchy, or of its memory controller in version 1.
std::string control_group(bool version2) {
  std::string path = "/";
  for_each_line(read_text("/proc/self/cgroup"), [&](std::string_view line) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string_view::npos) return false;
    const std::string_view controllers = line.substr(first + 1, second - first - 1);
    const bool is_memory = controllers.find("memory") != std::string_view::npos;
    if (!(version2 ? controllers.empty() : is_memory)) return false;
    path = line.substr(second + 1);
    return true;
  });
  return path;
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
