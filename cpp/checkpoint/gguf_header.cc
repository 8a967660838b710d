#include "checkpoint/gguf_header.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <unordered_set>
#include <utility>

#include "base/errors.h"
#include "checkpoint/file_cursor.h"
#include "checkpoint/gguf_tensor_type.h"

namespace octavo {
namespace {

constexpr int64_t kMaxHeaderBytes = int64_t{1} << 30;  // a vocabulary of 256k is about 15 MB
constexpr int64_t kMaxNameBytes = 65535;               // the format's limit for keys
constexpr int kMaxArrayDepth = 4;
constexpr int kMaxDimensions = 4;
constexpr uint32_t kDefaultAlignment = 32;

// The least bytes that each kind of thing takes in a file.
constexpr int64_t kMinStringBytes = 8;
constexpr int64_t kMinArrayBytes = 4 + 8;
constexpr int64_t kMinPairBytes = kMinStringBytes + 4 + 1;
constexpr int64_t kMinTensorBytes = kMinStringBytes + 4 + 8 + 4 + 8;

// Reads the parts of a header in file order.
class HeaderReader {
 public:
  explicit HeaderReader(const InputFile& file) : file_(file), cursor_(file, kMaxHeaderBytes) {}

  GgufHeader read();

 private:
  [[noreturn]] void fail_unsupported(const std::string& what) const {
    throw UnsupportedModelError(file_.path() + ": " + what);
  }

  void read_magic_and_version();
  GgufMetadata read_metadata(int64_t num_pairs);
  GgufValue read_value(uint32_t type, int depth);
  GgufArray read_array(int depth);
  std::string read_name();
  std::string read_string();
  GgufStrings read_strings();
  GgufTensor read_tensor();
  void read_shape(GgufTensor& tensor);
  void set_size(GgufTensor& tensor) const;
  DType read_tensor_type(std::string_view name);
  int64_t alignment(const GgufMetadata& metadata);
  void place_tensors(GgufHeader& header);

  // Calls visit with a value of the C++ type of a scalar value type.
  template <typename Visit>
  auto visit_scalar(uint32_t type, Visit visit);

  const InputFile& file_;
  FileCursor cursor_;
};

void HeaderReader::read_magic_and_version() {
  std::array<char, 4> magic{};
  cursor_.read_bytes(magic.data(), magic.size());
  if (std::memcmp(magic.data(), "GGUF", 4) != 0) cursor_.fail("not a GGUF file");
  const auto version = cursor_.read<uint32_t>();
  if (version != 0 && (version & 0xFFFF) == 0) fail_unsupported("big-endian GGUF");
  if (version != 2 && version != 3) {
    fail_unsupported("GGUF version " + std::to_string(version) + "; this build reads 2 and 3");
  }
}

GgufHeader HeaderReader::read() {
  read_magic_and_version();
  cursor_.set_context("tensor count");
  const int64_t num_tensors = cursor_.read_count(kMinTensorBytes);
  cursor_.set_context("metadata count");
  const int64_t num_pairs = cursor_.read_count(kMinPairBytes);

  GgufHeader header;
  header.metadata = read_metadata(num_pairs);
  std::unordered_set<std::string> names;
  for (int64_t i = 0; i < num_tensors; ++i) {
    cursor_.set_context("tensor " + std::to_string(i));
    header.tensors.push_back(read_tensor());
    if (!names.insert(header.tensors.back().name).second) cursor_.fail("its name is there twice");
  }
  place_tensors(header);
  return header;
}

GgufMetadata HeaderReader::read_metadata(int64_t num_pairs) {
  GgufMetadata metadata;
  std::unordered_set<std::string> keys;
  for (int64_t i = 0; i < num_pairs; ++i) {
    cursor_.set_context("metadata key " + std::to_string(i));
    std::string key = read_name();
    cursor_.set_context("metadata key " + quoted(key));
    if (!keys.insert(key).second) cursor_.fail("is there twice");
    GgufValue value = read_value(cursor_.read<uint32_t>(), 0);
    metadata.emplace_back(std::move(key), std::move(value));
  }
  return metadata;
}

std::string HeaderReader::read_string() {
  std::string text(cursor_.read_count(1), '\0');
  cursor_.read_bytes(text.data(), static_cast<int64_t>(text.size()));
  return text;
}

std::string HeaderReader::read_name() {
  std::string name = read_string();
  if (name.empty() || static_cast<int64_t>(name.size()) > kMaxNameBytes) {
    cursor_.fail("a name of " + std::to_string(name.size()) + " bytes");
  }
  // The format says ASCII for keys; no tensor in the field has another name either.
  const bool printable =
      std::all_of(name.begin(), name.end(), [](char c) { return c > ' ' && c <= '~'; });
  if (!printable) cursor_.fail("its name " + quoted(name) + " is not printable ASCII");
  return name;
}

template <typename Visit>
auto HeaderReader::visit_scalar(uint32_t type, Visit visit) {
  switch (type) {
    case 0:
      return visit(uint8_t{});
    case 1:
      return visit(int8_t{});
    case 2:
      return visit(uint16_t{});
    case 3:
      return visit(int16_t{});
    case 4:
      return visit(uint32_t{});
    case 5:
      return visit(int32_t{});
    case 6:
      return visit(float{});
    case 7:
      return visit(bool{});
    case 10:
      return visit(uint64_t{});
    case 11:
      return visit(int64_t{});
    case 12:
      return visit(double{});
    default:
      cursor_.fail("unknown value type " + std::to_string(type));
  }
}

GgufValue HeaderReader::read_value(uint32_t type, int depth) {
  if (type == 8) return {read_string()};
  if (type == 9) return {read_array(depth + 1)};
  return visit_scalar(type, [this]<typename T>(T) -> GgufValue {
    if constexpr (std::is_same_v<T, bool>) return {cursor_.read<uint8_t>() != 0};
    return {cursor_.read<T>()};
  });
}

GgufArray HeaderReader::read_array(int depth) {
  if (depth > kMaxArrayDepth) cursor_.fail("arrays nested too deep");
  const auto type = cursor_.read<uint32_t>();
  if (type == 8) return read_strings();
  if (type == 9) {
    const int64_t size = cursor_.read_count(kMinArrayBytes);
    std::vector<GgufValue> values;
    while (std::ssize(values) < size) values.push_back(read_value(type, depth));
    return values;
  }
  return visit_scalar(type, [this]<typename T>(T) -> GgufArray {
    const int64_t size = cursor_.read_count(sizeof(T));
    std::vector<T> values(size);
    if constexpr (std::is_same_v<T, bool>) {
      for (int64_t i = 0; i < size; ++i) values[i] = cursor_.read<uint8_t>() != 0;
    } else {
      cursor_.read_bytes(values.data(), size * static_cast<int64_t>(sizeof(T)));
    }
    return values;
  });
}

GgufStrings HeaderReader::read_strings() {
  const int64_t size = cursor_.read_count(kMinStringBytes);
  GgufStrings strings;
  for (int64_t i = 0; i < size; ++i) {
    const int64_t num_bytes = cursor_.read_count(1);
    cursor_.read_bytes(strings.append(num_bytes), num_bytes);
  }
  return strings;
}

GgufTensor HeaderReader::read_tensor() {
  GgufTensor tensor;
  tensor.name = read_name();
  cursor_.set_context("tensor " + quoted(tensor.name));
  read_shape(tensor);
  tensor.dtype = read_tensor_type(tensor.name);
  set_size(tensor);
  const auto offset = cursor_.read<uint64_t>();
  if (offset > static_cast<uint64_t>(file_.size_bytes())) {
    cursor_.fail("offset " + std::to_string(offset) + " lies beyond the end of the file");
  }
  tensor.offset = static_cast<int64_t>(offset);
  return tensor;
}

void HeaderReader::read_shape(GgufTensor& tensor) {
  const auto rank = cursor_.read<uint32_t>();
  if (rank < 1 || rank > kMaxDimensions) cursor_.fail("rank " + std::to_string(rank));
  for (uint32_t i = 0; i < rank; ++i) {
    const auto size = cursor_.read<uint64_t>();
    if (size < 1 || size > uint64_t{std::numeric_limits<int64_t>::max()}) {
      cursor_.fail("a dimension of " + std::to_string(size));
    }
    tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(size));
  }
}

DType HeaderReader::read_tensor_type(std::string_view name) {
  const auto id = cursor_.read<uint32_t>();
  const GgufTensorType* type = find_tensor_type(id);
  if (type != nullptr && type->dtype) return *type->dtype;
  fail_unsupported("tensor " + quoted(name) + " has type " +
                   (type != nullptr ? std::string(type->name) : std::to_string(id)) +
                   ", which this build does not read");
}

void HeaderReader::set_size(GgufTensor& tensor) const {
  const DTypeInfo info = dtype_info(tensor.dtype);
  if (tensor.shape.back() % info.block_elements != 0) {
    cursor_.fail("rows of " + std::to_string(tensor.shape.back()) +
                 " values are no whole blocks of " + std::string(info.name));
  }
  int64_t num_elements = 1;
  bool overflow = false;
  for (const int64_t size : tensor.shape) {
    overflow |= __builtin_mul_overflow(num_elements, size, &num_elements);
  }
  overflow |= __builtin_mul_overflow(num_elements / info.block_elements, int64_t{info.block_bytes},
                                     &tensor.num_bytes);
  if (overflow) cursor_.fail("its shape overflows");
}

int64_t HeaderReader::alignment(const GgufMetadata& metadata) {
  cursor_.set_context("metadata key 'general.alignment'");
  const int64_t value = find_integer(metadata, "general.alignment").value_or(kDefaultAlignment);
  if (value < 1 || value > std::numeric_limits<uint32_t>::max() || (value & (value - 1)) != 0) {
    cursor_.fail(std::to_string(value) + " is no power of two");
  }
  return value;
}

void HeaderReader::place_tensors(GgufHeader& header) {
  const int64_t align = alignment(header.metadata);
  const int64_t data_begin = (cursor_.position() + align - 1) / align * align;
  for (GgufTensor& tensor : header.tensors) {
    cursor_.set_context("tensor " + quoted(tensor.name));
    if (tensor.offset % align != 0) cursor_.fail("its offset is not aligned");
    tensor.offset += data_begin;
    if (tensor.offset > file_.size_bytes() ||
        tensor.num_bytes > file_.size_bytes() - tensor.offset) {
      cursor_.fail("its " + std::to_string(tensor.num_bytes) + " bytes from byte " +
                   std::to_string(tensor.offset) + " on end beyond the file's " +
                   std::to_string(file_.size_bytes()));
    }
  }

  std::vector<const GgufTensor*> order;
  order.reserve(header.tensors.size());
  for (const GgufTensor& tensor : header.tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(),
            [](const GgufTensor* a, const GgufTensor* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < order.size(); ++i) {
    if (order[i]->offset >= order[i - 1]->offset + order[i - 1]->num_bytes) continue;
    cursor_.set_context("tensor " + quoted(order[i]->name));
    cursor_.fail("overlaps tensor " + quoted(order[i - 1]->name));
  }
}

}  // namespace

GgufHeader read_gguf_header(const InputFile& file) { return HeaderReader(file).read(); }

std::optional<int64_t> find_integer(const GgufMetadata& metadata, std::string_view key) {
  for (const auto& [name, value] : metadata) {
    if (name != key) continue;
    return std::visit(
        [](const auto& data) -> std::optional<int64_t> {
          using T = std::decay_t<decltype(data)>;
          if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>) {
            if (std::in_range<int64_t>(data)) return static_cast<int64_t>(data);
          }
          return std::nullopt;
        },
        value.data);
  }
  return std::nullopt;
}

}  // namespace octavo
