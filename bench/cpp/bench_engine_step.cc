// The engine thread's time of a decode step: the whole engine with a device that takes none. Items
// are sequences. `allocations` are counted over all timed steps.
#include <benchmark/benchmark.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "engine/engine.h"
#include "model/registry.h"
#include "null_backend.h"
#include "runner/model_runner.h"

namespace {
std::atomic<int64_t> num_allocations{0};

[[gnu::noinline]] void* allocate(size_t size) {
  num_allocations.fetch_add(1, std::memory_order_relaxed);
  void* memory = std::malloc(size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] void give_back(void* memory) { std::free(memory); }
}  // namespace

void* operator new(size_t size) { return allocate(size); }
void operator delete(void* memory) noexcept { give_back(memory); }
void operator delete(void* memory, size_t) noexcept { give_back(memory); }

namespace octavo::bench {
namespace {

constexpr int64_t kPromptTokens = 128;
constexpr int32_t kOutputTokens = 1900;
constexpr int64_t kBlockSize = 16;

ModelConfig small_llama() {
  ModelConfig config;
  config.architecture = "llama";
  config.vocab_size = 32000;
  config.hidden_size = 64;
  config.intermediate_size = 64;
  config.num_layers = 2;
  config.num_q_heads = 1;
  config.num_kv_heads = 1;
  config.head_dim = 64;
  config.max_position_embeddings = 2048;
  return config;
}

// An engine whose `num_sequences` sequences all decode.
class DecodingEngine {
 public:
  DecodingEngine(int64_t num_sequences, bool caches) {
    model_ = create_model(small_llama(), backend_);
    model_->weights().allocate();
    RunnerConfig config;
    config.block_size = kBlockSize;
    config.num_blocks = num_sequences * (kPromptTokens + kOutputTokens) / kBlockSize + 1024;
    config.max_num_seqs = num_sequences;
    config.max_num_batched_tokens = 8192;
    auto runner = std::make_unique<ModelRunner>(backend_, *model_, config,
                                                plan_memory(config, *model_, backend_, 0));
    runner->warm_up([](double) {});
    EngineConfig engine_config;
    engine_config.max_model_len = small_llama().max_position_embeddings;
    engine_config.max_num_seqs = static_cast<int32_t>(num_sequences);
    engine_config.max_num_batched_tokens = config.max_num_batched_tokens;
    engine_config.max_num_queued_reqs = num_sequences;
    engine_config.enable_prefix_caching = caches;
    engine_ = std::make_unique<Engine>(engine_config, small_llama().vocab_size, config.num_blocks,
                                       std::move(runner));
    for (int64_t id = 0; id < num_sequences; ++id) engine_->submit(request(id));
    while (engine_->stats().num_waiting > 0) step();
    for (int i = 0; i < 50; ++i) step();
  }

  void step() {
    engine_->step();
    engine_->take_outputs(outputs_, std::chrono::nanoseconds{0});
  }

 private:
  static Request request(int64_t id) {
    Request request;
    request.id = static_cast<uint64_t>(id);
    for (int64_t i = 0; i < kPromptTokens; ++i) {
      request.token_ids.push_back(static_cast<int32_t>((id * 131 + i * 31) % 32000));
    }
    request.sampling.max_tokens = kOutputTokens;
    return request;
  }

  NullBackend backend_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Engine> engine_;
  std::vector<OutputBatch> outputs_;
};

void engine_step(benchmark::State& state) {
  constexpr int64_t kSteps = 1000;  // of one engine, before its sequences end
  const int64_t num_sequences = state.range(0);
  std::unique_ptr<DecodingEngine> engine;
  int64_t num_left = 0;
  int64_t allocated = 0;
  for (auto _ : state) {
    if (num_left-- == 0) {
      state.PauseTiming();
      engine = std::make_unique<DecodingEngine>(num_sequences, state.range(1) != 0);
      num_left = kSteps;
      state.ResumeTiming();
    }
    const int64_t before = num_allocations.load(std::memory_order_relaxed);
    engine->step();
    allocated += num_allocations.load(std::memory_order_relaxed) - before;
  }
  state.counters["allocations"] = static_cast<double>(allocated);
  state.SetItemsProcessed(state.iterations() * num_sequences);
}
BENCHMARK(engine_step)->ArgsProduct({{1, 256, 4096}, {0, 1}})->ArgNames({"seqs", "caching"});

}  // namespace
}  // namespace octavo::bench
