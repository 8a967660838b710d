// One block; each thread takes a run of consecutive sequences. Three scans give every sequence its
// places among the units, the partial results and the tiles. The chunk is the smallest multiple of
// 64 tokens, from kMinChunk on, that leaves about `target_units` units: then
//   units    <= target_units + num_seqs    (each sequence rounds up once)
//   partials <= 2 * target_units           (only sequences of two chunks and more have any)
#include <algorithm>

#include "base/check.h"
#include "cuda/attention_plan.h"
#include "cuda/common/launch.cuh"
#include "cuda/common/reduce.cuh"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kChunkMultiple = 64;
constexpr int kBlocksPerSm = 2;        // of the decode kernel with 128-wide heads
constexpr int kWaves = 4;              // units a block gets when there are many sequences
constexpr int kInvariantChunk = 1024;  // splits do not depend on the batch
constexpr int kInvariantUnits = 8192;  // up to 8 million tokens of context

// Units to aim for: with few sequences one an SM, with many several a block, to even out the end.
int target_units(const DeviceContext& context, int num_seqs, int num_kv_heads) {
  if (context.batch_invariant) return kInvariantUnits;
  const bool few = 2 * num_seqs * num_kv_heads <= context.num_sms;
  const int blocks = few ? context.num_sms : kWaves * kBlocksPerSm * context.num_sms;
  return std::max(1, blocks / num_kv_heads);
}

struct PlanArgs {
  const int32_t* query_start_loc;
  const int32_t* seq_lens;
  AttentionPlanHeader* header;
  DecodeUnit* units;
  PrefillTile* tiles;
  int num_seqs;
  int target_units;
  int min_chunk;
  int group;
  int tile_rows;
};

__device__ int ceil_div(int a, int b) { return (a + b - 1) / b; }

__device__ int num_queries(const PlanArgs& args, int seq) {
  return args.query_start_loc[seq + 1] - args.query_start_loc[seq];
}

__device__ int num_tiles(const PlanArgs& args, int queries) {
  return queries > 1 ? ceil_div(queries * args.group, args.tile_rows) : 0;
}

__global__ void __launch_bounds__(kThreads) plan_kernel(PlanArgs args) {
  __shared__ int scratch[kThreads / kWarpSize];
  wait_for_previous_kernel();
  const int run = ceil_div(args.num_seqs, kThreads);
  const int begin = min(static_cast<int>(threadIdx.x) * run, args.num_seqs);
  const int end = min(begin + run, args.num_seqs);

  int keys = 0;
  for (int i = begin; i < end; ++i) keys += num_queries(args, i) == 1 ? args.seq_lens[i] : 0;
  keys = block_reduce(keys, Sum{}, scratch);
  const int even = ceil_div(ceil_div(keys, args.target_units), kChunkMultiple) * kChunkMultiple;
  const int chunk = max(args.min_chunk, even);

  int units = 0;
  int partials = 0;
  int tiles = 0;
  for (int i = begin; i < end; ++i) {
    const int queries = num_queries(args, i);
    const int chunks = queries == 1 ? ceil_div(args.seq_lens[i], chunk) : 0;
    units += chunks;
    partials += chunks > 1 ? chunks : 0;
    tiles += num_tiles(args, queries);
  }
  int total_units = 0;
  int ignored = 0;
  int unit = block_exclusive_scan(units, scratch, &total_units);
  int partial = block_exclusive_scan(partials, scratch, &ignored);
  int tile = block_exclusive_scan(tiles, scratch, &ignored);

  for (int i = begin; i < end; ++i) {
    const int queries = num_queries(args, i);
    const int chunks = queries == 1 ? ceil_div(args.seq_lens[i], chunk) : 0;
    for (int c = 0; c < chunks; ++c) {
      args.units[unit++] = {
          i, c, args.seq_lens[i], chunks > 1 ? partial : -1, args.query_start_loc[i], {}};
    }
    partial += chunks > 1 ? chunks : 0;
    // The last queries see the most keys: their tiles start first.
    for (int t = num_tiles(args, queries) - 1; t >= 0; --t) {
      args.tiles[tile++] = {i, t * args.tile_rows};
    }
  }
  if (threadIdx.x == 0) *args.header = {total_units, chunk};
}

}  // namespace

AttentionPlan::AttentionPlan(const DeviceContext& context)
    : header_(sizeof(AttentionPlanHeader)), tiles_(kMaxTiles * sizeof(PrefillTile)) {
  units_ = DeviceMemory(max_units(context, kMaxSeqs, 1) * sizeof(DecodeUnit));
}

int AttentionPlan::max_units(const DeviceContext& context, int num_seqs, int num_kv_heads) const {
  return target_units(context, num_seqs, num_kv_heads) + num_seqs;
}

int AttentionPlan::max_partials(const DeviceContext& context, int num_kv_heads) const {
  return 2 * target_units(context, kMaxSeqs, num_kv_heads) + kWaves;
}

void AttentionPlan::make(const DeviceContext& context, const ForwardInputs& inputs,
                         const AttentionPlanShape& shape) {
  const int num_seqs = static_cast<int>(inputs.num_seqs);
  check(num_seqs <= kMaxSeqs, "attention: sequences of a step");
  const PlanArgs args{inputs.query_start_loc,
                      inputs.seq_lens,
                      header_.as<AttentionPlanHeader>(),
                      units_.as<DecodeUnit>(),
                      tiles_.as<PrefillTile>(),
                      num_seqs,
                      target_units(context, num_seqs, shape.num_kv_heads),
                      context.batch_invariant ? kInvariantChunk : kMinChunk,
                      shape.group,
                      shape.tile_rows};
  launch(plan_kernel, {.grid = dim3(1), .block = dim3(kThreads)}, context.stream, args);
}

AttentionPlanView AttentionPlan::view() const {
  return {header_.as<AttentionPlanHeader>(), units_.as<DecodeUnit>(), tiles_.as<PrefillTile>()};
}

}  // namespace octavo::cuda
