// Measured choices of cuBLASLt's algorithms, kept on disk between starts.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>

namespace octavo::cuda {

// A text file: a line that names the format, then a line each: the key, " = ", the algorithm's
// eight words in hexadecimal. Keys say all that a choice holds for (GPU, version of the library,
// shape, types) and have no line breaks.
class GemmTuning {
 public:
  using Algorithm = std::array<uint64_t, 8>;

  // Reads the file; an absent or damaged one counts as empty, and so do lines that are no entries.
  // An empty path: nothing is read or written.
  explicit GemmTuning(std::string path);

  const std::string& path() const { return path_; }
  std::optional<Algorithm> find(const std::string& key) const;
  void put(const std::string& key, const Algorithm& algorithm) { entries_[key] = algorithm; }

  // Replaces the file at once, so that a reader never sees a part of it; entries that others have
  // added since the start are kept. False where it cannot be written.
  bool save();

 private:
  static std::map<std::string, Algorithm> read(const std::string& path);

  const std::string path_;
  std::map<std::string, Algorithm> entries_;
};

}  // namespace octavo::cuda
