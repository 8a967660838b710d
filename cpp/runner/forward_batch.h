// The flat arrays of one step, staged in one host buffer and copied to the device at once.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "base/aligned_buffer.h"
#include "sched/scheduled_batch.h"

namespace octavo {

// What the arrays are sized for.
struct BatchLimits {
  int64_t max_num_seqs = 0;
  int64_t max_num_batched_tokens = 0;
  int64_t max_model_len = 0;
  int64_t block_size = 0;

  int64_t max_blocks_per_sequence() const { return (max_model_len + block_size - 1) / block_size; }
};

class ForwardBatch {
 public:
  // Throws: OutOfMemoryError.
  ForwardBatch(Backend& backend, const BatchLimits& limits);

  // Bytes of the device buffer.
  static int64_t size_bytes(const BatchLimits& limits);

  // Flattens `batch` and starts its copy. The pointers and spans stay valid until the next call.
  // Allocates nothing. Requires: the batch is within the limits; block tables cover the positions.
  const ForwardInputs& build(const ScheduledBatch& batch);

  // One row for each of logits_indices, pointing into the batch that was built. A sequence's prompt
  // rows stand before the row it draws from.
  std::span<const SampleRow> sample_rows() const { return sample_rows_; }

 private:
  // Host addresses of the arrays inside the staging buffer; see ForwardInputs.
  struct Arrays {
    int64_t* slot_mapping;
    int32_t* token_ids;
    int32_t* positions;
    int32_t* query_start_loc;
    int32_t* seq_lens;
    int32_t* logits_indices;
    int32_t* block_tables;
    int64_t size_bytes;
  };

  Arrays lay_out(const ScheduledBatch& batch, int64_t block_table_stride) const;
  void add_sequence(const ScheduledBatch& batch, int32_t row, const Arrays& arrays);
  void add_sample_rows(const ScheduledSequence& sequence, int32_t row, const Arrays& arrays);
  void point_inputs_at(const Arrays& arrays);

  Backend& backend_;
  const BatchLimits limits_;
  AlignedBuffer host_;
  std::unique_ptr<DeviceBuffer> device_;
  std::vector<SampleRow> sample_rows_;
  ForwardInputs inputs_;
};

}  // namespace octavo
