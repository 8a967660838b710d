// Block (sequence, part): each part takes every so many-th run of kThreads tokens, and of the
// sequence's block table. Padding sequences have a block each too. Bound by latency: a step's
// arrays are some tens of KB.
#include <algorithm>

#include "cuda/common/launch.cuh"
#include "cuda/unpack_inputs.h"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kTokensPerPart = 1024;

struct UnpackArgs {
  PackedInputs packed;
  ForwardArrays arrays;
  const int32_t* drawn_ids;
};

__device__ void add_padding(const UnpackArgs& args, int seq) {
  const ForwardArrays& arrays = args.arrays;
  arrays.token_ids[seq] = 0;
  arrays.positions[seq] = 0;
  arrays.slot_mapping[seq] = -1;
  arrays.query_start_loc[seq + 1] = seq + 1;
  arrays.seq_lens[seq] = 0;
  arrays.logits_indices[seq] = seq;
  if (args.packed.lora_slots != nullptr) arrays.lora_slots[seq] = -1;
}

__device__ void unpack_tokens(const UnpackArgs& args, int seq, int first, int step) {
  const PackedInputs& packed = args.packed;
  const ForwardArrays& arrays = args.arrays;
  const int begin = packed.query_start_loc[seq];
  const int end = packed.query_start_loc[seq + 1];
  const int32_t* table = packed.packed_tables + packed.block_table_loc[seq];
  const int length = packed.seq_lens[seq];
  for (int t = begin + first; t < end; t += step) {
    const int id = packed.token_ids[t];
    const int position = length - (end - t);
    const int block = position / static_cast<int>(arrays.block_size);
    const int offset = position - block * static_cast<int>(arrays.block_size);
    arrays.token_ids[t] = id >= 0 ? id : args.drawn_ids[-1 - id];
    arrays.positions[t] = position;
    arrays.slot_mapping[t] = table[block] * arrays.block_size + offset;
    if (packed.lora_slots != nullptr) arrays.lora_slots[t] = packed.lora_slots[seq];
  }
  if (first == 0) {
    arrays.query_start_loc[seq + 1] = end;
    arrays.seq_lens[seq] = length;
  }
}

__global__ void __launch_bounds__(kThreads) unpack_kernel(UnpackArgs args) {
  const PackedInputs& packed = args.packed;
  const ForwardArrays& arrays = args.arrays;
  const int seq = blockIdx.x;
  const int first = blockIdx.y * kThreads + threadIdx.x;
  const int step = gridDim.y * kThreads;
  if (seq >= packed.num_seqs) {
    if (first == 0) add_padding(args, seq);
    return;
  }
  unpack_tokens(args, seq, first, step);
  const int table_begin = packed.block_table_loc[seq];
  const int num_blocks = packed.block_table_loc[seq + 1] - table_begin;
  int32_t* table = arrays.block_tables + seq * arrays.block_table_stride;
  for (int i = first; i < num_blocks; i += step) {
    table[i] = packed.packed_tables[table_begin + i];
  }
  if (seq == 0 && first == 0) arrays.query_start_loc[0] = 0;
  const int num_threads = static_cast<int>(packed.num_seqs) * step;
  for (int i = seq * step + first; i < packed.num_logits; i += num_threads) {
    arrays.logits_indices[i] = packed.logits_indices[i];
  }
}

}  // namespace

void unpack_inputs(const DeviceContext& context, const PackedInputs& packed,
                   const int32_t* drawn_ids, const ForwardArrays& arrays) {
  const int64_t parts =
      std::clamp<int64_t>((packed.max_query_len + kTokensPerPart - 1) / kTokensPerPart, 1, 16);
  const dim3 grid(packed.num_seqs + packed.num_padding_seqs, parts);
  launch(unpack_kernel, {.grid = grid, .block = dim3(kThreads), .overlap = false}, context.stream,
         UnpackArgs{packed, arrays, drawn_ids});
}

}  // namespace octavo::cuda
