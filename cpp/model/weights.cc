#include "model/weights.h"

#include <algorithm>
#include <map>
#include <utility>

#include "base/dequantize.h"
#include "base/errors.h"

namespace octavo {
namespace {

constexpr int64_t kVectorAlignmentFloats = 16;  // 64 bytes: whole cache lines, vector loads
constexpr size_t kMaxNamesInError = 8;

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

// By the names of checkpoints; routers and heads are plain. What quantisation at load and adapters
// apply to are projections.
LinearRole role_of(std::string_view name) {
  if (name.find(".experts.") != std::string_view::npos) return LinearRole::kExperts;
  return name.ends_with("_proj") ? LinearRole::kProjection : LinearRole::kPlain;
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
  const Projection& first = parts.front();
  linears_.push_back({row, in_features, has_bias, role_of(first.name), first.out_features,
                      DType::kFloat32, nullptr});
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

int64_t Weights::planned_bytes(const TypeOf& dtype_of) const {
  int64_t bytes = vector_floats_ * static_cast<int64_t>(sizeof(float));
  for (const WeightSpec& spec : specs_) {
    if (spec.kind == WeightKind::kMatrix) {
      bytes += matrix_bytes(spec, dtype_of(spec));
    } else if (spec.kind == WeightKind::kBias) {
      bytes += spec.cols * static_cast<int64_t>(sizeof(float));
    }
  }
  return bytes;
}

std::unique_ptr<LinearWeight> Weights::create(const Linear& linear) {
  const int64_t rows = linear.out_features, cols = linear.in_features;
  switch (linear.role) {
    case LinearRole::kProjection:
      return backend_.create_projection(rows, cols, linear.has_bias, linear.source_dtype);
    case LinearRole::kExperts:
      check(!linear.has_bias, "experts have no bias");
      return backend_.create_experts(rows, cols, linear.tensor_rows, linear.source_dtype);
    case LinearRole::kPlain:
      break;
  }
  return backend_.create_linear(rows, cols, linear.has_bias);
}

int64_t Weights::matrix_bytes(const WeightSpec& spec, DType dtype) const {
  switch (linears_[spec.target].role) {
    case LinearRole::kProjection:
      return backend_.projection_bytes(spec.rows, spec.cols, dtype);
    case LinearRole::kExperts:
      return backend_.experts_bytes(spec.rows, spec.cols, dtype);
    case LinearRole::kPlain:
      break;
  }
  return backend_.linear_bytes(spec.rows, spec.cols, dtype);
}

void Weights::allocate(const TypeOf& dtype_of) {
  check(is_loaded_ == nullptr, "weights are allocated once");
  expect_types(dtype_of);
  for (Linear& linear : linears_) {
    linear.weight = create(linear);
  }
  vectors_ = backend_.allocate(vector_floats_ * static_cast<int64_t>(sizeof(float)));
  is_loaded_ = std::make_unique<std::atomic<bool>[]>(specs_.size());
  for (size_t i = 0; i < specs_.size(); ++i) {
    check(index_.emplace(specs_[i].name, i).second, "a weight is declared twice");
  }
}

void Weights::expect_types(const TypeOf& dtype_of) {
  std::vector<bool> is_known(linears_.size());
  for (const WeightSpec& spec : specs_) {
    if (spec.kind != WeightKind::kMatrix) continue;
    Linear& linear = linears_[spec.target];
    const DType dtype = dtype_of(spec);
    const bool is_same = !is_known[spec.target] || linear.source_dtype == dtype;
    linear.source_dtype = is_same ? dtype : DType::kFloat32;
    is_known[spec.target] = true;
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
  std::map<DType, DummyPool> pools;
  const auto pool_of = [&](DType dtype) -> const DummyPool& {
    return pools.try_emplace(dtype, dtype, seed).first->second;
  };
  for (size_t i = 0; i < specs_.size(); ++i) {
    const WeightSpec& spec = specs_[i];
    if (spec.kind == WeightKind::kVector) {
      const std::vector<float> ones(spec.cols, 1.0f);
      place(spec, {ones.data(), DType::kFloat32, 1, spec.cols});
    } else {
      place_dummy(spec, pool_of(dummy_type(spec)), i);
    }
    is_loaded_[i] = true;
    num_loaded_elements_ += spec.rows * spec.cols;
  }
}

DType Weights::dummy_type(const WeightSpec& spec) const {
  const Linear& linear = linears_[spec.target];
  const bool is_coded = spec.kind == WeightKind::kMatrix && linear.role != LinearRole::kPlain &&
                        has_dummies(linear.source_dtype) &&
                        spec.cols % dtype_info(linear.source_dtype).block_elements == 0;
  return is_coded ? linear.source_dtype : DType::kBFloat16;
}

// Cuts blocks of rows from the pool at a different place each.
void Weights::place_dummy(const WeightSpec& spec, const DummyPool& pool, uint64_t salt) {
  const int64_t pool_size = pool.num_elements();
  check(spec.cols <= pool_size / 2, "rows too long for the pool of dummy values");
  const int64_t rows_at_once = std::max<int64_t>(1, pool_size / 2 / spec.cols / 64 * 64);
  for (int64_t row = 0; row < spec.rows; row += rows_at_once) {
    const int64_t rows = std::min(rows_at_once, spec.rows - row);
    const auto spare = static_cast<uint64_t>(pool_size - rows * spec.cols);
    const uint64_t begin = (salt * 7919 + static_cast<uint64_t>(row) * 104729) % (spare + 1);
    WeightSpec part = spec;
    part.row_begin += row;
    place(part, {pool.at(static_cast<int64_t>(begin)), pool.dtype(), rows, spec.cols});
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
