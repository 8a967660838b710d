// The values of GGUF metadata. Source: the GGUF format, "metadata key-value pairs".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace octavo {

// Many short strings (a vocabulary) in two allocations.
class GgufStrings {
 public:
  int64_t size() const { return static_cast<int64_t>(ends_.size()); }
  std::string_view operator[](int64_t i) const {
    const size_t begin = i == 0 ? 0 : ends_[i - 1];
    return std::string_view(bytes_).substr(begin, ends_[i] - begin);
  }

  // Appends a string of `num_bytes` and returns where its bytes go.
  char* append(int64_t num_bytes) {
    const size_t begin = bytes_.size();
    bytes_.resize(begin + num_bytes);
    ends_.push_back(bytes_.size());
    return bytes_.data() + begin;
  }

 private:
  std::string bytes_;
  std::vector<size_t> ends_;  // [size()], end of each string in bytes_
};

struct GgufValue;

// Alternatives stand in the order of the format's value types:
// index() is the format's id of the element type.
using GgufArray =
    std::variant<std::vector<uint8_t>, std::vector<int8_t>, std::vector<uint16_t>,
                 std::vector<int16_t>, std::vector<uint32_t>, std::vector<int32_t>,
                 std::vector<float>, std::vector<bool>, GgufStrings, std::vector<GgufValue>,
                 std::vector<uint64_t>, std::vector<int64_t>, std::vector<double>>;

// Here too index() is the format's id of the type. Strings are UTF-8 by the format's word, which is
// not checked.
struct GgufValue {
  std::variant<uint8_t, int8_t, uint16_t, int16_t, uint32_t, int32_t, float, bool, std::string,
               GgufArray, uint64_t, int64_t, double>
      data;
};

// Keys in file order, each once.
using GgufMetadata = std::vector<std::pair<std::string, GgufValue>>;

}  // namespace octavo
