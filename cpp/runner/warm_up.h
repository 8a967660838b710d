// Made-up steps that take the runner through every class of work before the first request does.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runner/memory_plan.h"
#include "sched/scheduled_batch.h"

namespace octavo {

struct WarmUpShape {
  int64_t num_decodes = 0;   // sequences that decode one token behind a full block
  int64_t num_prefills = 0;  // sequences that start with prefill_tokens tokens
  int64_t prefill_tokens = 0;
};

// Decode at growing numbers of sequences up to max_num_seqs, decodes and a short prefill in one
// step, a full prefill chunk (and, with graphs, a short prompt); cut to what the blocks hold. The
// numbers are 1, 2, 4 … or, for graphs that smaller batches are padded to, decode_batch_sizes().
// The cheap shapes come first, so that progress shows soon.
std::vector<WarmUpShape> warm_up_shapes(const RunnerConfig& config, const MemoryPlan& plan,
                                        bool has_graphs = false);

// Ascending sizes up to `most`, close enough that padding costs little: a decode step reads the
// weights once whatever its size, so up to 64 sequences the next power of two or its half-way mark
// will do; beyond, each 32 more add a few percent, and from 256 on each 64.
std::vector<int64_t> decode_batch_sizes(int64_t most);

// What running the shape costs beside the others, roughly; > 0.
double warm_up_cost(const WarmUpShape& shape);

// Owns what a ScheduledBatch of a shape points to. Each sequence has blocks of its own, from 0 on.
// Sequences take turns between greedy and every step of the sampler.
class WarmUpBatch {
 public:
  // Requires: the shape comes from warm_up_shapes() or needs no more blocks than there are.
  WarmUpBatch(const WarmUpShape& shape, int64_t block_size, int64_t vocab_size);

  const ScheduledBatch& batch() const { return batch_; }

  // Makes the next step of a batch of one sequence: `token_id` behind all that was computed.
  void append_and_continue(int32_t token_id);

 private:
  struct Storage {
    std::vector<int32_t> token_ids;
    std::vector<int32_t> block_table;
  };

  void add_sequence(int64_t num_computed_tokens, int64_t num_scheduled_tokens);
  void point_batch_at_storage();

  const int64_t block_size_;
  const int64_t vocab_size_;
  SamplingParams greedy_;
  SamplingParams random_;
  int32_t next_block_ = 0;
  std::vector<Storage> storage_;
  ScheduledBatch batch_;
};

}  // namespace octavo
