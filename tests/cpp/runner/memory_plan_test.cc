#include "runner/memory_plan.h"

#include <gtest/gtest.h>

#include "base/errors.h"
#include "model/tiny_model.h"

namespace octavo::testing {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

struct Fixture {
  ReferenceBackend backend;
  std::unique_ptr<Model> model = create_model(tiny_config(), backend);
  RunnerConfig config{.max_model_len = 128, .max_num_seqs = 4, .max_num_batched_tokens = 64};

  MemoryPlan plan(int64_t weight_bytes = 0) {
    return plan_memory(config, *model, backend, weight_bytes);
  }
  std::string memory_error(int64_t weight_bytes = 0) {
    try {
      plan(weight_bytes);
    } catch (const OutOfMemoryError& error) {
      return error.what();
    }
    return "";
  }
};

TEST(MemoryPlan, BlockBytesCoverKeysAndValuesOfEveryLayer) {
  Fixture f;
  EXPECT_EQ(f.plan().block_bytes, 2 * 2 * (2 * 16 * 10) * 4);
  f.config.kv_cache_dtype = "int8";
  EXPECT_EQ(f.plan().block_bytes, 2 * 2 * (2 * 16 * (10 + 4)));
}

TEST(MemoryPlan, HostCacheIsAQuarterWithinBounds) {
  Fixture f;
  f.backend.free_bytes = 8192 * kMiB;
  EXPECT_NEAR(static_cast<double>(f.plan().kv_cache_bytes()), 2048.0 * kMiB, 1.0 * kMiB);
  f.backend.free_bytes = 1024 * kMiB;
  EXPECT_NEAR(static_cast<double>(f.plan().kv_cache_bytes()), 512.0 * kMiB, 1.0 * kMiB);
  f.backend.free_bytes = 100 * 1024 * kMiB;
  EXPECT_NEAR(static_cast<double>(f.plan().kv_cache_bytes()), 4096.0 * kMiB, 1.0 * kMiB);
  f.backend.free_bytes = 100 * kMiB;
  EXPECT_LE(f.plan().kv_cache_bytes(), 100 * kMiB);
  EXPECT_GE(f.plan().kv_cache_bytes(), 90 * kMiB);
}

TEST(MemoryPlan, DeviceCacheTakesWhatUtilizationLeaves) {
  Fixture f;
  f.config.shares_host_memory = false;
  f.config.gpu_memory_utilization = 0.5;
  f.backend.total_bytes = 1000 * kMiB;
  f.backend.free_bytes = 900 * kMiB;
  const MemoryPlan plan = f.plan(100 * kMiB);
  EXPECT_EQ(plan.available_bytes, 400 * kMiB);
  EXPECT_LE(plan.kv_cache_bytes() + plan.weight_bytes + plan.workspace_bytes, 400 * kMiB);
  EXPECT_GT(plan.kv_cache_bytes() + plan.weight_bytes + plan.workspace_bytes + plan.block_bytes,
            400 * kMiB);
}

TEST(MemoryPlan, ExplicitSizesWin) {
  Fixture f;
  f.config.kv_cache_memory_bytes = 64 * kMiB;
  EXPECT_EQ(f.plan().num_blocks, 64 * kMiB / f.plan().block_bytes);
  f.config.num_blocks = 9;
  EXPECT_EQ(f.plan().num_blocks, 9);
}

TEST(MemoryPlan, AutomaticLengthIsTheModelsOrWhatFits) {
  Fixture f;
  f.config.max_model_len = 0;
  EXPECT_EQ(f.plan().max_model_len, 256);
  f.config.num_blocks = 5;
  EXPECT_EQ(f.plan().max_model_len, 80);
}

TEST(MemoryPlan, ErrorsNameTheFlagThatHelps) {
  Fixture f;
  f.config.num_blocks = 5;
  EXPECT_NE(f.memory_error().find("lower --max-model-len to 80"), std::string::npos);
  f.config.num_blocks = 0;
  f.backend.free_bytes = 64 * kMiB;
  f.config.kv_cache_memory_bytes = 128 * kMiB;
  EXPECT_NE(f.memory_error().find("--kv-cache-memory-bytes"), std::string::npos);
  f.config.kv_cache_memory_bytes = 0;
  const std::string error = f.memory_error(100 * kMiB);
  EXPECT_NE(error.find("weights 100.0 MiB"), std::string::npos) << error;
  EXPECT_NE(error.find("64.0 MiB"), std::string::npos) << error;
  EXPECT_NE(error.find("--max-num-seqs"), std::string::npos) << error;
}

TEST(MemoryPlan, RefusesValuesOutOfRange) {
  const auto refused = [](auto change) {
    RunnerConfig config;
    change(config);
    try {
      validate(config);
    } catch (const ConfigError&) {
      return true;
    }
    return false;
  };
  EXPECT_FALSE(refused([](RunnerConfig&) {}));
  EXPECT_TRUE(refused([](RunnerConfig& c) { c.block_size = 0; }));
  EXPECT_TRUE(refused([](RunnerConfig& c) { c.max_num_seqs = 0; }));
  EXPECT_TRUE(refused([](RunnerConfig& c) { c.max_model_len = -1; }));
  EXPECT_TRUE(refused([](RunnerConfig& c) { c.max_num_batched_tokens = 0; }));
  EXPECT_TRUE(refused([](RunnerConfig& c) { c.gpu_memory_utilization = 1.5; }));
  EXPECT_TRUE(refused([](RunnerConfig& c) { c.kv_cache_memory_bytes = -5; }));
  Fixture f;
  f.config.max_model_len = 257;
  EXPECT_THROW(f.plan(), ConfigError);
  f.config.max_model_len = 256;
  f.config.kv_cache_dtype = "int3";
  EXPECT_THROW(f.plan(), ConfigError);
}

}  // namespace
}  // namespace octavo::testing
