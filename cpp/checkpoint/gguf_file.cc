#include "checkpoint/gguf_file.h"

#include <array>
#include <cstdio>
#include <utility>

#include "base/check.h"
#include "base/errors.h"
#include "checkpoint/file_cursor.h"
#include "checkpoint/gguf_header.h"

namespace octavo {
namespace {

constexpr int64_t kMaxShards = 99999;  // five digits in a shard's name

std::string shard_suffix(int64_t index, int64_t count) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "-%05d-of-%05d.gguf", static_cast<int>(index + 1),
                static_cast<int>(count));
  return text.data();
}

// The number of shards that the first one declares.
int64_t shard_count(const std::string& path, const GgufMetadata& metadata) {
  const int64_t count = find_integer(metadata, "split.count").value_or(1);
  if (count == 0) return 1;
  if (count < 0 || count > kMaxShards) {
    throw CheckpointError(path + ": metadata key 'split.count': " + std::to_string(count));
  }
  if (count > 1 && !path.ends_with(shard_suffix(0, count))) {
    throw CheckpointError(path + ": one of " + std::to_string(count) +
                          " shards; open the one named ..." + shard_suffix(0, count));
  }
  return count;
}

void check_shard(const InputFile& file, const GgufMetadata& metadata, int64_t index,
                 int64_t count) {
  if (find_integer(metadata, "split.no") != index ||
      find_integer(metadata, "split.count") != count) {
    throw CheckpointError(file.path() + ": not shard " + std::to_string(index + 1) + " of " +
                          std::to_string(count));
  }
}

}  // namespace

GgufFile::GgufFile(const std::string& path) {
  shards_.emplace_back(path);
  GgufHeader first = read_gguf_header(shards_.front());
  metadata_ = std::move(first.metadata);
  tensors_ = std::move(first.tensors);

  const int64_t count = shard_count(path, metadata_);
  const std::string stem =
      path.substr(0, path.size() - (count > 1 ? shard_suffix(0, count).size() : 0));
  for (int64_t i = 1; i < count; ++i) {
    shards_.emplace_back(stem + shard_suffix(i, count));
    GgufHeader header = read_gguf_header(shards_.back());
    check_shard(shards_.back(), header.metadata, i, count);
    for (GgufTensor& tensor : header.tensors) {
      tensor.shard = static_cast<int32_t>(i);
      tensors_.push_back(std::move(tensor));
    }
  }
  build_index();
}

void GgufFile::build_index() {
  for (size_t i = 0; i < tensors_.size(); ++i) {
    if (index_.emplace(tensors_[i].name, i).second) continue;
    throw CheckpointError(shards_[tensors_[i].shard].path() + ": tensor " +
                          quoted(tensors_[i].name) + ": is in another shard too");
  }
  const int64_t num_tensors = static_cast<int64_t>(tensors_.size());
  const int64_t declared = find_integer(metadata_, "split.tensors.count").value_or(num_tensors);
  if (declared != num_tensors) {
    throw CheckpointError(shards_.front().path() + ": declares " + std::to_string(declared) +
                          " tensors over all shards, they have " + std::to_string(num_tensors));
  }
}

const GgufTensor* GgufFile::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

void GgufFile::read_tensor(const GgufTensor& tensor, int64_t begin,
                           std::span<std::byte> out) const {
  const auto size = static_cast<int64_t>(out.size());
  check(begin >= 0 && size <= tensor.num_bytes && begin <= tensor.num_bytes - size,
        "read_tensor beyond the tensor");
  try {
    shards_[tensor.shard].read(tensor.offset + begin, size, out.data());
  } catch (const CheckpointError& error) {
    throw CheckpointError(std::string(error.what()) + " (tensor " + quoted(tensor.name) + ")");
  }
}

int64_t GgufFile::size_bytes() const {
  int64_t total = 0;
  for (const InputFile& shard : shards_) total += shard.size_bytes();
  return total;
}

}  // namespace octavo
