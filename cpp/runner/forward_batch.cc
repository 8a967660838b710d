#include "runner/forward_batch.h"

#include <algorithm>

namespace octavo {
namespace {

constexpr int64_t kAlignmentBytes = 64;  // vector loads on the host, whole sectors on a GPU

int64_t aligned(int64_t size_bytes) {
  return (size_bytes + kAlignmentBytes - 1) / kAlignmentBytes * kAlignmentBytes;
}

// Hands out consecutive arrays of a buffer; without one it only measures.
class Carver {
 public:
  explicit Carver(void* data) : data_(reinterpret_cast<uintptr_t>(data)) {}

  template <typename T>
  T* take(int64_t count) {
    T* const begin = reinterpret_cast<T*>(data_ + static_cast<uintptr_t>(size_bytes_));
    size_bytes_ += aligned(count * static_cast<int64_t>(sizeof(T)));
    return begin;
  }
  int64_t size_bytes() const { return size_bytes_; }

 private:
  uintptr_t data_;
  int64_t size_bytes_ = 0;
};

ForwardArrays carve_arrays(const BatchLimits& limits, Carver& carver) {
  ForwardArrays arrays;
  arrays.block_size = limits.block_size;
  arrays.block_table_stride = limits.max_blocks_per_sequence();
  arrays.slot_mapping = carver.take<int64_t>(limits.max_num_batched_tokens);
  arrays.token_ids = carver.take<int32_t>(limits.max_num_batched_tokens);
  arrays.positions = carver.take<int32_t>(limits.max_num_batched_tokens);
  arrays.logits_indices = carver.take<int32_t>(limits.max_num_batched_tokens);
  arrays.lora_slots = carver.take<int32_t>(limits.max_num_batched_tokens);
  arrays.query_start_loc = carver.take<int32_t>(limits.max_num_seqs + 1);
  arrays.seq_lens = carver.take<int32_t>(limits.max_num_seqs);
  arrays.block_tables = carver.take<int32_t>(limits.max_num_seqs * arrays.block_table_stride);
  return arrays;
}

// The most that a step takes on its way: tokens and rows of logits, four arrays by sequence and
// the tables.
int64_t packed_bytes(const BatchLimits& limits) {
  constexpr int64_t kEntryBytes = sizeof(int32_t);
  return 2 * aligned(limits.max_num_batched_tokens * kEntryBytes) +
         4 * aligned((limits.max_num_seqs + 1) * kEntryBytes) +
         aligned(limits.max_num_seqs * limits.max_blocks_per_sequence() * kEntryBytes);
}

int64_t unpacked_bytes(const BatchLimits& limits) {
  Carver measure(nullptr);
  carve_arrays(limits, measure);
  return measure.size_bytes();
}

}  // namespace

bool has_loras(const ScheduledBatch& batch) {
  return std::ranges::any_of(batch.sequences,
                             [](const ScheduledSequence& row) { return row.lora_slot >= 0; });
}

int64_t ForwardBatch::size_bytes(const BatchLimits& limits) {
  return packed_bytes(limits) + unpacked_bytes(limits);
}

ForwardBatch::ForwardBatch(Backend& backend, const BatchLimits& limits)
    : backend_(backend),
      limits_(limits),
      host_(packed_bytes(limits)),
      packed_(backend.allocate(packed_bytes(limits))),
      unpacked_(backend.allocate(unpacked_bytes(limits))) {
  Carver carver(unpacked_->data());
  arrays_ = carve_arrays(limits, carver);
  sample_rows_.reserve(limits.max_num_batched_tokens);
}

const ForwardInputs& ForwardBatch::build(const ScheduledBatch& batch, int64_t num_padding_seqs) {
  const auto num_seqs = static_cast<int64_t>(batch.sequences.size());
  check(num_seqs > 0 && num_seqs + num_padding_seqs <= limits_.max_num_seqs,
        "too many sequences in a step");
  check(
      batch.num_tokens > 0 && batch.num_tokens + num_padding_seqs <= limits_.max_num_batched_tokens,
      "too many tokens in a step");
  inputs_ = ForwardInputs{};
  inputs_.num_seqs = num_seqs;
  sample_rows_.clear();
  num_table_entries_ = 0;
  has_loras_ = has_loras(batch);

  const Packed packed = lay_out(batch.num_tokens + num_padding_seqs, num_seqs + num_padding_seqs);
  packed.query_start_loc[0] = 0;
  for (int32_t row = 0; row < num_seqs; ++row) add_sequence(batch, row, packed);
  packed.block_table_loc[num_seqs] = static_cast<int32_t>(num_table_entries_);
  check(inputs_.num_tokens == batch.num_tokens, "num_tokens is not the sum over the sequences");
  inputs_.num_logits = static_cast<int64_t>(sample_rows_.size());

  send(packed, num_padding_seqs);
  add_padding(num_padding_seqs, packed);
  point_at_arrays();
  const auto num_rows = static_cast<size_t>(inputs_.num_seqs);
  inputs_.host_query_start_loc = {packed.query_start_loc, num_rows + 1};
  inputs_.host_seq_lens = {packed.seq_lens, num_rows};
  return inputs_;
}

// The tables come last: only as much of them is sent as there is.
ForwardBatch::Packed ForwardBatch::lay_out(int64_t num_tokens, int64_t num_seqs) const {
  Carver carver(host_.data());
  Packed packed{};
  packed.token_ids = carver.take<int32_t>(num_tokens);
  packed.logits_indices = carver.take<int32_t>(num_tokens);
  packed.query_start_loc = carver.take<int32_t>(num_seqs + 1);
  packed.seq_lens = carver.take<int32_t>(num_seqs);
  packed.block_table_loc = carver.take<int32_t>(num_seqs + 1);
  packed.lora_slots = carver.take<int32_t>(num_seqs);
  packed.tables = carver.take<int32_t>(0);
  return packed;
}

void ForwardBatch::add_sequence(const ScheduledBatch& batch, int32_t row, const Packed& packed) {
  const ScheduledSequence& sequence = batch.sequences[row];
  const int64_t begin = sequence.num_computed_tokens;
  const int64_t end = begin + sequence.num_scheduled_tokens;
  const int64_t num_blocks = (end + limits_.block_size - 1) / limits_.block_size;
  check(begin < end && end <= std::ssize(sequence.token_ids), "scheduled positions are not known");
  check(num_blocks <= std::ssize(sequence.block_table),
        "the block table does not cover the scheduled positions");
  check(num_blocks <= limits_.max_blocks_per_sequence(), "a sequence is longer than max_model_len");
  check(inputs_.num_tokens + (end - begin) <= batch.num_tokens,
        "num_tokens is not the sum over the sequences");

  add_sample_rows(sequence, row, packed);
  int32_t* const token_ids = packed.token_ids + inputs_.num_tokens;
  std::ranges::copy(sequence.token_ids.subspan(begin, end - begin), token_ids);
  int32_t& last_id = token_ids[end - begin - 1];
  if (last_id == kPendingToken) last_id = -1 - sequence.slot;
  packed.block_table_loc[row] = static_cast<int32_t>(num_table_entries_);
  std::ranges::copy(sequence.block_table.first(num_blocks), packed.tables + num_table_entries_);
  num_table_entries_ += num_blocks;

  inputs_.num_tokens += end - begin;
  packed.query_start_loc[row + 1] = static_cast<int32_t>(inputs_.num_tokens);
  packed.seq_lens[row] = static_cast<int32_t>(end);
  packed.lora_slots[row] = sequence.lora_slot;
  inputs_.max_query_len = std::max(inputs_.max_query_len, end - begin);
  inputs_.max_seq_len = std::max(inputs_.max_seq_len, end);
}

void ForwardBatch::add_sample_rows(const ScheduledSequence& sequence, int32_t row,
                                   const Packed& packed) {
  const int64_t begin = sequence.num_computed_tokens;
  const int64_t end = begin + sequence.num_scheduled_tokens;
  const auto add = [&](int64_t position, int32_t target_id) {
    packed.logits_indices[sample_rows_.size()] =
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

void ForwardBatch::send(const Packed& packed, int64_t num_padding_seqs) {
  const auto* const end = reinterpret_cast<const std::byte*>(packed.tables + num_table_entries_);
  backend_.copy_to_device(packed_->data(), host_.data(), end - host_.as<>());
  const auto on_device = [&](const int32_t* host) {
    const auto offset = reinterpret_cast<const std::byte*>(host) - host_.as<>();
    return reinterpret_cast<const int32_t*>(static_cast<const std::byte*>(packed_->data()) +
                                            offset);
  };
  PackedInputs sent;
  sent.num_seqs = inputs_.num_seqs;
  sent.num_padding_seqs = num_padding_seqs;
  sent.max_query_len = inputs_.max_query_len;
  sent.num_logits = inputs_.num_logits;
  sent.token_ids = on_device(packed.token_ids);
  sent.query_start_loc = on_device(packed.query_start_loc);
  sent.seq_lens = on_device(packed.seq_lens);
  sent.block_table_loc = on_device(packed.block_table_loc);
  sent.packed_tables = on_device(packed.tables);
  sent.logits_indices = on_device(packed.logits_indices);
  if (has_loras_) sent.lora_slots = on_device(packed.lora_slots);
  backend_.unpack_inputs(sent, arrays_);
}

// What unpack_inputs() does, in the host's copies.
void ForwardBatch::add_padding(int64_t num_padding_seqs, const Packed& packed) {
  if (num_padding_seqs == 0) return;
  check(inputs_.num_tokens == inputs_.num_seqs && inputs_.num_logits == inputs_.num_seqs,
        "padding behind more than one token or row of logits");
  for (int64_t i = 0; i < num_padding_seqs; ++i) {
    packed.seq_lens[inputs_.num_seqs] = 0;
    packed.query_start_loc[++inputs_.num_seqs] = static_cast<int32_t>(++inputs_.num_tokens);
    ++inputs_.num_logits;
  }
}

void ForwardBatch::point_at_arrays() {
  inputs_.block_table_stride = arrays_.block_table_stride;
  inputs_.token_ids = arrays_.token_ids;
  inputs_.positions = arrays_.positions;
  inputs_.slot_mapping = arrays_.slot_mapping;
  inputs_.query_start_loc = arrays_.query_start_loc;
  inputs_.seq_lens = arrays_.seq_lens;
  inputs_.block_tables = arrays_.block_tables;
  inputs_.logits_indices = arrays_.logits_indices;
  if (has_loras_) inputs_.lora_slots = arrays_.lora_slots;
}

}  // namespace octavo
