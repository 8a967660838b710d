#include "cuda/gemm_tuning.h"

#include <filesystem>
#include <fstream>
#include <sstream>
#include <utility>

namespace octavo::cuda {
namespace {

constexpr const char* kFormat = "octavo gemm tuning 1";
constexpr const char* kSeparator = " = ";

// Nothing where the line is no entry.
std::optional<std::pair<std::string, GemmTuning::Algorithm>> parse(const std::string& line) {
  const size_t at = line.rfind(kSeparator);
  if (at == std::string::npos || at == 0) return std::nullopt;
  std::istringstream words(line.substr(at + 3));
  GemmTuning::Algorithm algorithm{};
  for (uint64_t& word : algorithm) {
    if (!(words >> std::hex >> word)) return std::nullopt;
  }
  std::string rest;
  if (words >> rest) return std::nullopt;
  return std::pair(line.substr(0, at), algorithm);
}

}  // namespace

GemmTuning::GemmTuning(std::string path) : path_(std::move(path)), entries_(read(path_)) {}

std::map<std::string, GemmTuning::Algorithm> GemmTuning::read(const std::string& path) {
  std::map<std::string, Algorithm> entries;
  if (path.empty()) return entries;
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line) || line != kFormat) return entries;
  while (std::getline(file, line)) {
    if (auto entry = parse(line)) entries.insert(std::move(*entry));
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
  const std::filesystem::path part(path_ + ".part");
  {
    std::ofstream file(part, std::ios::trunc);
    file << kFormat << '\n';
    for (const auto& [key, algorithm] : entries_) {
      file << key << kSeparator << std::hex;
      for (size_t i = 0; i < algorithm.size(); ++i) file << (i == 0 ? "" : " ") << algorithm[i];
      file << std::dec << '\n';
    }
    file.flush();
    if (!file) return false;
  }
  std::filesystem::rename(part, target, error);
  return !error;
}

}  // namespace octavo::cuda
