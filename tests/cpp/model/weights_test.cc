#include "model/weights.h"

#include <gtest/gtest.h>

#include <set>
#include <thread>

#include "base/dequantize.h"
#include "base/errors.h"
#include "model/dummy_pool.h"
#include "model/reference_backend.h"
#include "model/tiny_model.h"

namespace octavo::testing {
namespace {

std::vector<float> counting(int64_t size, float begin) {
  std::vector<float> values(size);
  for (int64_t i = 0; i < size; ++i) values[i] = begin + static_cast<float>(i);
  return values;
}

WeightView view_of(const std::vector<float>& values, int64_t rows) {
  return {values.data(), DType::kFloat32, rows, std::ssize(values) / rows};
}

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const CheckpointError& error) {
    return error.what();
  }
  return "";
}

struct Fused {
  ReferenceBackend backend;
  Weights weights{backend};
  LinearId qk;
  VectorId norm;

  Fused() {
    const std::array<Projection, 2> parts = {{{"q", 2}, {"k", 3}}};
    qk = weights.declare_linear(parts, 4, true);
    norm = weights.declare_vector("norm.weight", 5);
    weights.allocate();
  }
};

TEST(Weights, FusedPartsStandOneBelowTheOther) {
  Fused f;
  f.weights.load("k.weight", view_of(counting(12, 100), 3));
  f.weights.load("q.weight", view_of(counting(8, 0), 2));
  f.weights.load("q.bias", view_of({1, 2}, 1));
  f.weights.load("k.bias", view_of({3, 4, 5}, 1));
  const auto& linear = static_cast<const ReferenceLinear&>(f.weights[f.qk]);
  EXPECT_EQ(linear.bias, (std::vector<float>{1, 2, 3, 4, 5}));
  EXPECT_EQ(linear.values[7], 7.0f);
  EXPECT_EQ(linear.values[8], 100.0f);
  EXPECT_EQ(linear.values[19], 111.0f);
}

TEST(Weights, VectorsKeepTheirValues) {
  Fused f;
  f.weights.load("norm.weight", view_of({9, 8, 7, 6, 5}, 1));
  EXPECT_EQ(f.weights[f.norm][0], 9.0f);
  EXPECT_EQ(f.weights[f.norm][4], 5.0f);
}

TEST(Weights, RefusesWrongTensorsByName) {
  Fused f;
  const std::vector<float> values = counting(12, 0);
  EXPECT_NE(error_of([&] { f.weights.load("z.weight", view_of(values, 3)); }).find("'z.weight'"),
            std::string::npos);
  EXPECT_NE(error_of([&] { f.weights.load("q.weight", view_of(values, 3)); }).find("[3, 4]"),
            std::string::npos);
  const WeightView integers{values.data(), DType::kInt32, 3, 4};
  EXPECT_NE(error_of([&] { f.weights.load("k.weight", integers); }).find("int32"),
            std::string::npos);
  const WeightView blocks{values.data(), DType::kQ4_0, 3, 4};
  EXPECT_NE(error_of([&] { f.weights.load("k.weight", blocks); }).find("blocks"),
            std::string::npos);
  f.weights.load("k.weight", view_of(values, 3));
  EXPECT_NE(error_of([&] { f.weights.load("k.weight", view_of(values, 3)); }).find("twice"),
            std::string::npos);
}

TEST(Weights, NamesWhatIsMissing) {
  Fused f;
  EXPECT_DOUBLE_EQ(f.weights.progress(), 0.0);
  f.weights.load("k.weight", view_of(counting(12, 0), 3));
  f.weights.load("q.weight", view_of(counting(8, 0), 2));
  f.weights.load("norm.weight", view_of(counting(5, 0), 1));
  const std::string error = error_of([&] { f.weights.check_complete(); });
  EXPECT_NE(error.find("q.bias, k.bias"), std::string::npos) << error;
  EXPECT_EQ(error.find("q.weight"), std::string::npos) << error;
  EXPECT_DOUBLE_EQ(f.weights.progress(), 25.0 / 30.0);
  f.weights.load("q.bias", view_of({1, 2}, 1));
  f.weights.load("k.bias", view_of({3, 4, 5}, 1));
  f.weights.check_complete();
  EXPECT_DOUBLE_EQ(f.weights.progress(), 1.0);
}

TEST(Weights, LongListsOfMissingTensorsAreCut) {
  ReferenceBackend backend;
  const std::unique_ptr<Model> model = create_model(tiny_config(), backend);
  model->weights().allocate();
  const size_t more = model->weights().specs().size() - 8;
  const std::string error = error_of([&] { model->weights().check_complete(); });
  EXPECT_NE(error.find(" and " + std::to_string(more) + " more"), std::string::npos) << error;
}

TEST(Weights, LoadsFromSeveralThreads) {
  ReferenceBackend backend;
  const std::unique_ptr<Model> model = create_model(tiny_config(), backend);
  Weights& weights = model->weights();
  weights.allocate();
  std::vector<std::thread> threads;
  for (size_t i = 0; i < 4; ++i) {
    threads.emplace_back([&weights, i] {
      for (size_t j = i; j < weights.specs().size(); j += 4) {
        const WeightSpec& spec = weights.specs()[j];
        const std::vector<float> values(spec.rows * spec.cols, 1.0f);
        weights.load(spec.name, view_of(values, spec.rows));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  weights.check_complete();
}

TEST(Weights, DummyValuesAreSmallCompleteAndRepeatable) {
  ReferenceBackend backend;
  const std::array<std::unique_ptr<Model>, 2> models = {tiny_model(backend), tiny_model(backend)};
  std::set<float> seen;
  const auto& first = static_cast<const ReferenceLinear&>(models[0]->weights()[LinearId{0}]);
  const auto& second = static_cast<const ReferenceLinear&>(models[1]->weights()[LinearId{0}]);
  models[0]->weights().check_complete();
  EXPECT_EQ(first.values, second.values);
  for (float value : first.values) {
    EXPECT_LT(std::abs(value), 0.04f);
    seen.insert(value);
  }
  EXPECT_GT(seen.size(), 100u);
  EXPECT_EQ(models[0]->weights()[VectorId{0}][0], 1.0f);
}

TEST(Weights, PlansBytesByTheCheckpointsTypes) {
  Fused f;
  const int64_t bytes = f.weights.planned_bytes([](const WeightSpec& spec) {
    return spec.name == "q.weight" ? DType::kFloat32 : DType::kBFloat16;
  });
  EXPECT_EQ(bytes, 8 * 4 + 12 * 2 + 5 * 4 + 16 * 4);
}

// Notes what it is told of projections, and in which types rows come.
class NotingBackend : public ReferenceBackend {
 public:
  std::unique_ptr<LinearWeight> create_projection(int64_t out_features, int64_t in_features,
                                                  bool has_bias, DType source) override {
    sources.push_back(source);
    return ReferenceBackend::create_projection(out_features, in_features, has_bias, source);
  }
  std::unique_ptr<LinearWeight> create_experts(int64_t out_features, int64_t in_features,
                                               int64_t tensor_rows, DType source) override {
    experts.emplace_back(tensor_rows, source);
    return ReferenceBackend::create_experts(out_features, in_features, tensor_rows, source);
  }
  void load_rows(LinearWeight& weight, int64_t row_begin, const WeightView& view) override {
    loaded.insert(view.dtype);
    ReferenceBackend::load_rows(weight, row_begin, view);
  }

  std::vector<DType> sources;
  std::vector<std::pair<int64_t, DType>> experts;
  std::set<DType> loaded;
};

TEST(Weights, ProjectionsAreMadeForTheTypeThatAllOfTheirTensorsCome) {
  NotingBackend backend;
  Weights weights(backend);
  const std::array<Projection, 2> qk = {{{"q_proj", 8}, {"k_proj", 8}}};
  const std::array<Projection, 2> gate_up = {{{"gate_proj", 8}, {"up_proj", 8}}};
  weights.declare_linear(qk, 64, true);
  weights.declare_linear(gate_up, 64, false);
  weights.declare_linear({"lm_head", 8}, 64);
  weights.declare_linear({"mlp.gate", 4}, 64);
  const std::array<Projection, 2> down = {
      {{"mlp.experts.0.down_proj", 24}, {"mlp.experts.1.down_proj", 24}}};
  weights.declare_linear(down, 64, false);
  weights.allocate([](const WeightSpec& spec) {
    return spec.name == "k_proj.weight" ? DType::kBFloat16 : DType::kInt4G32;
  });
  EXPECT_EQ(backend.sources, (std::vector{DType::kFloat32, DType::kInt4G32}));
  EXPECT_EQ(backend.experts, (std::vector{std::pair(int64_t{24}, DType::kInt4G32)}));
  weights.load_dummy(1);
  EXPECT_EQ(backend.loaded, (std::set{DType::kBFloat16, DType::kInt4G32}));
}

TEST(Weights, DummyCodesAreSmall) {
  for (const DType dtype : {DType::kInt4G32, DType::kInt4G64, DType::kInt4G128, DType::kFloat8Rows,
                            DType::kFloat8Blocks}) {
    const DummyPool pool(dtype, 3);
    std::vector<float> values(1 << 14);
    dequantize(dtype, pool.at(12345), std::ssize(values), values.data());
    for (const float value : values) ASSERT_LE(std::abs(value), 0.036f) << dtype_info(dtype).name;
    EXPECT_GT(std::set(values.begin(), values.end()).size(), 10u);
  }
}

TEST(Weights, AnOffsetIsAddedToWhatAVectorsTensorHolds) {
  ReferenceBackend backend;
  Weights weights(backend);
  const VectorId id = weights.declare_vector("norm.weight", 3, 1.0);
  weights.allocate();
  const std::vector<float> values = {0.5f, -1.0f, 2.0f};
  weights.load("norm.weight", {values.data(), DType::kFloat32, 1, 3});
  EXPECT_EQ(weights[id][0], 1.5f);
  EXPECT_EQ(weights[id][1], 0.0f);
  EXPECT_EQ(weights[id][2], 3.0f);
}

}  // namespace
}  // namespace octavo::testing
