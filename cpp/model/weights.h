// The weights of a model: which tensors a checkpoint must bring, and where each of them goes.
//
// An architecture declares its weights once, in its constructor; everything else (planning, loading
// from several threads, dummy values, naming what is missing) follows from that table. Projections
// that are computed together (q|k|v, gate|up) are one weight that several tensors fill.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "backend/backend.h"
#include "model/dummy_pool.h"

namespace octavo {

// What is told apart when weights may keep codes.
enum class LinearRole : uint8_t { kPlain, kProjection, kExperts };

enum class WeightKind : uint8_t { kMatrix, kBias, kVector };

// One tensor of a checkpoint. Biases and vectors have rows == 1.
struct WeightSpec {
  std::string name;  // Hugging Face name, e.g. "model.layers.0.self_attn.q_proj.weight"
  int64_t rows = 0;
  int64_t cols = 0;
  WeightKind kind = WeightKind::kMatrix;
  int32_t target = 0;     // index of the linear weight (matrix, bias) or of the vector
  int64_t row_begin = 0;  // where it starts in the target's out_features (matrix, bias)
  float offset = 0.0f;    // added to what the checkpoint stores (vector)
};

// Handles of declared weights.
struct LinearId {
  int32_t index = -1;
};
struct VectorId {
  int32_t index = -1;
};

// A projection `name` with `out_features` rows, inside a fused weight or alone.
struct Projection {
  std::string name;  // without ".weight"
  int64_t out_features = 0;
};

class Weights {
 public:
  using TypeOf = std::function<DType(const WeightSpec&)>;

  explicit Weights(Backend& backend) : backend_(backend) {}

  // Declares one weight made of `parts`, one below the other; with a bias each part has one.
  LinearId declare_linear(std::span<const Projection> parts, int64_t in_features, bool has_bias);
  LinearId declare_linear(const Projection& projection, int64_t in_features, bool has_bias = false);
  // Declares a float32 vector. `name` is complete; `offset` is added to what comes.
  VectorId declare_vector(std::string name, int64_t size, double offset = 0.0);

  const std::vector<WeightSpec>& specs() const { return specs_; }

  // Device bytes of all weights when each tensor comes in the dtype that `dtype_of` returns.
  int64_t planned_bytes(const TypeOf& dtype_of) const;

  // Makes the declared weights, still empty; `dtype_of` says how each tensor will come. Projections
  // whose tensors all come in one type of codes may then take no other.
  // Requires: called once, after the last declaration. Throws: OutOfMemoryError.
  void allocate(const TypeOf& dtype_of = [](const WeightSpec&) { return DType::kFloat32; });

  // Places one tensor. Safe from several threads for different names. Requires: allocate().
  // Throws: CheckpointError naming the tensor when it is unknown, mis-shaped, mis-typed or came
  // before.
  void load(std::string_view name, const WeightView& view);

  // Fills every weight with small values that look random and depend on `seed` only, norms with
  // ones; projections in the types that allocate() was told. Requires: allocate(), and no load()
  // before.
  void load_dummy(uint64_t seed);

  // Throws: CheckpointError naming the tensors that did not come.
  void check_complete() const;

  // Share of the elements that have come, 0 to 1. Callable from any thread.
  double progress() const;

  // Device bytes held. Requires: allocate().
  int64_t size_bytes() const;

  int64_t num_linears() const { return std::ssize(linears_); }
  // Whether it is a projection of attention or of a dense MLP.
  bool is_projection(LinearId id) const {
    return linears_[id.index].role == LinearRole::kProjection;
  }

  const LinearWeight& operator[](LinearId id) const { return *linears_[id.index].weight; }
  const float* operator[](VectorId id) const;

 private:
  struct Linear {
    int64_t out_features = 0;
    int64_t in_features = 0;
    bool has_bias = false;
    LinearRole role = LinearRole::kPlain;
    int64_t tensor_rows = 0;               // of the first tensor
    DType source_dtype = DType::kFloat32;  // of all its tensors; float32 where they differ
    std::unique_ptr<LinearWeight> weight;
  };

  void add_spec(WeightSpec spec);
  std::unique_ptr<LinearWeight> create(const Linear& linear);
  int64_t matrix_bytes(const WeightSpec& spec, DType dtype) const;
  void place(const WeightSpec& spec, const WeightView& view);
  void place_vector(const WeightSpec& spec, const WeightView& view);
  void place_dummy(const WeightSpec& spec, const DummyPool& pool, uint64_t salt);
  void expect_types(const TypeOf& dtype_of);
  DType dummy_type(const WeightSpec& spec) const;

  Backend& backend_;
  std::vector<WeightSpec> specs_;
  std::unordered_map<std::string_view, size_t> index_;  // filled by allocate(), keys in specs_
  std::vector<Linear> linears_;
  std::vector<int64_t> vector_offsets_;  // in floats
  int64_t vector_floats_ = 0;
  std::unique_ptr<DeviceBuffer> vectors_;
  std::unique_ptr<std::atomic<bool>[]> is_loaded_;  // [specs_.size()]
  std::atomic<int64_t> num_loaded_elements_{0};
  int64_t num_elements_ = 0;
};

}  // namespace octavo
