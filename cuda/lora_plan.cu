// Which rows of a pass belong to which adapter: one block a slot sorts its rows and cuts them into
// tiles of 16 or 64. Rows without an adapter are in no tile. The order is that of the rows,
// whatever the timing. Bound: latency.
#include <algorithm>

#include "cuda/common/launch.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/lora_plan.cuh"

namespace octavo::cuda {
namespace {

constexpr int kSortThreads = 256;
constexpr int64_t kTileDepth = 64;
constexpr int64_t kShareDepth = 256;  // input features of a block at decode sizes
constexpr int64_t kMaxShares = 32;
constexpr int64_t kPrefillShares = 4;

// Block s sorts the rows of slot s. Later kernels read the plan before they wait, so none may start
// before it is written: this one lets the next go at its end only.
__global__ void __launch_bounds__(kSortThreads)
    plan_kernel(const int32_t* slots, const int32_t* indices, PlanView plan) {
  __shared__ int counts[kMaxLoras];
  __shared__ int scratch[kSortThreads / kWarpSize];
  const int slot = blockIdx.x;
  if (threadIdx.x < kMaxLoras) counts[threadIdx.x] = 0;
  __syncthreads();
  wait_for_previous_kernel();
  const auto slot_of = [&](int row) { return slots[indices == nullptr ? row : indices[row]]; };
  for (int row = threadIdx.x; row < plan.num_rows; row += kSortThreads) {
    const int s = slot_of(row);
    if (s >= 0) atomicAdd(&counts[s], 1);
  }
  __syncthreads();
  int first = 0;
  int first_tile = 0;
  for (int s = 0; s < slot; ++s) {
    first += counts[s];
    first_tile += (counts[s] + plan.tile_rows - 1) / plan.tile_rows;
  }
  int next = first;
  for (int begin = 0; begin < plan.num_rows; begin += kSortThreads) {
    const int row = begin + threadIdx.x;
    const bool is_mine = row < plan.num_rows && slot_of(row) == slot;
    int total = 0;
    const int place = next + block_exclusive_scan(is_mine ? 1 : 0, scratch, &total);
    next += total;
    if (is_mine) plan.rows[place] = row;
  }
  const int num_tiles = (counts[slot] + plan.tile_rows - 1) / plan.tile_rows;
  for (int t = threadIdx.x; t < num_tiles; t += kSortThreads) {
    const int done = t * plan.tile_rows;
    plan.tiles[first_tile + t] = {slot, first + done, min(plan.tile_rows, counts[slot] - done), 0};
  }
  if (slot + 1 == plan.num_slots) {
    for (int t = first_tile + num_tiles + threadIdx.x; t < plan.num_tiles; t += kSortThreads) {
      plan.tiles[t] = {0, 0, 0, 0};
    }
  }
  __threadfence();
  __syncthreads();
  allow_next_kernel();
}

}  // namespace

PlanView plan_view(const DeviceContext& context, const LoraPlan& plan) {
  PlanView view{};
  view.num_rows = static_cast<int>(plan.num_rows);
  view.num_slots = plan.num_slots;
  view.tile_rows = context.batch_invariant || plan.num_rows <= kFewLoraRows ? 16 : 64;
  view.num_tiles = view.num_rows / view.tile_rows + std::min(view.num_slots, view.num_rows);
  view.tiles = reinterpret_cast<LoraTile*>(plan.memory);
  view.rows = plan.memory + 4 * view.num_tiles;
  return view;
}

LoraShares lora_shares(const DeviceContext& context, int64_t num_rows, int64_t in_features) {
  const bool is_decode = num_rows <= kFewLoraRows && !context.batch_invariant;
  const int64_t wanted = is_decode
                             ? std::min(kMaxShares, (in_features + kShareDepth - 1) / kShareDepth)
                             : kPrefillShares;
  const int64_t least = (in_features + wanted - 1) / wanted;
  const int64_t depth = (least + kTileDepth - 1) / kTileDepth * kTileDepth;
  return {(in_features + depth - 1) / depth, depth};
}

void LoraLinear::plan(const DeviceContext& context, const int32_t* slots, const int32_t* rows,
                      const LoraPlan& plan) {
  check(plan.num_slots > 0 && plan.num_slots <= kMaxLoras, "plan_lora: slots");
  if (plan.num_rows == 0) return;
  launch(plan_kernel, {.grid = dim3(plan.num_slots), .block = dim3(kSortThreads)}, context.stream,
         slots, rows, plan_view(context, plan));
}

}  // namespace octavo::cuda
