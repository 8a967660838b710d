// Overlapped steps and graphs give the tokens of one eager step after the other: a whole engine on
// a device that lags behind, against the same engine on one that does not.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/errors.h"
#include "engine/engine.h"
#include "engine/taken_outputs.h"
#include "model/tiny_model.h"
#include "runner/lagging_backend.h"
#include "runner/model_runner.h"
#include "sched/fake_runner.h"

namespace octavo::testing {
namespace {

constexpr int64_t kNumBlocks = 26;

EngineConfig small_config(bool caches) {
  EngineConfig config;
  config.max_model_len = 64;
  config.block_size = 4;
  config.max_num_seqs = 6;
  config.max_num_batched_tokens = 24;
  config.enable_prefix_caching = caches;
  config.eos_token_ids = {3, 17};
  config.max_loras = 2;
  return config;
}

// A model on a backend with its own engine, warmed up, and two adapters with the ids 1 and 2.
struct ModelEngine {
  ModelEngine(std::unique_ptr<ReferenceBackend> device, const EngineConfig& config)
      : backend(std::move(device)) {
    model->enable_loras({config.max_loras, 2});
    model->allocate_loras();
    RunnerConfig runner_config;
    runner_config.max_model_len = config.max_model_len;
    runner_config.block_size = config.block_size;
    runner_config.num_blocks = kNumBlocks;
    runner_config.max_num_seqs = config.max_num_seqs;
    runner_config.max_num_batched_tokens = config.max_num_batched_tokens;
    auto runner = std::make_unique<ModelRunner>(*backend, *model, runner_config,
                                                plan_memory(runner_config, *model, *backend, 0));
    runner->warm_up([](double) {});
    engine =
        std::make_unique<Engine>(config, model->config().vocab_size, kNumBlocks, std::move(runner));
    for (int32_t i = 0; i < config.max_loras; ++i) load_lora();
  }

  void load_lora() {
    const LoraSlots::Lease lease = engine->begin_lora();
    std::mt19937 random(static_cast<uint32_t>(lease.id));
    std::normal_distribution<float> normal(0.0f, 0.3f);
    for (const LoraTarget& target : lora_targets(model->weights())) {
      std::vector<float> a(2 * target.in_features), b(target.out_features * 2);
      for (std::vector<float>* values : {&a, &b}) {
        for (float& value : *values) value = normal(random);
      }
      model->loras().load(lease.slot, target.name,
                          {1.0f,
                           {a.data(), DType::kFloat32, 2, target.in_features},
                           {b.data(), DType::kFloat32, target.out_features, 2}});
    }
    engine->open_lora(lease.id);
  }

  std::unique_ptr<ReferenceBackend> backend;
  std::unique_ptr<Model> model = tiny_model(*backend);
  std::unique_ptr<Engine> engine;
};

// Prompts that share beginnings, ends of every kind, some of several sequences, some that need the
// host between their steps.
Request random_request(uint64_t id, std::mt19937& random) {
  Request request;
  request.id = id;
  const auto shared = static_cast<int32_t>(random() % 3);
  const auto num_shared = static_cast<int32_t>(random() % 18);
  for (int32_t i = 0; i < num_shared; ++i) request.token_ids.push_back((shared * 13 + i) % 61);
  const auto num_own = static_cast<int32_t>(1 + random() % 12);
  for (int32_t i = 0; i < num_own; ++i) {
    request.token_ids.push_back(static_cast<int32_t>(random() % 61));
  }
  request.lora_id = random() % 2 == 0 ? 0 : 1 + random() % 2;
  SamplingParams& sampling = request.sampling;
  sampling.max_tokens = static_cast<int32_t>(1 + random() % 24);
  sampling.ignore_eos = random() % 2 == 0;
  sampling.n = random() % 6 == 0 ? 2 : 1;
  if (random() % 3 == 0) sampling.stop_token_ids = {static_cast<int32_t>(random() % 61)};
  if (random() % 4 == 0) sampling.logprobs = static_cast<int32_t>(random() % 3);
  if (random() % 8 == 0) sampling.bad_words = {{1, 2}};
  return request;
}

// Sends the requests a few at a time, aborts every seventh on the way, and takes all there is.
TakenOutputs serve(Engine& engine, uint32_t seed, int num_requests) {
  std::mt19937 random(seed);
  TakenOutputs taken;
  const auto step = [&] {
    const bool has_work = engine.step();
    taken.take(engine);
    return has_work;
  };
  for (int id = 0; id < num_requests; ++id) {
    engine.submit(random_request(id, random));
    if (id % 7 == 6) engine.abort(id - 2);
    for (uint64_t i = random() % 5; i > 0; --i) step();
  }
  while (step()) {
  }
  return taken;
}

void expect_equal(const TakenOutputs& actual, const TakenOutputs& expected) {
  ASSERT_EQ(actual.all().size(), expected.all().size());
  for (const auto& [name, wanted] : expected.all()) {
    const TakenSequence& got = actual.at(name.first, name.second);
    const std::string which =
        "request " + std::to_string(name.first) + " sequence " + std::to_string(name.second);
    if (wanted.finish_reason == FinishReason::kAbort || got.finish_reason == FinishReason::kAbort) {
      const size_t common = std::min(got.token_ids.size(), wanted.token_ids.size());
      EXPECT_TRUE(std::equal(got.token_ids.begin(), got.token_ids.begin() + common,
                             wanted.token_ids.begin()))
          << which;
      continue;
    }
    EXPECT_EQ(got.token_ids, wanted.token_ids) << which;
    EXPECT_EQ(got.finish_reason, wanted.finish_reason) << which;
    EXPECT_EQ(got.logprobs.size(), wanted.logprobs.size()) << which;
    EXPECT_TRUE(std::ranges::equal(got.logprobs, wanted.logprobs, {}, &LogprobEntry::logprob,
                                   &LogprobEntry::logprob))
        << which;
  }
}

class OverlapTest : public ::testing::TestWithParam<bool> {};

TEST_P(OverlapTest, GivesTheTokensOfStepsOneByOne) {
  const EngineConfig config = small_config(GetParam());
  int64_t num_preemptions = 0, num_hits = 0, num_graph_launches = 0;
  for (uint32_t seed = 1; seed <= 4; ++seed) {
    ModelEngine in_turn(std::make_unique<ReferenceBackend>(), config);
    const TakenOutputs expected = serve(*in_turn.engine, seed, 40);
    for (const bool has_graphs : {false, true}) {
      ModelEngine lagging(std::make_unique<LaggingBackend>(has_graphs), config);
      expect_equal(serve(*lagging.engine, seed, 40), expected);
      const EngineStats stats = lagging.engine->stats();
      EXPECT_EQ(stats.num_free_blocks, kNumBlocks);
      EXPECT_EQ(stats.num_running + stats.num_waiting, 0);
      num_preemptions += stats.num_preemptions;
      num_hits += stats.num_prefix_hit_tokens;
      num_graph_launches += static_cast<LaggingBackend&>(*lagging.backend).num_graph_launches;
    }
  }
  EXPECT_GT(num_preemptions, 0);
  EXPECT_EQ(num_hits > 0, GetParam());
  EXPECT_GT(num_graph_launches, 100);
}

INSTANTIATE_TEST_SUITE_P(PrefixCaching, OverlapTest, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "On" : "Off"; });

// How the engine goes on when an overlapped step fails.
class OverlapFailureTest : public ::testing::Test {
 protected:
  OverlapFailureTest() {
    const EngineConfig config = small_config(true);
    auto runner = std::make_unique<FakeRunner>(FakeRunnerOptions{
        61, kNumBlocks, config.block_size, config.max_num_seqs, config.max_num_batched_tokens, 2});
    runner_ = runner.get();
    engine_ = std::make_unique<Engine>(config, 61, kNumBlocks, std::move(runner));
    for (uint64_t id = 1; id <= 2; ++id) engine_->submit(request(id));
    for (int i = 0; i < 3; ++i) engine_->step();
  }

  static Request request(uint64_t id) {
    Request request;
    request.id = id;
    request.token_ids = {static_cast<int32_t>(id), 5, 6};
    request.sampling.temperature = 0.0f;
    request.sampling.max_tokens = 9;
    request.sampling.ignore_eos = true;
    return request;
  }

  void run() {
    while (engine_->step()) taken_.take(*engine_);
    taken_.take(*engine_);
  }

  FakeRunner* runner_ = nullptr;
  std::unique_ptr<Engine> engine_;
  TakenOutputs taken_;
};

TEST_F(OverlapFailureTest, AStepThatCannotBeLaunchedFailsBehindTheOneInFlight) {
  runner_->before_run = [this](const ScheduledBatch&) {
    runner_->before_run = nullptr;
    throw DeviceError("launch", false);
  };
  engine_->step();
  engine_->submit(request(3));
  run();
  // Two steps were taken in before, and the one in flight gave a token of each too.
  for (uint64_t id = 1; id <= 2; ++id) {
    EXPECT_EQ(taken_.at(id).finish_reason, FinishReason::kError);
    EXPECT_EQ(taken_.at(id).token_ids.size(), 3);
  }
  EXPECT_EQ(taken_.at(3).finish_reason, FinishReason::kLength);
  EXPECT_EQ(engine_->stats().num_free_blocks, kNumBlocks);
}

TEST_F(OverlapFailureTest, AStepThatFailsEndsWhatTheNextOneCountedOn) {
  engine_->submit(request(3));
  runner_->after_run = [this](const ScheduledBatch&, StepResult&) {
    runner_->after_run = nullptr;
    throw DeviceError("wait", false);
  };
  run();
  for (uint64_t id = 1; id <= 2; ++id) {
    EXPECT_EQ(taken_.at(id).finish_reason, FinishReason::kError);
    EXPECT_EQ(taken_.at(id).token_ids.size(), 2);
  }
  EXPECT_EQ(taken_.at(3).finish_reason, FinishReason::kLength);
  EXPECT_EQ(taken_.at(3).token_ids.size(), 9);
  EXPECT_TRUE(engine_->is_healthy());
  EXPECT_EQ(engine_->stats().num_free_blocks, kNumBlocks);
}

TEST_F(OverlapFailureTest, ALostDeviceEndsAllThatIsInFlight) {
  runner_->after_run = [](const ScheduledBatch&, StepResult&) { throw DeviceError("lost", true); };
  run();
  EXPECT_FALSE(engine_->is_healthy());
  EXPECT_EQ(taken_.num_finished(FinishReason::kError), 2);
  engine_->shutdown();
  EXPECT_EQ(engine_->stats().num_free_blocks, kNumBlocks);
}

TEST_F(OverlapFailureTest, ShutdownWithAStepInFlightEndsEverySequence) {
  engine_->shutdown();
  taken_.take(*engine_);
  EXPECT_EQ(taken_.num_finished(FinishReason::kAbort), 2);
  EXPECT_EQ(engine_->stats().num_free_blocks, kNumBlocks);
}

}  // namespace
}  // namespace octavo::testing
