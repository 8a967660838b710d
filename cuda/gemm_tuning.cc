#include "cuda/gemm_tuning.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string_view>
#include <utility>

namespace octavo::cuda {
namespace {

constexpr std::string_view kFormat = "octavo gemm tuning 1";
constexpr std::string_view kSeparator = " = ";

// Nothing where the line is no entry.
std::optional<std::pair<std::string, GemmTuning::Algorithm>> parse(std::string_view line) {
  const size_t at = line.rfind(kSeparator);
  if (at == std::string::npos || at == 0) return std::nullopt;
  const std::string_view words = line.substr(at + kSeparator.size());
  const char* p = words.data();
  const char* end = p + words.size();
  GemmTuning::Algorithm algorithm{};
  for (uint64_t& word : algorithm) {
    if (&word != &algorithm.front()) {
      if (p == end || *p != ' ') return std::nullopt;
      ++p;
    }
    const auto [next, error] = std::from_chars(p, end, word, 16);
    if (error != std::errc()) return std::nullopt;
    p = next;
  }
  if (p != end) return std::nullopt;
  return std::pair(std::string(line.substr(0, at)), algorithm);
}

std::string text_of(const std::string& key, const GemmTuning::Algorithm& algorithm) {
  std::string line = key + std::string(kSeparator);
  for (size_t i = 0; i < algorithm.size(); ++i) {
    char digits[17];
    const auto written = std::to_chars(digits, digits + sizeof(digits), algorithm[i], 16);
    if (i > 0) line += ' ';
    line.append(digits, written.ptr);
  }
  return line + '\n';
}

// All of a file; empty where it cannot be read.
std::string content_of(const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"),
                                                             std::fclose);
  std::string content;
  if (file == nullptr) return content;
  char piece[4096];
  while (const size_t n = std::fread(piece, 1, sizeof(piece), file.get())) content.append(piece, n);
  return content;
}

bool write_file(const std::string& path, const std::string& content) {
  std::FILE* file = std::fopen(path.c_str(), "wb");
  if (file == nullptr) return false;
  const bool is_written = std::fwrite(content.data(), 1, content.size(), file) == content.size();
  return std::fclose(file) == 0 && is_written;
}

}  // namespace

GemmTuning::GemmTuning(std::string path) : path_(std::move(path)), entries_(read(path_)) {}

std::map<std::string, GemmTuning::Algorithm> GemmTuning::read(const std::string& path) {
  std::map<std::string, Algorithm> entries;
  if (path.empty()) return entries;
  const std::string content = content_of(path);
  bool is_first = true;
  for (size_t begin = 0; begin < content.size();) {
    const size_t end = std::min(content.find('\n', begin), content.size());
    const std::string_view line = std::string_view(content).substr(begin, end - begin);
    begin = end + 1;
    if (is_first && line != kFormat) return entries;
    if (auto entry = is_first ? std::nullopt : parse(line)) entries.insert(std::move(*entry));
    is_first = false;
  }
  return entries;
}

std::optional<GemmTuning::Algorithm> GemmTuning::find(const std::string& key) const {
  const auto found = entries_.find(key);
  if (found == entries_.end()) return std::nullopt;
  return found->second;
}

bool GemmTuning::save() {
  if (path_.empty()) return false;
  entries_.merge(read(path_));
  std::error_code error;
  const std::filesystem::path target(path_);
  if (target.has_parent_path()) std::filesystem::create_directories(target.parent_path(), error);
  // Another process may write its own measurements at the same time.
  const std::filesystem::path part(path_ + '.' + std::to_string(getpid()) + ".part");
  std::string content = std::string(kFormat) + '\n';
  for (const auto& [key, algorithm] : entries_) content += text_of(key, algorithm);
  if (!write_file(part.string(), content)) return false;
  std::filesystem::rename(part, target, error);
  return !error;
}

}  // namespace octavo::cuda
