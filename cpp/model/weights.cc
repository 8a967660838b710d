#include "model/weights.h"

#include <algorithm>
#include <utility>

#include "base/dequantize.h"
#include "base/errors.h"
#include "base/philox.h"

namespace octavo {
namespace {

constexpr int64_t kVectorAlignmentFloats = 16;  // 64 bytes: whole cache lines, vector loads
constexpr size_t kMaxNamesInError = 8;

// 2 MiB of bfloat16: stays in a core's L2 while every dummy tensor is cut from it.
constexpr int64_t kDummyPoolElements = (int64_t{1} << 20) + 1;
constexpr float kDummyScale = 0.035f;  // uniform with the deviation 0.02 of common initialisers

bool is_weight_type(DType dtype) {
  return dtype != DType::kInt8 && dtype != DType::kInt32 && dtype != DType::kInt64 &&
         dtype != DType::kUInt8;
}

std::string shape_text(int64_t rows, int64_t cols) {
  return "[" + std::to_string(rows) + ", " + std::to_string(cols) + "]";
}

void check_view(const WeightSpec& spec, const WeightView& view) {
  if (view.rows != spec.rows || view.cols != spec.cols) {
    throw CheckpointError(
        "tensor '" + spec.name + "' has shape " + shape_text(view.rows, view.cols) +
        " where the model's configuration asks for " + shape_text(spec.rows, spec.cols));
  }
  const DTypeInfo info = dtype_info(view.dtype);
  if (!is_weight_type(view.dtype)) {
    throw CheckpointError("tensor '" + spec.name + "' has type " + std::string(info.name) +
                          ", which holds no weights");
  }
  if (view.cols % info.block_elements != 0) {
    throw CheckpointError("tensor '" + spec.name + "' has rows of " + std::to_string(view.cols) +
                          " values, not a whole number of " + std::string(info.name) + " blocks");
  }
}

// Whether `name` is a projection of attention or of a dense MLP: what quantisation at load and
// adapters apply to. Embeddings, the head, routers and experts are none.
bool names_projection(std::string_view name) {
  return name.ends_with("_proj") && name.find("experts") == std::string_view::npos;
}

uint16_t bfloat16_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>(bits >> 16);
}

std::vector<uint16_t> make_dummy_pool(uint64_t seed) {
  std::vector<uint16_t> pool(kDummyPoolElements);
  for (int64_t i = 0; i < kDummyPoolElements; ++i) {
    pool[i] = bfloat16_bits((2.0f * philox_uniform(seed, i, 0) - 1.0f) * kDummyScale);
  }
  return pool;
}

}  // namespace

LinearId Weights::declare_linear(std::span<const Projection> parts, int64_t in_features,
                                 bool has_bias) {
  const auto target = static_cast<int32_t>(linears_.size());
  int64_t row = 0;
  for (const Projection& part : parts) {
    const int64_t rows = part.out_features;
    add_spec({part.name + ".weight", rows, in_features, WeightKind::kMatrix, target, row});
    if (has_bias) add_spec({part.name + ".bias", 1, rows, WeightKind::kBias, target, row});
    row += rows;
  }
  linears_.push_back({row, in_features, has_bias, names_projection(parts.front().name), nullptr});
  return {target};
}

LinearId Weights::declare_linear(const Projection& projection, int64_t in_features, bool has_bias) {
  return declare_linear(std::span(&projection, 1), in_features, has_bias);
}

VectorId Weights::declare_vector(std::string name, int64_t size, double offset) {
  const auto target = static_cast<int32_t>(vector_offsets_.size());
  add_spec({std::move(name), 1, size, WeightKind::kVector, target, 0, static_cast<float>(offset)});
  vector_offsets_.push_back(vector_floats_);
  vector_floats_ +=
      (size + kVectorAlignmentFloats - 1) / kVectorAlignmentFloats * kVectorAlignmentFloats;
  return {target};
}

void Weights::add_spec(WeightSpec spec) {
  num_elements_ += spec.rows * spec.cols;
  specs_.push_back(std::move(spec));
}

int64_t Weights::planned_bytes(const std::function<DType(const WeightSpec&)>& dtype_of) const {
  int64_t bytes = vector_floats_ * static_cast<int64_t>(sizeof(float));
  for (const WeightSpec& spec : specs_) {
    if (spec.kind == WeightKind::kMatrix) {
      bytes += backend_.linear_bytes(spec.rows, spec.cols, dtype_of(spec));
    } else if (spec.kind == WeightKind::kBias) {
      bytes += spec.cols * static_cast<int64_t>(sizeof(float));
    }
  }
  return bytes;
}

void Weights::allocate() {
  check(is_loaded_ == nullptr, "weights are allocated once");
  for (Linear& linear : linears_) {
    linear.weight =
        linear.is_projection
            ? backend_.create_projection(linear.out_features, linear.in_features, linear.has_bias)
            : backend_.create_linear(linear.out_features, linear.in_features, linear.has_bias);
  }
  vectors_ = backend_.allocate(vector_floats_ * static_cast<int64_t>(sizeof(float)));
  is_loaded_ = std::make_unique<std::atomic<bool>[]>(specs_.size());
  for (size_t i = 0; i < specs_.size(); ++i) {
    check(index_.emplace(specs_[i].name, i).second, "a weight is declared twice");
  }
}

void Weights::load(std::string_view name, const WeightView& view) {
  const auto it = index_.find(name);
  if (it == index_.end()) {
    throw CheckpointError("tensor '" + std::string(name) + "' does not belong to this model");
  }
  const WeightSpec& spec = specs_[it->second];
  check_view(spec, view);
  if (is_loaded_[it->second].exchange(true)) {
    throw CheckpointError("tensor '" + spec.name + "' came twice");
  }
  place(spec, view);
  num_loaded_elements_ += spec.rows * spec.cols;
}

void Weights::place(const WeightSpec& spec, const WeightView& view) {
  switch (spec.kind) {
    case WeightKind::kMatrix:
      backend_.load_rows(*linears_[spec.target].weight, spec.row_begin, view);
      break;
    case WeightKind::kBias:
      backend_.load_bias(*linears_[spec.target].weight, spec.row_begin, view);
      break;
    case WeightKind::kVector:
      place_vector(spec, view);
      break;
  }
}

void Weights::place_vector(const WeightSpec& spec, const WeightView& view) {
  float* target = static_cast<float*>(vectors_->data()) + vector_offsets_[spec.target];
  if (spec.offset == 0.0f) {
    backend_.load_vector(target, view);
    return;
  }
  std::vector<float> values(view.cols);
  dequantize(view.dtype, view.data, view.cols, values.data());
  for (float& value : values) value += spec.offset;
  backend_.load_vector(target, {values.data(), DType::kFloat32, 1, view.cols});
}

void Weights::load_dummy(uint64_t seed) {
  const std::vector<uint16_t> pool = make_dummy_pool(seed);
  for (size_t i = 0; i < specs_.size(); ++i) {
    const WeightSpec& spec = specs_[i];
    if (spec.kind == WeightKind::kVector) {
      const std::vector<uint16_t> ones(spec.cols, bfloat16_bits(1.0f));
      place(spec, {ones.data(), DType::kBFloat16, 1, spec.cols});
    } else {
      place_dummy(spec, pool, i);
    }
    is_loaded_[i] = true;
    num_loaded_elements_ += spec.rows * spec.cols;
  }
}

// Cuts blocks of rows from the pool at a different place each, so that no tensor needs random
// numbers of its own.
void Weights::place_dummy(const WeightSpec& spec, std::span<const uint16_t> pool, uint64_t salt) {
  const auto pool_size = static_cast<int64_t>(pool.size());
  check(spec.cols <= pool_size / 2, "rows too long for the pool of dummy values");
  const int64_t rows_at_once = std::max<int64_t>(1, pool_size / 2 / spec.cols / 64 * 64);
  for (int64_t row = 0; row < spec.rows; row += rows_at_once) {
    const int64_t rows = std::min(rows_at_once, spec.rows - row);
    const auto spare = static_cast<uint64_t>(pool_size - rows * spec.cols);
    const uint64_t begin = (salt * 7919 + static_cast<uint64_t>(row) * 104729) % (spare + 1);
    WeightSpec part = spec;
    part.row_begin += row;
    place(part, {pool.data() + begin, DType::kBFloat16, rows, spec.cols});
  }
}

void Weights::check_complete() const {
  std::string names;
  size_t num_missing = 0;
  for (size_t i = 0; i < specs_.size(); ++i) {
    if (is_loaded_[i]) continue;
    if (++num_missing <= kMaxNamesInError) names += (names.empty() ? "" : ", ") + specs_[i].name;
  }
  if (num_missing == 0) return;
  if (num_missing > kMaxNamesInError) {
    names += " and " + std::to_string(num_missing - kMaxNamesInError) + " more";
  }
  throw CheckpointError("the checkpoint lacks " + names);
}

double Weights::progress() const {
  return num_elements_ == 0
             ? 1.0
             : static_cast<double>(num_loaded_elements_) / static_cast<double>(num_elements_);
}

int64_t Weights::size_bytes() const {
  int64_t bytes = vectors_->size_bytes();
  for (const Linear& linear : linears_) bytes += linear.weight->size_bytes();
  return bytes;
}

const float* Weights::operator[](VectorId id) const {
  return static_cast<const float*>(vectors_->data()) + vector_offsets_[id.index];
}

}  // namespace octavo
