// What the kernels of adapters share: the plan of a pass, and how the first product is divided.
#pragma once

#include "cuda/common/device_context.h"
#include "cuda/lora.h"

namespace octavo::cuda {

inline constexpr int64_t kFewLoraRows = 256;  // up to here a tile has 16 rows, beyond it 64

// Rows of one slot. `count` is 0 where there is no tile.
struct LoraTile {
  int slot;
  int first;  // sorted row
  int count;
  int unused;
};

// LoraPlan::memory: the tiles, then the rows sorted by slot.
struct PlanView {
  LoraTile* tiles;
  int32_t* rows;
  int num_rows;
  int num_slots;
  int num_tiles;
  int tile_rows;
};

// Kernels of this step may read it before they wait for the kernel before them.
PlanView plan_view(const DeviceContext& context, const LoraPlan& plan);

// The input features of a weight are divided into `count` shares of `depth`, a multiple of 64.
// Where a batch may change results, its size says how.
struct LoraShares {
  int64_t count = 0;
  int64_t depth = 0;
};
LoraShares lora_shares(const DeviceContext& context, int64_t num_rows, int64_t in_features);

}  // namespace octavo::cuda
