#include "runner/forward_batch.h"

#include <algorithm>

namespace octavo {
namespace {

// Sizes of the arrays of a step, in elements.
struct Counts {
  int64_t num_tokens;
  int64_t num_seqs;
  int64_t block_table_stride;
};

constexpr int64_t kAlignmentBytes = 64;  // vector loads on the host, whole sectors on a GPU

int64_t padded_bytes(int64_t count, int64_t element_bytes) {
  return (count * element_bytes + kAlignmentBytes - 1) / kAlignmentBytes * kAlignmentBytes;
}

int64_t arrays_bytes(const Counts& counts) {
  return padded_bytes(counts.num_tokens, sizeof(int64_t)) +
         3 * padded_bytes(counts.num_tokens, sizeof(int32_t)) +
         padded_bytes(counts.num_seqs + 1, sizeof(int32_t)) +
         padded_bytes(counts.num_seqs, sizeof(int32_t)) +
         padded_bytes(counts.num_seqs * counts.block_table_stride, sizeof(int32_t));
}

int64_t longest_block_table(const ScheduledBatch& batch) {
  size_t longest = 0;
  for (const ScheduledSequence& sequence : batch.sequences) {
    longest = std::max(longest, sequence.block_table.size());
  }
  return static_cast<int64_t>(longest);
}

}  // namespace

int64_t ForwardBatch::size_bytes(const BatchLimits& limits) {
  return arrays_bytes(
      {limits.max_num_batched_tokens, limits.max_num_seqs, limits.max_blocks_per_sequence()});
}

ForwardBatch::ForwardBatch(Backend& backend, const BatchLimits& limits)
    : backend_(backend),
      limits_(limits),
      host_(size_bytes(limits)),
      device_(backend.allocate(size_bytes(limits))) {
  sample_rows_.reserve(limits.max_num_batched_tokens);
}

const ForwardInputs& ForwardBatch::build(const ScheduledBatch& batch) {
  const auto num_seqs = static_cast<int64_t>(batch.sequences.size());
  check(num_seqs > 0 && num_seqs <= limits_.max_num_seqs, "too many sequences in a step");
  check(batch.num_tokens > 0 && batch.num_tokens <= limits_.max_num_batched_tokens,
        "too many tokens in a step");
  inputs_ = ForwardInputs{};
  inputs_.num_seqs = num_seqs;
  inputs_.block_table_stride = longest_block_table(batch);
  check(inputs_.block_table_stride <= limits_.max_blocks_per_sequence(),
        "a block table is longer than max_model_len");
  sample_rows_.clear();

  const Arrays arrays = lay_out(batch, inputs_.block_table_stride);
  arrays.query_start_loc[0] = 0;
  for (int32_t row = 0; row < num_seqs; ++row) add_sequence(batch, row, arrays);
  check(inputs_.num_tokens == batch.num_tokens, "num_tokens is not the sum over the sequences");
  inputs_.num_logits = static_cast<int64_t>(sample_rows_.size());

  backend_.copy_to_device(device_->data(), host_.data(), arrays.size_bytes);
  point_inputs_at(arrays);
  return inputs_;
}

ForwardBatch::Arrays ForwardBatch::lay_out(const ScheduledBatch& batch,
                                           int64_t block_table_stride) const {
  const int64_t num_tokens = batch.num_tokens;
  const auto num_seqs = static_cast<int64_t>(batch.sequences.size());
  int64_t offset = 0;
  const auto take = [&](int64_t count, int64_t element_bytes) {
    std::byte* address = host_.as<>() + offset;
    offset += padded_bytes(count, element_bytes);
    return address;
  };
  const auto take_int32 = [&](int64_t count) {
    return reinterpret_cast<int32_t*>(take(count, sizeof(int32_t)));
  };
  Arrays arrays{};
  arrays.slot_mapping = reinterpret_cast<int64_t*>(take(num_tokens, sizeof(int64_t)));
  arrays.token_ids = take_int32(num_tokens);
  arrays.positions = take_int32(num_tokens);
  arrays.logits_indices = take_int32(num_tokens);
  arrays.query_start_loc = take_int32(num_seqs + 1);
  arrays.seq_lens = take_int32(num_seqs);
  arrays.block_tables = take_int32(num_seqs * block_table_stride);
  arrays.size_bytes = offset;
  return arrays;
}

void ForwardBatch::add_sequence(const ScheduledBatch& batch, int32_t row, const Arrays& arrays) {
  const ScheduledSequence& sequence = batch.sequences[row];
  const int64_t begin = sequence.num_computed_tokens;
  const int64_t end = begin + sequence.num_scheduled_tokens;
  check(begin < end && end <= std::ssize(sequence.token_ids), "scheduled positions are not known");
  check(end <= std::ssize(sequence.block_table) * limits_.block_size,
        "the block table does not cover the scheduled positions");
  check(inputs_.num_tokens + (end - begin) <= batch.num_tokens,
        "num_tokens is not the sum over the sequences");

  add_sample_rows(sequence, row, arrays);
  int64_t t = inputs_.num_tokens;
  for (int64_t position = begin; position < end; ++position, ++t) {
    const int64_t block = sequence.block_table[position / limits_.block_size];
    arrays.token_ids[t] = sequence.token_ids[position];
    arrays.positions[t] = static_cast<int32_t>(position);
    arrays.slot_mapping[t] = block * limits_.block_size + position % limits_.block_size;
  }
  inputs_.num_tokens = t;
  arrays.query_start_loc[row + 1] = static_cast<int32_t>(t);
  arrays.seq_lens[row] = static_cast<int32_t>(end);
  int32_t* table = arrays.block_tables + row * inputs_.block_table_stride;
  int32_t* table_end = std::copy(sequence.block_table.begin(), sequence.block_table.end(), table);
  std::fill(table_end, table + inputs_.block_table_stride, 0);
  inputs_.max_query_len = std::max(inputs_.max_query_len, end - begin);
  inputs_.max_seq_len = std::max(inputs_.max_seq_len, end);
}

void ForwardBatch::add_sample_rows(const ScheduledSequence& sequence, int32_t row,
                                   const Arrays& arrays) {
  const int64_t begin = sequence.num_computed_tokens;
  const int64_t end = begin + sequence.num_scheduled_tokens;
  const auto add = [&](int64_t position, int32_t target_id) {
    arrays.logits_indices[sample_rows_.size()] =
        static_cast<int32_t>(inputs_.num_tokens + position - begin);
    sample_rows_.push_back({&sequence, row, target_id});
  };
  if (sequence.sampling->prompt_logprobs >= 0) {
    const int64_t prompt_end = std::min(end, sequence.num_prompt_tokens - 1);
    for (int64_t position = begin; position < prompt_end; ++position) {
      add(position, sequence.token_ids[position + 1]);
    }
  }
  if (sequence.samples) add(end - 1, -1);
}

void ForwardBatch::point_inputs_at(const Arrays& arrays) {
  const auto on_device = [&]<typename T>(const T* host) {
    const auto offset = reinterpret_cast<const std::byte*>(host) - host_.as<>();
    return reinterpret_cast<const T*>(static_cast<const std::byte*>(device_->data()) + offset);
  };
  inputs_.token_ids = on_device(arrays.token_ids);
  inputs_.positions = on_device(arrays.positions);
  inputs_.slot_mapping = on_device(arrays.slot_mapping);
  inputs_.query_start_loc = on_device(arrays.query_start_loc);
  inputs_.seq_lens = on_device(arrays.seq_lens);
  inputs_.block_tables = on_device(arrays.block_tables);
  inputs_.logits_indices = on_device(arrays.logits_indices);
  const auto num_seqs = static_cast<size_t>(inputs_.num_seqs);
  inputs_.host_query_start_loc = {arrays.query_start_loc, num_seqs + 1};
  inputs_.host_seq_lens = {arrays.seq_lens, num_seqs};
}

}  // namespace octavo
