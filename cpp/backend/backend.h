// The device operations that a model is written against. One implementation a kind of device: cpu/,
// cuda/. Every pointer inside the views is device memory of this backend. Operations are issued in
// order on one stream and may be asynchronous: results are on the host only after synchronize().
//
// Batch invariance: row t of every output depends only on row t of the inputs (and on its own
// sequence's cache), with one order of accumulation whatever the number of rows. The CPU backend
// holds this bitwise, on AMX with quantised weights as CUDA does: when built for it
// (BackendOptions::batch_invariant).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "base/dtype.h"
#include "base/errors.h"
#include "base/tensor_view.h"
#include "model/model_config.h"
#include "sched/scheduled_batch.h"

namespace octavo {

struct BackendOptions {
  std::string device = "cpu";             // "cpu" or "cuda:<index>"
  DType weight_dtype = DType::kBFloat16;  // float32, bfloat16 or float16; quantised weights that a
                                          // backend keeps quantised are not affected
  int32_t num_threads = 0;                // CPU; 0 = the cores this process may run on
  std::string cpu_isa;                    // CPU; "" = the best here, or avx2, avx512, amx
  bool keep_quantized = false;    // quantised types stay so where the backend can, else they
                                  // become weight_dtype; on the CPU activations become int8
                                  // against them, bfloat16 in larger steps on AMX; CUDA has
                                  // kInt4G* and kFloat8* only
  std::string quantization;       // quantises plain types at load; CPU: "int8" or "int4";
                                  // CUDA: "fp8", projections only
  bool batch_invariant = false;   // CUDA, AMX
  bool enforce_eager = false;     // CUDA: no graphs
  bool portable_kernels = false;  // CUDA: only those that run from sm_80 on; for tests
  std::string gemm_tuning_cache;  // CUDA: file of measured choices of cuBLASLt; "" = none
  bool tune_gemm = false;         // CUDA: measure them in warm-up and write that file
};

struct DeviceInfo {
  std::string name;         // "cpu (AVX-512, 2 threads)", "NVIDIA H200"
  int64_t total_bytes = 0;  // device memory
  int64_t free_bytes = 0;   // at the time of the call
};

// Device memory owned by the backend that made it; must not outlive it.
class DeviceBuffer {
 public:
  virtual ~DeviceBuffer() = default;
  virtual void* data() const = 0;
  virtual int64_t size_bytes() const = 0;
};

// A weight as it stands in a checkpoint, in host memory: [rows, cols] row-major, cols along the
// input features; blocks of quantised types run along cols. A vector has rows = 1.
struct WeightView {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t rows = 0;
  int64_t cols = 0;
};

// y = x W^T + b with W [out_features, in_features], packed as the device likes it. Made empty, then
// filled row range by row range, so that fused projections (q|k|v, gate|up) load from several
// tensors. Also serves as the embedding table when embeddings are tied.
class LinearWeight {
 public:
  virtual ~LinearWeight() = default;
  virtual int64_t out_features() const = 0;
  virtual int64_t in_features() const = 0;
  virtual int64_t size_bytes() const = 0;
};

// Adapters of low rank beside linear weights: for the rows of a step that belong to one,
// y += scale * (x A^T) B^T. Several are resident, each in a slot, and a step's rows may belong to
// different ones. Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021.
struct LoraLimits {
  int32_t num_slots = 0;  // 0 = no adapters
  int64_t max_rank = 0;
};

// A projection inside a fused weight: each part has a pair of matrices of its own.
struct LoraPart {
  int64_t row_begin = 0;  // in the weight's out_features
  int64_t num_rows = 0;
};
inline constexpr int64_t kMaxLoraParts = 4;
inline constexpr int32_t kMaxLoras = 64;
inline constexpr int64_t kMaxLoraRank = 512;

// One adapter's pair for one part, in host memory: a [rank, in_features], b [num_rows, rank].
struct LoraView {
  float scale = 0.0f;
  WeightView a;
  WeightView b;
};

// The adapters of one linear weight, by slot and part. A slot that was never loaded adds nothing.
class LoraBank {
 public:
  virtual ~LoraBank() = default;
  virtual int64_t size_bytes() const = 0;
};

// Which rows of a pass belong to which slot: int32 [lora_plan_size()] of device memory, 16-byte
// aligned, filled by plan_lora() as the backend likes.
struct LoraPlan {
  int32_t* memory = nullptr;
  int64_t num_rows = 0;
  int32_t num_slots = 0;
};
constexpr int64_t lora_plan_size(int64_t num_rows, int64_t num_slots) {
  return num_rows + 4 * (num_rows / 16 + num_slots + 1);
}

// Keys and values of every layer in fixed blocks. A slot is block_id * block_size + offset.
struct KVCacheSpec {
  int64_t num_layers = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t block_size = 0;
  int64_t num_blocks = 0;
  DType dtype = DType::kBFloat16;

  // Bytes of one block over all layers, keys and values; int8 has a float32 scale for each of them.
  int64_t block_bytes() const {
    const int64_t vectors = 2 * num_layers * num_kv_heads * block_size;
    return dtype_bytes(dtype, vectors * head_dim) + (dtype == DType::kInt8 ? vectors * 4 : 0);
  }
};

class KVCache {
 public:
  virtual ~KVCache() = default;
  virtual const KVCacheSpec& spec() const = 0;
};

// cos and sin of every position up to max_model_len: float32 [max_model_len, rotary_dim / 2] each,
// the attention factor multiplied in.
struct RopeTable {
  const float* cos = nullptr;
  const float* sin = nullptr;
  int64_t rotary_dim = 0;
  bool interleaved = false;
};

// The flat arrays of one step. Device pointers, and host copies of the small ones for planning.
struct ForwardInputs {
  int64_t num_tokens = 0;
  int64_t num_seqs = 0;
  int64_t num_logits = 0;
  int64_t max_query_len = 0;
  int64_t max_seq_len = 0;
  int64_t block_table_stride = 0;
  const int32_t* token_ids = nullptr;        // [num_tokens]
  const int32_t* positions = nullptr;        // [num_tokens]
  const int64_t* slot_mapping = nullptr;     // [num_tokens]; -1: padding, not written to the cache
  const int32_t* query_start_loc = nullptr;  // [num_seqs + 1]
  const int32_t* seq_lens = nullptr;         // [num_seqs], computed + scheduled; 0: padding
  const int32_t* block_tables = nullptr;     // [num_seqs, block_table_stride]
  const int32_t* logits_indices = nullptr;   // [num_logits], ascending rows of token_ids
  const int32_t* lora_slots = nullptr;       // [num_tokens], -1: none; null: no row has an adapter
  std::span<const int32_t> host_query_start_loc;
  std::span<const int32_t> host_seq_lens;
};

// A step as it crosses to the device, without what follows from it: positions and slots, padding,
// tokens that only the device knows. Device pointers.
struct PackedInputs {
  int64_t num_seqs = 0;
  int64_t num_padding_seqs = 0;  // more sequences behind them, of one token each that is none
  int64_t max_query_len = 0;
  int64_t num_logits = 0;
  const int32_t* token_ids = nullptr;        // [num_tokens]; below 0: drawn last in slot -1 - id
  const int32_t* query_start_loc = nullptr;  // [num_seqs + 1]
  const int32_t* seq_lens = nullptr;         // [num_seqs]
  const int32_t* block_table_loc = nullptr;  // [num_seqs + 1], where each table begins
  const int32_t* packed_tables = nullptr;    // block ids, one table behind the other
  const int32_t* logits_indices = nullptr;   // [num_logits]
  const int32_t* lora_slots = nullptr;       // [num_seqs], -1: none; null: none has an adapter
};

// The arrays of ForwardInputs, to be written. Sized for every step: their addresses do not change.
struct ForwardArrays {
  int64_t block_size = 0;
  int64_t block_table_stride = 0;
  int32_t* token_ids = nullptr;
  int32_t* positions = nullptr;
  int64_t* slot_mapping = nullptr;
  int32_t* query_start_loc = nullptr;
  int32_t* seq_lens = nullptr;
  int32_t* block_tables = nullptr;
  int32_t* logits_indices = nullptr;
  int32_t* lora_slots = nullptr;  // left alone where no sequence has an adapter
};

struct AttentionParams {
  int64_t layer = 0;
  int64_t num_q_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  float scale = 0.0f;
  float logit_soft_cap = 0.0f;  // 0 = none; s = cap * tanh(s / cap)
  int64_t sliding_window = 0;   // 0 = none; else keys in (position - window, position]
  // Null, or float32 [num_q_heads] on the device: a score of each head that joins the denominator
  // of its softmax and has no value.
  const float* sinks = nullptr;
};

// Norms of runs of q and of k: head_dim elements for a norm of every head, all of q (of k) for a
// norm over the heads together. The weights are float32 [q_run] and [k_run].
struct QkNorm {
  const float* q_weight = nullptr;
  const float* k_weight = nullptr;
  int64_t q_run = 0;
  int64_t k_run = 0;
  float eps = 0.0f;
};

// f of down(f(gate x) * up x): SiLU, or GELU in the tanh approximation.
enum class GatedFunction : uint8_t { kSilu, kGeluTanh };

// gate and up are the halves of gate_up [2 I, in], gate first; down [out, I].
struct GatedMlp {
  const LinearWeight& gate_up;
  const LinearWeight& down;
  GatedFunction function = GatedFunction::kSilu;
};

// Scratch of Backend::gated_mlp.
struct GatedMlpScratch {
  TensorView gate_up;  // [T, 2 I]
  TensorView gated;    // [T, I]
};

inline constexpr int64_t kMaxExperts = 512;

// A mixture of experts. The rows of gate_up [num_experts * 2 I, hidden] are those of expert 0, gate
// first, then those of expert 1; likewise down [num_experts * hidden, I]. Neither has a bias.
struct ExpertBank {
  const LinearWeight& gate_up;
  const LinearWeight& down;
  int64_t num_experts = 0;
  int64_t experts_per_token = 0;
  bool renormalize = false;  // the weights of the chosen experts add up to 1
};

// Scratch of Backend::experts for P = T * experts_per_token pairs of token and expert.
struct ExpertScratch {
  TensorView plan;     // int32 [1, expert_plan_size(P, num_experts)]
  TensorView gate_up;  // [P, 2 I]
  TensorView gated;    // [P, I]
  TensorView out;      // [P, hidden]
};

// Expert, weight (float32), sorted row and token of each pair; first sorted row of each expert.
constexpr int64_t expert_plan_size(int64_t num_pairs, int64_t num_experts) {
  return 4 * num_pairs + num_experts + 1;
}

// One row of logits to sample from; `sequence` points into the step's ScheduledBatch.
struct SampleRow {
  const ScheduledSequence* sequence = nullptr;
  int32_t batch_row = 0;   // index in ScheduledBatch::sequences
  int32_t target_id = -1;  // >= 0: a prompt position; no draw, report this token's log-probability
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual DeviceInfo device_info() const = 0;
  virtual DType activation_dtype() const = 0;  // of hidden states; logits are always float32
  // Of the residual, which every layer adds to: a wider type, at most twice as wide, keeps what the
  // roundings of many additions would lose.
  virtual DType residual_dtype() const { return activation_dtype(); }
  virtual DType default_kv_dtype() const = 0;

  // Memory. Throws OutOfMemoryError.
  virtual std::unique_ptr<DeviceBuffer> allocate(int64_t size_bytes) = 0;
  virtual void copy_to_device(void* device, const void* host, int64_t size_bytes) = 0;
  virtual void copy_to_host(void* host, const void* device, int64_t size_bytes) = 0;
  virtual void synchronize() = 0;

  // Weights. Memory may be taken at load_rows, where the checkpoint's type is known: a backend may
  // keep quantised blocks as they are, each row range in its own type.
  virtual std::unique_ptr<LinearWeight> create_linear(int64_t out_features, int64_t in_features,
                                                      bool has_bias) = 0;
  // The same for a projection inside a layer, which may be quantised where embeddings, routers
  // and the head are not. `source_dtype` is the type that all its rows come in, a plain one
  // where they differ: a backend may keep codes only where it knows of them before they come.
  virtual std::unique_ptr<LinearWeight> create_projection(int64_t out_features, int64_t in_features,
                                                          bool has_bias, DType /*source_dtype*/) {
    return create_linear(out_features, in_features, has_bias);
  }
  // The same for the projections of experts, one below the other: tensors of `tensor_rows` rows.
  virtual std::unique_ptr<LinearWeight> create_experts(int64_t out_features, int64_t in_features,
                                                       int64_t /*tensor_rows*/,
                                                       DType /*source_dtype*/) {
    return create_linear(out_features, in_features, false);
  }
  // Fills rows [row_begin, row_begin + view.rows). Safe to call from several threads on disjoint
  // rows. `view` is only read during the call. Requires: view.cols == in_features.
  virtual void load_rows(LinearWeight& weight, int64_t row_begin, const WeightView& view) = 0;
  virtual void load_bias(LinearWeight& weight, int64_t row_begin, const WeightView& view) = 0;
  // Bytes that such a weight takes when loaded from `source_dtype`; for planning before any load.
  virtual int64_t linear_bytes(int64_t out_features, int64_t in_features,
                               DType source_dtype) const = 0;
  virtual int64_t projection_bytes(int64_t out_features, int64_t in_features,
                                   DType source_dtype) const {
    return linear_bytes(out_features, in_features, source_dtype);
  }
  // Of one tensor of experts.
  virtual int64_t experts_bytes(int64_t tensor_rows, int64_t in_features,
                                DType source_dtype) const {
    return linear_bytes(tensor_rows, in_features, source_dtype);
  }
  // Converts to float32. `out` is float32 [view.cols] device memory.
  virtual void load_vector(float* out, const WeightView& view) = 0;

  // Adapters beside a weight with these parts; every slot is empty at first.
  // Throws: OutOfMemoryError.
  virtual std::unique_ptr<LoraBank> create_lora_bank(int64_t /*in_features*/,
                                                     std::span<const LoraPart> /*parts*/,
                                                     const LoraLimits& /*limits*/) {
    throw ConfigError("this backend has no adapters");
  }
  virtual int64_t lora_bank_bytes(int64_t /*in_features*/, std::span<const LoraPart> /*parts*/,
                                  const LoraLimits& /*limits*/) const {
    return 0;
  }
  // Replaces a part of a slot, or empties all of it. From any thread, also while steps run that do
  // not name the slot; complete on return. Requires: 0 < rank <= max_rank, shapes that fit.
  virtual void load_lora(LoraBank& /*bank*/, int32_t /*slot*/, int64_t /*part*/,
                         const LoraView& /*view*/) {}
  virtual void clear_lora(LoraBank& /*bank*/, int32_t /*slot*/) {}

  virtual std::unique_ptr<KVCache> create_kv_cache(const KVCacheSpec& spec) = 0;

  // Operations. T = num_tokens. Views: activation_dtype(), contiguous rows unless said otherwise.
  // The residual, which embed() begins, rms_norm() reads, and add_rms_norm(), add(), scale() and
  // gather_rows() change or copy, may have residual_dtype().

  // out[t] = row token_ids[t] of the table. out [T, hidden].
  virtual void embed(const LinearWeight& table, const int32_t* token_ids, TensorView out) = 0;
  // out[t] = x[t] / rms(x[t]) * weight. x, out [T, hidden]; weight float32 [hidden].
  virtual void rms_norm(TensorView x, const float* weight, float eps, TensorView out) = 0;
  // residual += delta; out = rms_norm(residual).
  virtual void add_rms_norm(TensorView residual, TensorView delta, const float* weight, float eps,
                            TensorView out) = 0;
  // residual += delta.
  virtual void add(TensorView residual, TensorView delta) = 0;
  // out = x W^T + b. x [T, in], out [T, out] of activation_dtype(), or float32 for logits.
  virtual void linear(const LinearWeight& weight, TensorView x, TensorView out) = 0;
  // out = silu(gate) * up with gate | up = x W^T + b, gate first. x [T, in], out [T, intermediate];
  // gate_up [T, 2 * intermediate] is scratch.
  virtual void gated_linear(const LinearWeight& weight, TensorView x, TensorView gate_up,
                            TensorView out) {
    linear(weight, x, gate_up);
    silu_mul(gate_up, out);
  }
  // out = down(f(gate x) * up x). x [T, in], out [T, out].
  virtual void gated_mlp(const GatedMlp& mlp, TensorView x, const GatedMlpScratch& scratch,
                         TensorView out) {
    if (mlp.function == GatedFunction::kSilu) {
      gated_linear(mlp.gate_up, x, scratch.gate_up, scratch.gated);
    } else {
      linear(mlp.gate_up, x, scratch.gate_up);
      gelu_tanh_mul(scratch.gate_up, scratch.gated);
    }
    linear(mlp.down, scratch.gated, out);
  }
  // Sorts the rows of a pass by adapter: row i has slots[rows[i]], or slots[i] where rows is null.
  virtual void plan_lora(const int32_t* /*slots*/, const int32_t* /*rows*/,
                         const LoraPlan& /*plan*/) {
    check(false, "this backend has no adapters");
  }
  // out[t] += scale * (x[t] A^T) B^T with A, B and scale of row t's slot, part by part; rows
  // without an adapter stay as they are. x [T, in], out [T, out] of activation_dtype(), T =
  // plan.num_rows.
  virtual void add_lora(const LoraBank& /*bank*/, const LoraPlan& /*plan*/, TensorView /*x*/,
                        TensorView /*out*/) {
    check(false, "this backend has no adapters");
  }
  // linear(), then add_lora() on its output; a backend may let the two overlap.
  virtual void lora_linear(const LinearWeight& weight, const LoraBank& bank, const LoraPlan& plan,
                           TensorView x, TensorView out) {
    linear(weight, x, out);
    add_lora(bank, plan, x, out);
  }
  // Rotates q and k of qkv [T, (num_q_heads + 2 num_kv_heads) * head_dim] in place, then writes k
  // and v of layer params.layer to slot_mapping.
  virtual void rope_and_cache(TensorView qkv, const RopeTable& rope, const ForwardInputs& inputs,
                              const AttentionParams& params, KVCache& cache) = 0;
  // Causal attention of the queries in qkv over the paged cache. out [T, num_q_heads * head_dim].
  virtual void attention(TensorView qkv, const ForwardInputs& inputs, const AttentionParams& params,
                         const KVCache& cache, TensorView out) = 0;
  // out = silu(gate) * up with gate_up [T, 2 * intermediate], gate first.
  virtual void silu_mul(TensorView gate_up, TensorView out) = 0;
  // out = gelu(gate) * up in the tanh approximation, likewise.
  virtual void gelu_tanh_mul(TensorView gate_up, TensorView out) = 0;
  // x *= factor.
  virtual void scale(TensorView x, float factor) = 0;
  // x = cap * tanh(x / cap). x float32, contiguous.
  virtual void soft_cap(TensorView x, float cap) = 0;
  // Normalises q and k inside qkv, before they rotate.
  virtual void qk_norm(TensorView qkv, const QkNorm& norm, const AttentionParams& params) = 0;
  // out[t] = sum of weight * down(silu(gate(x[t])) * up(x[t])) over the experts_per_token experts
  // with the greatest router_logits[t] (of equal ones the first), weighted by the softmax over all
  // of them. router_logits float32 [T, num_experts]; x, out [T, hidden].
  virtual void experts(TensorView x, TensorView router_logits, const ExpertBank& bank,
                       const ExpertScratch& scratch, TensorView out) = 0;
  // out[i] = x[indices[i]]. out [num_logits, hidden].
  virtual void gather_rows(TensorView x, const int32_t* indices, TensorView out) = 0;

  // Steps. Between begin_step() and end_step() a step is issued; wait_step() returns when the
  // oldest that ended and was not waited for has run. A step that was begun and not ended is
  // forgotten by the next begin_step(). At most max_steps_in_flight() steps may await their
  // wait_step().
  virtual int32_t max_steps_in_flight() const { return 1; }
  // A pass over many rows takes about as long as one over the next multiple of so many.
  virtual int64_t row_multiple() const { return 1; }
  virtual void begin_step() {}
  virtual void end_step() {}
  virtual void wait_step() { synchronize(); }

  // Writes the arrays of a step: positions count up to each sequence's length, padding gets token
  // 0, position 0, slot -1, length 0 and a row of logits. The default is for backends whose device
  // memory is the host's and which have one step in flight.
  // Requires: padding only where every sequence has one token and one row of logits.
  virtual void unpack_inputs(const PackedInputs& packed, const ForwardArrays& arrays);

  // Samples each row of logits (float32 [rows.size(), vocab], overwritten). Rows that draw set
  // result.token_ids[row.batch_row] and append 1 + sampling->logprobs entries to result.logprobs;
  // rows with a target append 1 + sampling->prompt_logprobs to result.prompt_logprobs; none where
  // that parameter is negative. Entries come in row order, so the caller knows the offsets from the
  // parameters alone. Rank counts equal logits by id. A row that holds a NaN or an infinite
  // maximum, or whose rules leave no token, sets result.is_invalid[row.batch_row] and appends its
  // entries all the same, with id -1. What is drawn is also kept by slot, for unpack_inputs().
  // With more than one step in flight `result` is written by wait_step(), and must live that long.
  // Requires: rows ascend by batch_row, targets before the draw; result.token_ids and is_invalid
  // hold an element for each sequence; the wanted numbers of log-probs are at most vocab.
  virtual void sample(TensorView logits, std::span<const SampleRow> rows, StepResult& result) = 0;

  // Graphs. capture_graph() records the operations that `work` issues, without running them, and
  // returns an id; launch_graph() runs them as one, reading the same addresses again. Recorded
  // operations may depend on the contents of device arrays but not on the host copies in
  // ForwardInputs, so only steps of the same num_tokens, num_seqs and num_logits whose sequences
  // have one query each can share a graph; fewer sequences are padded. Requires: supports_graphs();
  // `work` has run once outside a capture; it neither copies nor samples.
  virtual bool supports_graphs() const { return false; }
  virtual int32_t capture_graph(const std::function<void()>& /*work*/) {
    check(false, "this backend has no graphs");
    return -1;
  }
  virtual void launch_graph(int32_t /*id*/) { check(false, "this backend has no graphs"); }

  // Forgets every graph. Requires: none is running.
  virtual void clear_graphs() {}
};

// Makes the backend that options.device names. Throws ConfigError for an unknown or absent device.
std::unique_ptr<Backend> create_backend(const BackendOptions& options);

}  // namespace octavo
