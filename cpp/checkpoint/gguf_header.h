// The header of one GGUF file: metadata and the table of tensors.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "checkpoint/gguf_file.h"
#include "checkpoint/gguf_value.h"
#include "checkpoint/input_file.h"

namespace octavo {

struct GgufHeader {
  GgufMetadata metadata;
  std::vector<GgufTensor> tensors;  // shard 0, offsets from the start of the file
};

// Reads the header and checks that every tensor lies in the file, aligned and apart from the
// others. Throws CheckpointError or UnsupportedModelError, see GgufFile.
GgufHeader read_gguf_header(const InputFile& file);

// The value of an integer key, if it is there as an integer of any width.
std::optional<int64_t> find_integer(const GgufMetadata& metadata, std::string_view key);

}  // namespace octavo
