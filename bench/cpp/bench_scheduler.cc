// The scheduler without a model. Items are sequences.
#include <benchmark/benchmark.h>

#include <memory>
#include <vector>

#include "sched/scheduler.h"

namespace octavo {
namespace {

struct NullSink final : OutputSink {
  void emit(const SequenceOutput& output) override { benchmark::DoNotOptimize(output.token_id); }
};

SchedulerOptions options_for(int64_t num_sequences, bool caches) {
  SchedulerOptions options;
  options.blocks.num_blocks = num_sequences * 160 + 1024;
  options.blocks.block_size = 16;
  options.blocks.enable_prefix_caching = caches;
  options.blocks.secret = {1, 2};
  options.vocab_size = 50000;
  options.max_model_len = 2048;
  options.max_num_seqs = static_cast<int32_t>(num_sequences);
  options.max_num_batched_tokens = 8192;
  options.eos_token_ids = {0};
  return options;
}

Request request(uint64_t id, int32_t max_tokens) {
  Request made;
  made.id = id;
  for (uint64_t i = 0; i < 128; ++i) {
    made.token_ids.push_back(static_cast<int32_t>((id * 131 + i * 31) % 50000));
  }
  made.sampling.max_tokens = max_tokens;
  return made;
}

void fill(const ScheduledBatch& batch, StepResult& result) {
  result.clear();
  for (const ScheduledSequence& row : batch.sequences) {
    result.token_ids.push_back(row.samples ? 1 + static_cast<int32_t>(row.seed % 1000) : -1);
    result.is_invalid.push_back(0);
  }
}

// One decode step of N running sequences: schedule() and update().
void decode_step(benchmark::State& state) {
  const int64_t num_sequences = state.range(0);
  NullSink sink;
  ScheduledBatch batch;
  StepResult result;
  std::unique_ptr<Scheduler> scheduler;
  int64_t num_left = 0;
  for (auto _ : state) {
    if (num_left == 0) {
      state.PauseTiming();
      scheduler =
          std::make_unique<Scheduler>(options_for(num_sequences, state.range(1) != 0), sink);
      for (int64_t id = 0; id < num_sequences; ++id) scheduler->add(request(id, 1900));
      while (scheduler->stats().num_waiting > 0 || batch.num_tokens != num_sequences) {
        scheduler->schedule(batch);
        fill(batch, result);
        scheduler->update(batch, result);
      }
      num_left = 1700;
      state.ResumeTiming();
    }
    scheduler->schedule(batch);
    fill(batch, result);
    scheduler->update(batch, result);
    --num_left;
  }
  state.SetItemsProcessed(state.iterations() * num_sequences);
}
BENCHMARK(decode_step)->ArgsProduct({{1, 256, 4096}, {0, 1}})->ArgNames({"seqs", "caching"});

// N requests of 128 tokens from add() over admission and one token to their end.
void request_life(benchmark::State& state) {
  const int64_t num_sequences = state.range(0);
  NullSink sink;
  Scheduler scheduler(options_for(num_sequences, true), sink);
  ScheduledBatch batch;
  StepResult result;
  std::vector<uint64_t> finished_ids;
  uint64_t id = 0;
  for (auto _ : state) {
    state.PauseTiming();
    std::vector<Request> requests;
    for (int64_t i = 0; i < num_sequences; ++i) requests.push_back(request(id++, 1));
    state.ResumeTiming();
    for (Request& made : requests) scheduler.add(std::move(made));
    while (scheduler.has_live()) {
      scheduler.schedule(batch);
      fill(batch, result);
      scheduler.update(batch, result);
    }
    scheduler.take_finished(finished_ids);
  }
  state.SetItemsProcessed(state.iterations() * num_sequences);
}
BENCHMARK(request_life)->Arg(1)->Arg(256)->Arg(4096);

}  // namespace
}  // namespace octavo
