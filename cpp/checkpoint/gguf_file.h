// Reader of GGUF checkpoints, versions 2 and 3, little-endian, in one file or split into
// "-00001-of-0000N.gguf" shards. Source: the GGUF format.
//
// Nothing a file declares is believed: counts, lengths, offsets and sizes are checked against the
// bytes that are there before memory is taken or read. Nothing is mapped (see input_file.h).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/dtype.h"
#include "checkpoint/gguf_value.h"
#include "checkpoint/input_file.h"

namespace octavo {

struct GgufTensor {
  std::string name;
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;  // row-major, outermost first; rank 1 to 4, each >= 1
  int64_t num_bytes = 0;
  int64_t offset = 0;  // of the first byte, from the start of its shard
  int32_t shard = 0;   // index of the file that holds it
};

// Immutable once made; all methods are thread-safe.
class GgufFile {
 public:
  // Reads and checks everything but the tensors' values. `path` is the only file or the first
  // shard; the other shards are opened beside it. Throws CheckpointError naming the file and the
  // key or tensor at fault, UnsupportedModelError for a version, byte order or tensor type that
  // this build does not read.
  explicit GgufFile(const std::string& path);

  // Of the first shard.
  const GgufMetadata& metadata() const { return metadata_; }

  // In file order, shard by shard.
  const std::vector<GgufTensor>& tensors() const { return tensors_; }

  // nullptr when there is none of that name.
  const GgufTensor* find(std::string_view name) const;

  // Copies out.size() of the tensor's bytes, from `begin` on, to `out`. Blocking I/O: call it
  // without the GIL. Requires: they lie inside the tensor, which is one of tensors().
  // Throws CheckpointError when the file became shorter or cannot be read.
  void read_tensor(const GgufTensor& tensor, int64_t begin, std::span<std::byte> out) const;

  // Bytes of all shards together.
  int64_t size_bytes() const;

 private:
  void build_index();

  std::vector<InputFile> shards_;
  GgufMetadata metadata_;
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string_view, size_t> index_;  // keys point into tensors_
};

}  // namespace octavo
