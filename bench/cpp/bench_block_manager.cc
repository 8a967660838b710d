// Blocks for N sequences: taken, grown by a token a step, given back. Time is per iteration over
// all N; items are sequences.
#include <benchmark/benchmark.h>

#include <vector>

#include "kv/block_manager.h"

namespace octavo {
namespace {

constexpr int64_t kBlockSize = 16;
constexpr int64_t kTokens = 512;

BlockManagerOptions options_for(int64_t num_sequences) {
  BlockManagerOptions options;
  options.num_blocks = num_sequences * (kTokens / kBlockSize) * 2;
  options.block_size = kBlockSize;
  options.enable_prefix_caching = false;
  return options;
}

// A request's whole life: 32 blocks at once, and all of them back.
void allocate_and_release(benchmark::State& state) {
  BlockManager manager(options_for(state.range(0)));
  std::vector<BlockTable> tables(state.range(0));
  for (auto _ : state) {
    for (BlockTable& table : tables) manager.allocate(table, {}, kTokens);
    for (BlockTable& table : tables) manager.release(table);
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
}
BENCHMARK(allocate_and_release)->Arg(1)->Arg(256)->Arg(4096);

// A decode step: one token more for each sequence, one block more for every sixteenth.
void grow_by_a_token(benchmark::State& state) {
  BlockManager manager(options_for(state.range(0)));
  std::vector<BlockTable> tables(state.range(0));
  int64_t num_tokens = kTokens;
  for (auto _ : state) {
    if (num_tokens == kTokens) {
      state.PauseTiming();
      for (size_t i = 0; i < tables.size(); ++i) {
        manager.release(tables[i]);
        tables[i].block_ids.reserve(kTokens / kBlockSize);
        manager.allocate(tables[i], {}, 1 + static_cast<int64_t>(i) % kBlockSize);
      }
      num_tokens = kBlockSize;
      state.ResumeTiming();
    }
    ++num_tokens;
    for (size_t i = 0; i < tables.size(); ++i) {
      benchmark::DoNotOptimize(
          manager.grow(tables[i], num_tokens - static_cast<int64_t>(i) % kBlockSize));
    }
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
}
BENCHMARK(grow_by_a_token)->Arg(1)->Arg(256)->Arg(4096);

}  // namespace
}  // namespace octavo
