// Sequential, bounds-checked reading of a file's header.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "checkpoint/input_file.h"

namespace octavo {

// `text` fit for a message: control characters and bytes beyond ASCII escaped, long text cut.
std::string quoted(std::string_view text);

// Reads little-endian values from the start of a file through a window. Every failure is a
// CheckpointError "path: context: cause".
class FileCursor {
 public:
  // Reads bytes [0, min(file size, limit_bytes)). `file` must outlive the cursor.
  FileCursor(const InputFile& file, int64_t limit_bytes);

  int64_t position() const { return position_; }
  int64_t remaining() const { return end_ - position_; }

  // What is being read, for messages.
  void set_context(std::string context) { context_ = std::move(context); }
  [[noreturn]] void fail(std::string_view cause) const;

  void read_bytes(void* out, int64_t num_bytes);

  template <typename T>
  T read() {
    static_assert(std::is_arithmetic_v<T>);
    T value;
    read_bytes(&value, sizeof(T));
    return value;
  }

  // A count of things that take at least `min_bytes` each: refused if they cannot be in the file.
  int64_t read_count(int64_t min_bytes);

 private:
  void fill_window();

  const InputFile& file_;
  int64_t end_;
  int64_t position_ = 0;
  std::vector<char> window_;  // bytes [window_begin_, window_begin_ + window_.size())
  int64_t window_begin_ = 0;
  std::string context_ = "header";
};

}  // namespace octavo
