// A read-only file that is read by position, never mapped.
//
// Why not a mapping: a file that shrinks (a download that restarts, a network file system) turns
// the next load from a mapping into SIGBUS, and no check before the load can rule that out. A read
// by position reports the same fault as a short count, costs one copy from the page cache and needs
// no page faults.
#pragma once

#include <cstdint>
#include <string>

namespace octavo {

// Thread-safe: reads carry their own position.
class InputFile {
 public:
  // Throws CheckpointError when `path` is absent, unreadable or not a regular file.
  explicit InputFile(std::string path);
  ~InputFile();
  InputFile(InputFile&& other) noexcept;
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::string& path() const { return path_; }
  int64_t size_bytes() const { return size_bytes_; }  // when it was opened

  // Fills `out` with bytes [offset, offset + num_bytes).
  // Throws CheckpointError when the range does not lie in the file or the device fails.
  void read(int64_t offset, int64_t num_bytes, void* out) const;

 private:
  std::string path_;
  int fd_ = -1;
  int64_t size_bytes_ = 0;
};

}  // namespace octavo
