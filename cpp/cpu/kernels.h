// The loops that are compiled once for each instruction set (isa_avx2.cc, isa_avx512.cc,
// isa_amx.cc) and chosen when a backend is made. Only plain structs and function pointers cross
// this border: nothing of the standard library is instantiated in those files, so the linker can
// never give the rest of the program a copy that needs AVX-512.
//
// Every kernel adds up in an order that depends only on the lengths of a row, never on how many
// rows there are, on the thread or on the address: a row's result is always bitwise the same. Which
// kernel multiplies a quantised panel may depend on the number of rows (min_widen_rows).
#pragma once

#include <cstdint>

#include "cpu/cpu_features.h"
#include "cpu/panel_layout.h"

namespace octavo::cpu {

// --- GEMM ------------------------------------------------------------------------------------

// out[r, c] = sum over k ascending of x[r, k] * w[c, k], plus bias[c]. The quantised formats add
// the products of a block of 32 input features exactly, and the blocks in ascending order.
struct GemmArgs {
  const std::byte* x = nullptr;  // [num_rows, depth] in the format's ActivationFormat
  int64_t x_stride_bytes = 0;    // between rows
  int64_t num_rows = 0;
  const std::byte* panels = nullptr;
  int64_t panel_bytes = 0;
  int64_t depth = 0;     // input features, not padded
  int64_t num_cols = 0;  // output features, from the first panel on
  float* out = nullptr;  // [num_rows, num_cols]
  int64_t out_stride = 0;
  const float* bias = nullptr;  // [num_cols] or null
};

// --- Attention -------------------------------------------------------------------------------

enum class KVFormat : uint8_t { kFloat32, kFloat16, kBFloat16, kInt8 };
inline constexpr int kNumKVFormats = 4;

// One KV head of one layer. What belongs to a slot lies in block `slot / block_size`, at
// block * block_stride_bytes from each base: keys [head_dim][block_size], so that one dimension of
// consecutive keys is one vector; values [block_size][head_dim]; for kInt8 float32 scales of keys
// and of values, [block_size] each: 1/127 of the greatest magnitude of the slot's key or value.
// The AMX table keeps kBFloat16 in pairs (kernels/paired_cache.h), which take the same room.
struct KVHeadView {
  std::byte* key_base = nullptr;
  std::byte* value_base = nullptr;
  std::byte* key_scale_base = nullptr;
  std::byte* value_scale_base = nullptr;
  int64_t block_stride_bytes = 0;
  int64_t block_size = 0;
  int64_t head_dim = 0;
};

// Keys are taken in tiles of 64 absolute positions, so a row meets them in the same groups
// whatever was computed in the same step.
inline constexpr int64_t kKeyTile = 64;
// Query rows that share the tiles of one task.
inline constexpr int64_t kQueryRows = 64;

// Rows [row_begin, row_begin + num_rows) of one sequence and KV head; row = token * group + head.
struct AttentionTask {
  const float* q = nullptr;  // first scheduled token, first query head of the KV head
  int64_t q_stride = 0;      // between tokens
  float* out = nullptr;      // likewise
  int64_t out_stride = 0;
  int64_t group = 0;  // query heads per KV head
  int64_t row_begin = 0;
  int64_t num_rows = 0;        // <= kQueryRows
  int64_t first_position = 0;  // absolute position of the first scheduled token
  KVHeadView kv;
  const int32_t* block_table = nullptr;
  float scale = 0.0f;
  float soft_cap = 0.0f;         // 0 = none
  int64_t sliding_window = 0;    // 0 = none
  const float* sinks = nullptr;  // [group], see AttentionParams
  float* scratch = nullptr;      // attention_scratch_floats(head_dim), 64-byte aligned
};

static constexpr int64_t padded_head_dim(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

static constexpr int64_t attention_scratch_floats(int64_t head_dim) {
  const int64_t padded = padded_head_dim(head_dim);
  return kQueryRows * (2 * padded + kKeyTile + 2) + 2 * kKeyTile * padded;
}

// --- Sampling --------------------------------------------------------------------------------

// Logits of a chunk are summed together; chunk sums are added in ascending order.
inline constexpr int64_t kSumChunk = 512;

// --- The table -------------------------------------------------------------------------------

using GemmKernel = void (*)(const GemmArgs& args);

struct Kernels {
  // Of the rows that `gemm` takes.
  ActivationFormat activation_format[kNumPanelFormats];
  GemmKernel gemm[kNumPanelFormats];
  // One panel of a quantised format as a kBFloat16 panel of the same `depth`; null where the table
  // does not widen. Weights are rounded to nearest, ties away from zero.
  void (*widen_panel[kNumPanelFormats])(const std::byte* panel, int64_t depth, std::byte* out);
  // Panels with a widen_panel are widened in cache for so many rows and more, and the kBFloat16
  // GEMM takes them. Fewer rows are multiplied as the panels are.
  int64_t min_widen_rows;

  // Packs up to 16 rows of float32 [num_rows, depth] into one panel; null for quantised formats.
  void (*pack_panel[kNumPanelFormats])(const float* rows, int64_t num_rows, int64_t depth,
                                       std::byte* panel);
  // out[k] = element k of row `lane`, exactly as stored.
  void (*unpack_row[kNumPanelFormats])(const std::byte* panel, int64_t lane, int64_t depth,
                                       float* out);
  // One row of activations into activation_row_bytes(format, depth) bytes; null for kFloat32.
  void (*convert_row[kNumActivationFormats])(const float* x, int64_t depth, std::byte* out);
  // The same for `num_blocks` blocks of kBlockDepth features of a row of `depth`, from block
  // `first_block` on: x [num_blocks * kBlockDepth], `row` the whole row.
  void (*convert_blocks[kNumActivationFormats])(const float* x, int64_t first_block,
                                                int64_t num_blocks, int64_t depth, std::byte* row);

  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t size, float* out);
  void (*add)(float* residual, const float* delta, int64_t size);
  void (*silu_mul)(const float* gate, const float* up, int64_t size, float* out);
  void (*gelu_tanh_mul)(const float* gate, const float* up, int64_t size, float* out);
  void (*scale)(float* x, float factor, int64_t size);
  void (*soft_cap)(float* x, float cap, int64_t size);
  // Rotates one head; cos and sin are [rotary_dim / 2].
  void (*rope_half)(float* head, const float* cos, const float* sin, int64_t rotary_dim);
  void (*rope_interleaved)(float* head, const float* cos, const float* sin, int64_t rotary_dim);

  // Writes key and value [head_dim] of one token. Only this table's attention may read them.
  void (*write_kv[kNumKVFormats])(const KVHeadView& kv, int64_t slot, const float* key,
                                  const float* value);
  void (*attention[kNumKVFormats])(const AttentionTask& task);

  // The greatest of x[0, size), or NaN if one of them is NaN.
  float (*max_or_nan)(const float* x, int64_t size);
  // The greatest of each run of `run` elements: out [ceil(size / run)]. Requires: run % 16 == 0.
  void (*run_maxima)(const float* x, int64_t size, int64_t run, float* out);
  // Index of the first element equal to `value`, or size.
  int64_t (*find_equal)(const float* x, int64_t size, float value);
  int64_t (*count_greater)(const float* x, int64_t size, float value);
  int64_t (*count_equal)(const float* x, int64_t size, float value);
  // Indices of the elements >= threshold, ascending, at most `capacity`; returns how many there
  // are.
  int64_t (*collect_at_least)(const float* x, int64_t size, float threshold, int32_t* indices,
                              int64_t capacity);
  // out[c] = sum of exp((x - max) * scale) over chunk c of kSumChunk elements.
  void (*exp_sums)(const float* x, int64_t size, float max, float scale, float* out);
  // x[i] = exp((x[i] - max) * scale), the very terms that exp_sums adds.
  void (*exp_terms)(const float* x, int64_t size, float max, float scale, float* out);

  bool widens(PanelFormat format, int64_t num_rows) const {
    return num_rows >= min_widen_rows && widen_panel[static_cast<int>(format)] != nullptr;
  }
  // What `num_rows` rows become against panels of `format`.
  ActivationFormat activation_format_for(PanelFormat format, int64_t num_rows) const {
    const PanelFormat multiplied = widens(format, num_rows) ? PanelFormat::kBFloat16 : format;
    return activation_format[static_cast<int>(multiplied)];
  }
};

// The kernels of one instruction set. Requires: is_supported(isa).
const Kernels& kernels_for(Isa isa);

}  // namespace octavo::cpu
