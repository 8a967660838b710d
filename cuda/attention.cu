#include <algorithm>
#include <cmath>

#include "cuda/attention.h"
#include "cuda/common/element.cuh"
#include "cuda/decode_attention.h"
#include "cuda/prefill_attention.h"
#include "cuda/prefill_attention_sm90.h"
#include "cuda/prefill_combine.h"

namespace octavo::cuda {
namespace {

constexpr int kMaxSplits = 64;
constexpr int kMinSplitKeys = 256;  // of one split of a prefill
constexpr int kMaxBlocksPerSm = 4;  // of a split prefill: bounds the partial results

int num_tiles(const ForwardInputs& inputs, int group, int tile_rows) {
  int64_t tiles = 0;
  const auto starts = inputs.host_query_start_loc;
  for (size_t i = 0; i + 1 < starts.size(); ++i) {
    const int64_t queries = starts[i + 1] - starts[i];
    if (queries > 1) tiles += (queries * group + tile_rows - 1) / tile_rows;
  }
  check(tiles <= AttentionPlan::kMaxTiles, "attention: queries of a step");
  return static_cast<int>(tiles);
}

int num_decodes(const ForwardInputs& inputs) {
  int count = 0;
  const auto starts = inputs.host_query_start_loc;
  for (size_t i = 0; i + 1 < starts.size(); ++i) count += starts[i + 1] - starts[i] == 1 ? 1 : 0;
  return count;
}

// Splits of the keys that bring `blocks` blocks up to `wanted_blocks`.
int prefill_splits(const DeviceContext& context, const ForwardInputs& inputs, int64_t blocks,
                   int64_t wanted_blocks) {
  if (context.batch_invariant || blocks == 0) return 1;
  const int64_t longest = inputs.max_seq_len / kMinSplitKeys;
  return static_cast<int>(
      std::clamp<int64_t>(std::min(wanted_blocks / blocks, longest), 1, kMaxSplits));
}

}  // namespace

void Attention::start_step(const DeviceContext& context, const ForwardInputs& inputs,
                           const AttentionParams& params, const CudaKVCache& cache) {
  const int kv_heads = static_cast<int>(params.num_kv_heads);
  const int group = static_cast<int>(params.num_q_heads / params.num_kv_heads);
  step_ = Step{};
  step_.num_decodes = num_decodes(inputs);
  step_.on_sm90 = context.is_hopper && cache.tensor_map() != nullptr &&
                  (params.head_dim == 64 || params.head_dim == 128);
  step_.tile_rows = step_.on_sm90 ? kPrefillRowsSm90 : kPrefillRows;
  step_.num_tiles = num_tiles(inputs, group, step_.tile_rows);
  step_.num_splits = prefill_splits(context, inputs, int64_t{step_.num_tiles} * kv_heads,
                                    (step_.on_sm90 ? 1 : 2) * context.num_sms);
  plan_.make(context, inputs, {kv_heads, group, step_.tile_rows});
}

void Attention::reserve(const DeviceContext& context, const AttentionParams& params) {
  if (head_dim_ == params.head_dim) return;
  const int kv_heads = static_cast<int>(params.num_kv_heads);
  const int group = static_cast<int>(params.num_q_heads / params.num_kv_heads);
  const int64_t decode_rows = plan_.max_partials(context, kv_heads) * params.num_q_heads;
  const int64_t prefill_rows = int64_t{kMaxBlocksPerSm} * context.num_sms * kPrefillRows;
  partial_rows_ = std::max(decode_rows, prefill_rows);
  partial_out_ = DeviceMemory(partial_rows_ * params.head_dim * sizeof(float));
  partial_stats_ = DeviceMemory(partial_rows_ * sizeof(float2));
  const int64_t counter_bytes =
      int64_t{AttentionPlan::kMaxSeqs} * kv_heads * decode_head_tiles(group) * sizeof(int32_t);
  counters_ = DeviceMemory(counter_bytes);
  check_cuda(cudaMemsetAsync(counters_.data(), 0, counter_bytes, context.stream));
  head_dim_ = params.head_dim;
}

template <typename T, typename KV>
void Attention::run_typed(const DeviceContext& context, TensorView qkv, const ForwardInputs& inputs,
                          const AttentionParams& params, const CudaKVCache& cache, TensorView out) {
  constexpr float kLog2E = 1.4426950408889634f;
  const KVLayer layer = cache.layer(params.layer);
  const float cap = params.logit_soft_cap;
  PagedAttentionArgs<T, KV> args{};
  args.qkv = qkv.as<T>();
  args.qkv_stride = qkv.row_stride;
  args.out = out.as<T>();
  args.keys = static_cast<const KV*>(layer.keys);
  args.values = static_cast<const KV*>(layer.values);
  args.query_start_loc = inputs.query_start_loc;
  args.seq_lens = inputs.seq_lens;
  args.block_tables = inputs.block_tables;
  args.block_table_stride = inputs.block_table_stride;
  args.plan = plan_.view();
  args.partial_out = partial_out_.as<float>();
  args.partial_stats = partial_stats_.as<float2>();
  args.counters = counters_.as<int32_t>();
  args.num_q_heads = static_cast<int>(params.num_q_heads);
  args.num_kv_heads = static_cast<int>(params.num_kv_heads);
  args.group = args.num_q_heads / args.num_kv_heads;
  args.head_dim = static_cast<int>(params.head_dim);
  args.block_size = layer.block_size;
  args.window = static_cast<int>(params.sliding_window);
  args.scale = cap > 0.0f ? params.scale / cap : params.scale * kLog2E;
  args.soft_cap = cap * kLog2E;
  args.sinks = params.sinks;

  const int units = plan_.max_units(context, static_cast<int>(inputs.num_seqs), args.num_kv_heads);
  const int items =
      step_.num_decodes == 0 ? 0 : units * args.num_kv_heads * decode_head_tiles(args.group);
  decode_attention(args, {items, context.num_sms, context.shared_bytes_per_sm, params.layer != 0,
                          context.stream});
  const SplitTiles splits{step_.num_tiles, step_.tile_rows, step_.num_splits};
  check(splits.num_rows(args.num_kv_heads) <= partial_rows_, "attention: splits");
  if constexpr (std::is_same_v<T, KV>) {
    if (step_.on_sm90) {
      prefill_attention_sm90(args, {step_.num_tiles, step_.num_splits, cache.tensor_map(),
                                    static_cast<int>(cache.rows_per_half()),
                                    static_cast<int>(params.layer), context.stream});
      return;
    }
  }
  const PrefillGrid grid{step_.num_tiles, step_.num_splits, context.stream};
  prefill_attention(args, grid);
}

void Attention::run(const DeviceContext& context, TensorView qkv, const ForwardInputs& inputs,
                    const AttentionParams& params, const CudaKVCache& cache, TensorView out) {
  check(
      params.head_dim == cache.spec().head_dim && params.num_kv_heads == cache.spec().num_kv_heads,
      "attention: shape of the cache");
  if (inputs.num_seqs == 0) return;
  reserve(context, params);
  if (params.layer == 0) start_step(context, inputs, params, cache);
  dispatch_half(qkv.dtype, [&]<typename T>(T) {
    if (cache.spec().dtype == DType::kFloat8E4M3) {
      run_typed<T, fp8>(context, qkv, inputs, params, cache, out);
    } else {
      check(cache.spec().dtype == qkv.dtype, "attention: type of the cache");
      run_typed<T, T>(context, qkv, inputs, params, cache, out);
    }
  });
}

}  // namespace octavo::cuda
