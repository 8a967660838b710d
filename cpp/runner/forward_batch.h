// The flat arrays of one step. They cross to the device packed, in one copy, and are unpacked there
// to addresses that stay the same from step to step, so that a captured graph finds them.
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

// Whether a sequence of the step has an adapter.
bool has_loras(const ScheduledBatch& batch);

class ForwardBatch {
 public:
  // Throws: OutOfMemoryError.
  ForwardBatch(Backend& backend, const BatchLimits& limits);

  // Bytes of the device buffers.
  static int64_t size_bytes(const BatchLimits& limits);

  // Flattens `batch`, with `num_padding_seqs` sequences of one token behind it that are none, and
  // starts its way to the device. The pointers are the same at each call; the spans stay valid
  // until the next. Allocates nothing. Requires: the batch is within the limits; block tables cover
  // the positions; padding only behind sequences that each compute one token and sample.
  const ForwardInputs& build(const ScheduledBatch& batch, int64_t num_padding_seqs = 0);

  // One row for each of logits_indices but those of padding, pointing into the batch that was
  // built. A sequence's prompt rows stand before the row it draws from.
  std::span<const SampleRow> sample_rows() const { return sample_rows_; }

 private:
  // Host addresses inside the staging buffer; see PackedInputs.
  struct Packed {
    int32_t* token_ids;
    int32_t* query_start_loc;
    int32_t* seq_lens;
    int32_t* block_table_loc;
    int32_t* logits_indices;
    int32_t* lora_slots;
    int32_t* tables;
  };

  Packed lay_out(int64_t num_tokens, int64_t num_seqs) const;
  void add_sequence(const ScheduledBatch& batch, int32_t row, const Packed& packed);
  void add_sample_rows(const ScheduledSequence& sequence, int32_t row, const Packed& packed);
  void add_padding(int64_t num_padding_seqs, const Packed& packed);
  void send(const Packed& packed, int64_t num_padding_seqs);
  void point_at_arrays();

  Backend& backend_;
  const BatchLimits limits_;
  AlignedBuffer host_;
  std::unique_ptr<DeviceBuffer> packed_;
  std::unique_ptr<DeviceBuffer> unpacked_;
  std::vector<SampleRow> sample_rows_;
  ForwardArrays arrays_;
  ForwardInputs inputs_;
  int64_t num_table_entries_ = 0;
  bool has_loras_ = false;
};

}  // namespace octavo
