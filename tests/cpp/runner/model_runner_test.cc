#include "runner/model_runner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <utility>

#include "base/errors.h"
#include "model/tiny_model.h"
#include "runner/lagging_backend.h"
#include "runner/warm_up.h"

namespace octavo::testing {
namespace {

struct Fixture {
  ReferenceBackend backend;
  std::unique_ptr<Model> model = tiny_model(backend);
  RunnerConfig config{.max_model_len = 256,
                      .block_size = 4,
                      .num_blocks = 64,
                      .max_num_seqs = 8,
                      .max_num_batched_tokens = 160};
  MemoryPlan plan = plan_memory(config, *model, backend, 0);
  ModelRunner runner{backend, *model, config, plan};
};

// One sequence on its own blocks, scheduled piece by piece.
struct Sequence {
  explicit Sequence(int64_t prompt_tokens, int32_t first_block = 0) {
    for (int64_t i = 0; i < prompt_tokens; ++i) {
      token_ids.push_back(static_cast<int32_t>(i * 5 % 61));
    }
    for (int32_t b = 0; b < 45; ++b) block_table.push_back((first_block + b) % 64);
    prompt = prompt_tokens;
  }
  ScheduledSequence schedule(int64_t begin, int64_t end, const SamplingParams& sampling) const {
    ScheduledSequence s;
    s.is_new_in_slot = begin == 0;
    s.token_ids = token_ids;
    s.num_prompt_tokens = prompt;
    s.num_computed_tokens = begin;
    s.num_scheduled_tokens = static_cast<int32_t>(end - begin);
    s.block_table = block_table;
    s.samples = end == std::ssize(token_ids);
    s.sampling = &sampling;
    return s;
  }
  std::vector<int32_t> token_ids, block_table;
  int64_t prompt;
};

ScheduledBatch batch_of(std::vector<ScheduledSequence> sequences) {
  ScheduledBatch batch;
  for (const ScheduledSequence& s : sequences) batch.num_tokens += s.num_scheduled_tokens;
  batch.sequences = std::move(sequences);
  return batch;
}

TEST(ModelRunner, OffsetsSayWhichEntriesBelongToWhom) {
  Fixture f;
  SamplingParams none, chosen, full;
  chosen.logprobs = 0;
  full.logprobs = 2;
  full.prompt_logprobs = 1;
  const Sequence a(3, 0), b(4, 10), c(5, 20);
  StepResult result;
  f.runner.run(batch_of({a.schedule(0, 3, chosen), b.schedule(0, 4, none), c.schedule(0, 5, full)}),
               result);
  EXPECT_EQ(result.logprob_offsets, (std::vector<int32_t>{0, 1, 1, 4}));
  EXPECT_EQ(result.prompt_logprob_offsets, (std::vector<int32_t>{0, 0, 0, 8}));
  EXPECT_EQ(result.token_ids.size(), 3u);
  EXPECT_EQ(result.logprobs[0].token_id, result.token_ids[0]);
  EXPECT_EQ(result.prompt_logprobs[0].token_id, c.token_ids[1]);
  EXPECT_EQ(result.prompt_logprobs[2].token_id, c.token_ids[2]);
}

TEST(ModelRunner, LongPromptLogprobsAreSampledInPieces) {
  Fixture f;
  SamplingParams sampling;
  sampling.prompt_logprobs = 0;
  const Sequence a(150);
  StepResult result;
  f.backend.sample_rows.clear();
  f.runner.run(batch_of({a.schedule(0, 150, sampling)}), result);
  EXPECT_EQ(f.backend.sample_rows, (std::vector<int64_t>{64, 64, 22}));
  ASSERT_EQ(result.prompt_logprobs.size(), 149u);
  for (size_t i = 0; i < 149; ++i) {
    EXPECT_EQ(result.prompt_logprobs[i].token_id, a.token_ids[i + 1]);
  }
}

TEST(ModelRunner, ChunksAndNeighboursChangeNothing) {
  Fixture f;
  SamplingParams sampling;
  sampling.logprobs = 3;
  const Sequence a(20, 0), b(30, 12);
  StepResult alone, together;
  f.runner.run(batch_of({a.schedule(0, 20, sampling)}), alone);
  f.runner.run(batch_of({a.schedule(0, 7, sampling)}), together);
  EXPECT_EQ(together.token_ids[0], -1);
  EXPECT_TRUE(together.logprobs.empty());
  f.runner.run(batch_of({b.schedule(0, 30, sampling), a.schedule(7, 20, sampling)}), together);
  EXPECT_EQ(together.token_ids[1], alone.token_ids[0]);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(together.logprobs[4 + i].token_id, alone.logprobs[i].token_id);
    EXPECT_EQ(together.logprobs[4 + i].logprob, alone.logprobs[i].logprob);
  }
}

TEST(ModelRunner, StepsAllocateNothingOnTheDevice) {
  Fixture f;
  f.runner.warm_up([](double) {});
  const int before = f.backend.num_allocations;
  SamplingParams sampling;
  const Sequence a(20);
  StepResult result;
  f.runner.run(batch_of({a.schedule(0, 20, sampling)}), result);
  EXPECT_EQ(f.backend.num_allocations, before);
}

TEST(ModelRunner, WarmUpReportsRisingProgress) {
  Fixture f;
  std::vector<double> seen;
  f.runner.warm_up([&](double share) { seen.push_back(share); });
  EXPECT_EQ(std::adjacent_find(seen.begin(), seen.end(), std::greater_equal<>()), seen.end());
  EXPECT_GT(seen.front(), 0.0);
  EXPECT_LT(seen.front(), 0.1) << "the cheapest shape comes first";
  EXPECT_DOUBLE_EQ(seen.back(), 1.0);
  f.runner.self_test();
}

TEST(ModelRunner, ARestoredCacheServesAsTheFirstOne) {
  Fixture f;
  SamplingParams sampling;
  const Sequence a(20);
  StepResult before, after;
  f.runner.run(batch_of({a.schedule(0, 20, sampling)}), before);
  f.runner.free_kv_cache();
  f.runner.free_kv_cache();
  f.runner.restore_kv_cache();
  f.runner.restore_kv_cache();
  f.runner.run(batch_of({a.schedule(0, 20, sampling)}), after);
  EXPECT_EQ(after.token_ids, before.token_ids);
  EXPECT_GE(after.token_ids[0], 0);
}

void load_adapter(Model& model, int32_t slot) {
  for (const LoraTarget& target : lora_targets(model.weights())) {
    const std::vector<float> a(2 * target.in_features, 0.1f), b(2 * target.out_features, 0.2f);
    model.loras().load(slot, target.name,
                       {1.0f,
                        {a.data(), DType::kFloat32, 2, target.in_features},
                        {b.data(), DType::kFloat32, target.out_features, 2}});
  }
}

// With and without adapters.
TEST(ModelRunner, ARestoredCacheHasTheGraphsOfTheFirstOne) {
  LaggingBackend backend;
  const auto model = tiny_model(backend);
  model->enable_loras({2, 2});
  model->allocate_loras();
  const RunnerConfig config{.max_model_len = 64,
                            .block_size = 4,
                            .num_blocks = 64,
                            .max_num_seqs = 4,
                            .max_num_batched_tokens = 16};
  const MemoryPlan plan = plan_memory(config, *model, backend, 0);
  ModelRunner runner(backend, *model, config, plan);
  runner.warm_up([](double) {});
  load_adapter(*model, 1);

  const Sequence a(6);
  SamplingParams sampling;
  sampling.logprobs = 0;
  // The log-probability of what a decode behind the prompt draws.
  const auto decode = [&](int32_t lora_slot) {
    StepResult result;
    for (const auto& [begin, end] : {std::pair{0, 5}, std::pair{5, 6}}) {
      ScheduledSequence row = a.schedule(begin, end, sampling);
      row.lora_slot = lora_slot;
      runner.run(batch_of({row}), result);
    }
    return result.logprobs.at(0).logprob;
  };
  backend.num_graph_launches = 0;
  const float plain = decode(-1), adapted = decode(1);
  EXPECT_NE(plain, adapted);
  EXPECT_EQ(backend.num_graph_launches, 2);
  runner.free_kv_cache();
  runner.restore_kv_cache();
  backend.num_graph_launches = 0;
  EXPECT_EQ(decode(-1), plain);
  EXPECT_EQ(backend.num_graph_launches, 1);
  EXPECT_EQ(decode(1), adapted);
  EXPECT_EQ(backend.num_graph_launches, 2);
}

TEST(ModelRunner, SelfTestFindsNaN) {
  struct BrokenBackend : ReferenceBackend {
    void linear(const LinearWeight& weight, TensorView x, TensorView out) override {
      ReferenceBackend::linear(weight, x, out);
      row_of(out, 0)[0] = std::numeric_limits<float>::quiet_NaN();
    }
  } backend;
  const auto model = tiny_model(backend);
  const RunnerConfig config{.num_blocks = 64, .max_num_seqs = 2, .max_num_batched_tokens = 32};
  const MemoryPlan plan = plan_memory(config, *model, backend, 0);
  ModelRunner runner(backend, *model, config, plan);
  EXPECT_THROW(runner.self_test(), DeviceError);
}

TEST(WarmUp, ShapesStayWithinTheLimits) {
  for (const int64_t max_num_seqs : {1, 3, 64}) {
    for (const int64_t num_blocks : {1, 5, 400}) {
      for (const int64_t budget : {1, 16, 100}) {
        RunnerConfig config{
            .block_size = 4, .max_num_seqs = max_num_seqs, .max_num_batched_tokens = budget};
        MemoryPlan plan;
        plan.num_blocks = num_blocks;
        plan.max_model_len = num_blocks * 4;
        for (const WarmUpShape& shape : warm_up_shapes(config, plan, false, 2)) {
          const int64_t blocks_each = (shape.prefill_tokens + 3) / 4;
          EXPECT_LE(shape.num_decodes + shape.num_prefills * blocks_each, num_blocks);
          EXPECT_LE(shape.num_decodes + shape.num_prefills * shape.prefill_tokens, budget);
          EXPECT_GE(shape.num_decodes + shape.num_prefills, 1);
          EXPECT_LE(shape.num_decodes + shape.num_prefills, max_num_seqs);
        }
      }
    }
  }
}

TEST(WarmUp, GraphsAreMadeWithAndWithoutAdapters) {
  const RunnerConfig config{.block_size = 4, .max_num_seqs = 8, .max_num_batched_tokens = 16};
  MemoryPlan plan;
  plan.num_blocks = 100;
  plan.max_model_len = 64;
  const size_t num_shapes = warm_up_shapes(config, plan, true).size();
  const std::vector<WarmUpShape> shapes = warm_up_shapes(config, plan, true, 3);
  ASSERT_EQ(shapes.size(), 2 * num_shapes);
  for (size_t i = 0; i < shapes.size(); ++i) EXPECT_EQ(shapes[i].num_loras, i < num_shapes ? 0 : 3);
  const WarmUpBatch batch({4, 0, 0, 3}, 4, 50);
  EXPECT_TRUE(has_loras(batch.batch()));
  EXPECT_EQ(batch.batch().sequences[3].lora_slot, 0);
  EXPECT_FALSE(has_loras(WarmUpBatch({4, 0, 0, 0}, 4, 50).batch()));
}

}  // namespace
}  // namespace octavo::testing
