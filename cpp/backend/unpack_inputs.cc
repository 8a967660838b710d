// The plain twin of the device kernels that unpack a step.
#include <algorithm>

#include "backend/backend.h"
#include "base/check.h"

namespace octavo {
namespace {

void unpack_sequence(const PackedInputs& packed, const ForwardArrays& arrays, int64_t seq) {
  const int32_t begin = packed.query_start_loc[seq];
  const int32_t end = packed.query_start_loc[seq + 1];
  const int32_t* table = packed.packed_tables + packed.block_table_loc[seq];
  for (int32_t t = begin; t < end; ++t) {
    const int64_t position = packed.seq_lens[seq] - (end - t);
    check(packed.token_ids[t] >= 0, "a token of a step in flight, where only one is at a time");
    arrays.token_ids[t] = packed.token_ids[t];
    arrays.positions[t] = static_cast<int32_t>(position);
    arrays.slot_mapping[t] =
        table[position / arrays.block_size] * arrays.block_size + position % arrays.block_size;
    if (packed.lora_slots != nullptr) arrays.lora_slots[t] = packed.lora_slots[seq];
  }
  arrays.query_start_loc[seq + 1] = end;
  arrays.seq_lens[seq] = packed.seq_lens[seq];
  std::copy(table, packed.packed_tables + packed.block_table_loc[seq + 1],
            arrays.block_tables + seq * arrays.block_table_stride);
}

void add_padding(const PackedInputs& packed, const ForwardArrays& arrays, int64_t seq) {
  arrays.token_ids[seq] = 0;
  arrays.positions[seq] = 0;
  arrays.slot_mapping[seq] = -1;
  arrays.query_start_loc[seq + 1] = static_cast<int32_t>(seq + 1);
  arrays.seq_lens[seq] = 0;
  arrays.logits_indices[seq] = static_cast<int32_t>(seq);
  if (packed.lora_slots != nullptr) arrays.lora_slots[seq] = -1;
}

}  // namespace

void Backend::unpack_inputs(const PackedInputs& packed, const ForwardArrays& arrays) {
  arrays.query_start_loc[0] = 0;
  for (int64_t seq = 0; seq < packed.num_seqs; ++seq) unpack_sequence(packed, arrays, seq);
  std::copy_n(packed.logits_indices, packed.num_logits, arrays.logits_indices);
  for (int64_t i = 0; i < packed.num_padding_seqs; ++i) {
    add_padding(packed, arrays, packed.num_seqs + i);
  }
}

}  // namespace octavo
