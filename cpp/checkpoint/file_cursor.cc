#include "checkpoint/file_cursor.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/errors.h"

namespace octavo {

static_assert(std::endian::native == std::endian::little, "checkpoints are read as they lie");

std::string quoted(std::string_view text) {
  constexpr size_t kMaxLength = 96;
  constexpr char kHex[] = "0123456789abcdef";
  std::string out = "'";
  for (const char c : text.substr(0, kMaxLength)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7F) {
      out += c;
    } else {
      out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 0xF]};
    }
  }
  return out + (text.size() > kMaxLength ? "…'" : "'");
}

FileCursor::FileCursor(const InputFile& file, int64_t limit_bytes)
    : file_(file), end_(std::min(file.size_bytes(), limit_bytes)) {}

void FileCursor::fail(std::string_view cause) const {
  throw CheckpointError(file_.path() + ": " + context_ + ": " + std::string(cause));
}

void FileCursor::read_bytes(void* out, int64_t num_bytes) {
  if (num_bytes > remaining()) fail("the file ends inside it");
  auto* target = static_cast<char*>(out);
  while (num_bytes > 0) {
    const int64_t offset = position_ - window_begin_;
    const int64_t available = static_cast<int64_t>(window_.size()) - offset;
    if (available <= 0) {
      fill_window();
      continue;
    }
    const int64_t chunk = std::min(available, num_bytes);
    std::memcpy(target, window_.data() + offset, chunk);
    target += chunk;
    position_ += chunk;
    num_bytes -= chunk;
  }
}

int64_t FileCursor::read_count(int64_t min_bytes) {
  const auto count = read<uint64_t>();
  if (count > static_cast<uint64_t>(remaining() / min_bytes)) {
    fail("declares " + std::to_string(count) + " elements, more than the file can hold");
  }
  return static_cast<int64_t>(count);
}

void FileCursor::fill_window() {
  constexpr int64_t kWindowBytes = int64_t{1} << 18;  // fits a level 2 cache
  window_begin_ = position_;
  window_.resize(std::min(kWindowBytes, remaining()));
  file_.read(window_begin_, static_cast<int64_t>(window_.size()), window_.data());
}

}  // namespace octavo
