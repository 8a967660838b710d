// Writes GGUF files for tests, sound ones and, by its raw fields, unsound ones.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

namespace octavo::test {

class Bytes {
 public:
  template <typename T>
  Bytes& put(T value) {
    text_.append(reinterpret_cast<const char*>(&value), sizeof(T));
    return *this;
  }
  Bytes& string(std::string_view text) {
    put<uint64_t>(text.size());
    text_.append(text);
    return *this;
  }
  Bytes& raw(std::string_view text) {
    text_.append(text);
    return *this;
  }
  Bytes& pad_to(size_t alignment) {
    text_.resize((text_.size() + alignment - 1) / alignment * alignment, '\0');
    return *this;
  }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

struct TensorEntry {
  std::string name;
  std::vector<uint64_t> dims;  // as the format has them: innermost first
  uint32_t type = 0;
  uint64_t offset = 0;
};

struct GgufImage {
  uint32_t version = 3;
  std::vector<std::pair<std::string, std::string>> pairs;  // key, encoded type and value
  std::vector<TensorEntry> tensors;
  std::string data;
  size_t alignment = 32;
  int64_t extra_pairs = 0;    // added to the declared count
  int64_t extra_tensors = 0;  // added to the declared count

  template <typename T>
  GgufImage& with(std::string key, uint32_t type, T value) {
    pairs.emplace_back(std::move(key), Bytes().put(type).put(value).text());
    return *this;
  }
  GgufImage& with_bytes(std::string key, const Bytes& encoded) {
    pairs.emplace_back(std::move(key), encoded.text());
    return *this;
  }

  std::string encode() const {
    Bytes out;
    out.raw("GGUF").put(version);
    out.put<uint64_t>(tensors.size() + extra_tensors).put<uint64_t>(pairs.size() + extra_pairs);
    for (const auto& [key, value] : pairs) out.string(key).raw(value);
    for (const TensorEntry& tensor : tensors) {
      out.string(tensor.name).put<uint32_t>(tensor.dims.size());
      for (const uint64_t dim : tensor.dims) out.put(dim);
      out.put(tensor.type).put(tensor.offset);
    }
    return out.pad_to(alignment).raw(data).text();
  }
};

// A directory of its own that goes away with the test.
class TempDir {
 public:
  TempDir() {
    std::string pattern = std::filesystem::temp_directory_path() / "octavo-gguf-XXXXXX";
    path_ = mkdtemp(pattern.data());
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  std::string write(std::string_view name, std::string_view bytes) const {
    const std::filesystem::path path = path_ / name;
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
  }
  std::string path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace octavo::test
