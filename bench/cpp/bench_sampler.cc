// Sampling on the CPU from normal logits with standard deviation 3: microseconds a call for a batch
// of rows, every kind of parameters; top_p_90_flat at ten times the temperature.
//   bench_sampler --benchmark_filter=top_p
#include <benchmark/benchmark.h>

#include <functional>
#include <random>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace octavo {
namespace {

constexpr int64_t kHistory = 512;

struct Kind {
  const char* name;
  std::function<void(SamplingParams&)> set;
};
const Kind kKinds[] = {
    {"greedy", [](SamplingParams& p) { p.temperature = 0; }},
    {"temperature", [](SamplingParams&) {}},
    {"top_k_50", [](SamplingParams& p) { p.top_k = 50; }},
    {"top_p_90", [](SamplingParams& p) { p.top_p = 0.9f; }},
    {"top_p_90_flat",
     [](SamplingParams& p) {
       p.top_p = 0.9f;
       p.temperature = 10;
     }},
    {"min_p_05", [](SamplingParams& p) { p.min_p = 0.05f; }},
    {"penalties", [](SamplingParams& p) { p.frequency_penalty = 0.5f; }},
    {"greedy_logprobs_20",
     [](SamplingParams& p) {
       p.temperature = 0;
       p.logprobs = 20;
     }},
};

void sample(benchmark::State& state, const Kind& kind) {
  const int64_t num_rows = state.range(0), vocab = state.range(1);
  const auto backend = create_backend({});
  std::mt19937 generator(1);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  std::vector<float> logits(num_rows * vocab);
  for (float& x : logits) x = normal(generator);
  std::vector<int32_t> history(kHistory);
  for (int32_t& id : history) id = static_cast<int32_t>(generator() % vocab);
  SamplingParams sampling;
  kind.set(sampling);
  ScheduledSequence sequence;
  sequence.token_ids = history;
  sequence.num_prompt_tokens = kHistory / 2;
  sequence.sampling = &sampling;
  std::vector<SampleRow> rows;
  for (int32_t i = 0; i < num_rows; ++i) rows.push_back({&sequence, i, -1});
  StepResult result;
  for (auto _ : state) {
    result.clear();
    result.token_ids.assign(num_rows, -1);
    result.is_invalid.assign(num_rows, 0);
    backend->sample(TensorView::matrix(logits.data(), DType::kFloat32, num_rows, vocab), rows,
                    result);
  }
  state.counters["rows/s"] = benchmark::Counter(static_cast<double>(num_rows),
                                                benchmark::Counter::kIsIterationInvariantRate);
}

[[maybe_unused]] const bool kRegistered = [] {
  for (const Kind& kind : kKinds) {
    benchmark::RegisterBenchmark(kind.name,
                                 [&kind](benchmark::State& state) { sample(state, kind); })
        ->ArgNames({"rows", "vocab"})
        ->UseRealTime()
        ->Args({1, 49152})
        ->Args({32, 49152})
        ->Args({1, 128256})
        ->Args({32, 128256});
  }
  return true;
}();

}  // namespace
}  // namespace octavo
