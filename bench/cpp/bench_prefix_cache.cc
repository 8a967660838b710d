// Prompts of 1,024 tokens (64 blocks) against a cache that holds N of them. Items are blocks.
#include <benchmark/benchmark.h>

#include <limits>
#include <vector>

#include "kv/block_manager.h"

namespace octavo {
namespace {

constexpr int64_t kBlockSize = 16;
constexpr int64_t kTokens = 1024;
constexpr int64_t kBlocks = kTokens / kBlockSize;

std::vector<int32_t> prompt(int64_t index) {
  std::vector<int32_t> token_ids(kTokens);
  for (int64_t i = 0; i < kTokens; ++i) {
    token_ids[i] = static_cast<int32_t>((index * 7919 + i * 31) % 50000);
  }
  return token_ids;
}

struct FilledCache {
  explicit FilledCache(int64_t num_prompts) : manager(options(num_prompts)) {
    for (int64_t i = 0; i < num_prompts; ++i) {
      BlockTable table;
      const std::vector<int32_t> token_ids = prompt(i);
      manager.allocate(table, {}, kTokens);
      manager.publish(table, token_ids, kTokens);
      manager.release(table);
    }
  }

  static BlockManagerOptions options(int64_t num_prompts) {
    BlockManagerOptions options;
    options.num_blocks = (num_prompts + 1) * kBlocks;
    options.block_size = kBlockSize;
    options.secret = {1, 2};
    return options;
  }

  BlockManager manager;
};

void hash_a_block(benchmark::State& state) {
  const std::vector<int32_t> token_ids = prompt(0);
  BlockHash hash;
  for (auto _ : state) {
    hash = hash_block({1, 2}, hash, 0, std::span(token_ids).first(kBlockSize));
    benchmark::DoNotOptimize(hash);
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(hash_a_block);

// The first look-up of a prompt: hashes, probes and compared token ids.
void match_a_new_request(benchmark::State& state) {
  FilledCache cache(state.range(0));
  const std::vector<int32_t> token_ids = prompt(state.range(0) / 2);
  BlockTable table;
  table.hashes.reserve(kBlocks);
  for (auto _ : state) {
    table.hashes.clear();
    benchmark::DoNotOptimize(
        cache.manager.match_cached(table, token_ids, std::numeric_limits<int64_t>::max()));
  }
  state.SetItemsProcessed(state.iterations() * kBlocks);
}
BENCHMARK(match_a_new_request)->Arg(1)->Arg(256)->Arg(4096);

// The next look-up of the same request, whose hashes are known.
void match_again(benchmark::State& state) {
  FilledCache cache(state.range(0));
  const std::vector<int32_t> token_ids = prompt(state.range(0) / 2);
  BlockTable table;
  for (auto _ : state) {
    benchmark::DoNotOptimize(
        cache.manager.match_cached(table, token_ids, std::numeric_limits<int64_t>::max()));
  }
  state.SetItemsProcessed(state.iterations() * kBlocks);
}
BENCHMARK(match_again)->Arg(1)->Arg(256)->Arg(4096);

// A full cache under prompts that miss: every block evicts another.
void publish_and_evict(benchmark::State& state) {
  FilledCache cache(state.range(0));
  int64_t index = state.range(0);
  BlockTable table;
  for (auto _ : state) {
    state.PauseTiming();
    const std::vector<int32_t> token_ids = prompt(++index);
    table.hashes.clear();
    state.ResumeTiming();
    cache.manager.allocate(table, {}, kTokens);
    cache.manager.publish(table, token_ids, kTokens);
    cache.manager.release(table);
  }
  state.SetItemsProcessed(state.iterations() * kBlocks);
}
BENCHMARK(publish_and_evict)->Arg(1)->Arg(256)->Arg(4096);

}  // namespace
}  // namespace octavo
