#include "checkpoint/input_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "base/errors.h"

namespace octavo {
namespace {

[[noreturn]] void fail_errno(const std::string& path, int error) {
  throw CheckpointError(path + ": " + std::generic_category().message(error));
}

}  // namespace

InputFile::InputFile(std::string path) : path_(std::move(path)) {
  // O_NONBLOCK: opening a FIFO that nobody writes to must not hang.
  fd_ = open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd_ < 0) fail_errno(path_, errno);
  struct stat status {};
  const int error = fstat(fd_, &status) == 0 ? 0 : errno;
  if (error == 0 && S_ISREG(status.st_mode)) {
    size_bytes_ = status.st_size;
    return;
  }
  close(fd_);
  if (error != 0) fail_errno(path_, error);
  throw CheckpointError(path_ + ": not a regular file");
}

InputFile::~InputFile() {
  if (fd_ >= 0) close(fd_);
}

InputFile::InputFile(InputFile&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      size_bytes_(other.size_bytes_) {}

void InputFile::read(int64_t offset, int64_t num_bytes, void* out) const {
  // Linux moves at most 2 GiB - 4 KiB a call.
  constexpr int64_t kMaxChunkBytes = int64_t{1} << 30;
  auto* cursor = static_cast<char*>(out);
  while (num_bytes > 0) {
    const ssize_t got = pread(fd_, cursor, std::min(num_bytes, kMaxChunkBytes), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_errno(path_, errno);
    if (got == 0) {
      throw CheckpointError(path_ + ": ends at byte " + std::to_string(offset) + ", " +
                            std::to_string(num_bytes) + " bytes too early; it had " +
                            std::to_string(size_bytes_) + " bytes when it was opened");
    }
    cursor += got;
    offset += got;
    num_bytes -= got;
  }
}

}  // namespace octavo
