// How the attention of one step is divided among blocks. Made on the device, so that a captured
// graph follows the sequence lengths of each replay.
#pragma once

#include <cstdint>

#include "backend/backend.h"
#include "cuda/common/device_context.h"
#include "cuda/common/memory.h"

namespace octavo::cuda {

// A range of the keys of one sequence that has a single query: tokens
// [chunk * chunk_size, min((chunk + 1) * chunk_size, seq_len)).
struct alignas(16) DecodeUnit {
  int32_t seq;
  int32_t chunk;
  int32_t seq_len;
  int32_t first_partial;  // slot of chunk 0 among the partial results; -1: the only chunk
  int32_t row;            // of the query
  int32_t padding[3];
};

// Queries of one sequence with several: packed rows [row_begin, row_begin + tile_rows) of
// (token, head in group), the heads of a token side by side.
struct alignas(8) PrefillTile {
  int32_t seq;
  int32_t row_begin;
};

struct AttentionPlanHeader {
  int32_t num_units;
  int32_t chunk_size;
};

struct AttentionPlanView {
  const AttentionPlanHeader* header;
  const DecodeUnit* units;
  const PrefillTile* tiles;
};

// What the plan is made for; a change of it needs a new plan.
struct AttentionPlanShape {
  int num_kv_heads = 1;
  int group = 1;       // query heads of a KV head
  int tile_rows = 64;  // of a prefill tile
};

class AttentionPlan {
 public:
  static constexpr int kMaxSeqs = 4096;
  static constexpr int kMaxTiles = 65535;  // limit of a grid
  static constexpr int kMinChunk = 256;    // below, combining costs more than the split saves

  explicit AttentionPlan(const DeviceContext& context);

  // Makes the plan of this step on context.stream. Requires: at most kMaxSeqs sequences.
  void make(const DeviceContext& context, const ForwardInputs& inputs,
            const AttentionPlanShape& shape);

  AttentionPlanView view() const;

  // Bounds that hold for every plan of such a shape, whatever the lengths.
  int max_units(const DeviceContext& context, int num_seqs, int num_kv_heads) const;
  int max_partials(const DeviceContext& context, int num_kv_heads) const;

 private:
  DeviceMemory header_;
  DeviceMemory units_;
  DeviceMemory tiles_;
};

}  // namespace octavo::cuda
