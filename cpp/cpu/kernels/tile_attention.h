// The attention of attention.h over a bfloat16 cache on tiles: queries and probabilities are
// rounded to bfloat16 as well, scores, softmax and sums stay float32. A tile of keys and values is
// laid out in pairs for the products, once for all rows of the task. The few rows of a decode read
// the cache in place, because laying out pairs costs more than it saves; they add in the order of
// the tiles (paired_attention.h), so a row is the same bits in both. Denormals are zero throughout,
// as the tiles have it. Roof of 64 rows x 64 keys x 64 dimensions, computed: 64 products, 1,024
// cycles, beside the softmax (row_softmax.h), whose 1,700 cycles bound prefill. Measured by
// `bench_attention` before the softmax took sixteen rows at once, a prefill took 0.65 to 0.74 of
// the time of AVX-512 (bench/results/2026-11-29-cpu.md).
#pragma once

#include "cpu/kernels.h"
#include "cpu/kernels/attention.h"
#include "cpu/kernels/paired_attention.h"
#include "cpu/kernels/row_softmax.h"
#include "cpu/kernels/tile_product.h"
#include "cpu/kernels/vec_math.h"

namespace octavo::cpu {
namespace {

template <typename Tiles>
class TileAttention {
 public:
  // Shares the layout of attention.h's scratch, whose parts are no smaller than these need: queries
  // [64, depth], keys [depth / 2, 64, 2], values [32, padded, 2] in bfloat16; softmax_scratch() in
  // place of the scores.
  explicit TileAttention(const AttentionTask& task)
      : task_(task),
        padded_(padded_head_dim(task.kv.head_dim)),
        depth_((task.kv.head_dim + kTileDepth - 1) / kTileDepth * kTileDepth),
        tile_rows_(smaller(kMaxTileRows, task.num_rows)),
        num_groups_((task.num_rows + tile_rows_ - 1) / tile_rows_),
        s_(divide_scratch(task.scratch, padded_)),
        softmax_(softmax_scratch(task, s_)),
        queries_(reinterpret_cast<uint16_t*>(s_.q)),
        keys_(reinterpret_cast<uint16_t*>(s_.keys)),
        values_(reinterpret_cast<uint16_t*>(s_.values)) {}

  // Groups of up to sixteen rows are taken through the tiles of keys, all groups of a tile one
  // after the other. The products of the next group run while the vector units soften the scores of
  // this one, and probabilities are multiplied one group later, when they have left the store
  // buffer. A single group has nothing to wait for.
  void run() {
    begin();
    configure_product<Tiles>(tile_rows_);
    first_key_ = first_tile(task_);
    end_key_ = row_position(task_, task_.num_rows - 1) + 1;
    const int64_t num_tiles = (end_key_ - first_key_ + kKeyTile - 1) / kKeyTile;
    const int64_t n = num_tiles * num_groups_, lag = num_groups_ > 1 ? 1 : 0;
    score(0);
    store_scores();
    for (int64_t i = 0; i < n + lag; ++i) {
      if (i + 1 < n) score(i + 1);
      if (i < n) soften(i);
      if (i + 1 < n) store_scores();
      if (i >= lag) weigh(i - lag);
    }
    Tiles::release();
    end_sums(task_, s_, softmax_.state);
    end_rows(task_, s_);
  }

 private:
  static constexpr int64_t kColumns = 4;  // accumulators

  // Queries are zero beyond head_dim and beyond the rows of the task, and so is what they meet.
  void begin() {
    const int64_t head_dim = task_.kv.head_dim, rows = num_groups_ * tile_rows_;
    __builtin_memset(queries_, 0, static_cast<size_t>(rows * depth_) * 2);
    __builtin_memset(keys_, 0, static_cast<size_t>(depth_ * kKeyTile) * 2);
    for (int64_t r = 0; r < task_.num_rows; ++r) {
      const float* q = task_.q + row_offset(task_, r, task_.q_stride);
      for (int64_t d = 0; d < head_dim; d += kLanes) {
        store_bfloat16(queries_ + r * depth_ + d, load_first(q + d, smaller(kLanes, head_dim - d)));
      }
    }
    begin_softmax(task_, softmax_.state, rows);
  }

  // Step i: group i % num_groups_ of rows at tile i / num_groups_ of keys.
  int64_t first_row(int64_t i) const { return i % num_groups_ * tile_rows_; }
  int64_t first_key(int64_t i) const { return first_key_ + i / num_groups_ * kKeyTile; }
  uint16_t* probabilities(int64_t i) const {
    return softmax_.probabilities + i % 2 * kSoftmaxRows * kKeyTile;
  }

  // The scores of a step, left in tiles 0-3.
  void score(int64_t i) {
    const int64_t key = first_key(i);
    if (i % num_groups_ == 0) lay_out_keys(key, smaller(kKeyTile, end_key_ - key));
    zero_columns<kColumns>();
    multiply<kColumns>({queries_ + first_row(i) * depth_, depth_ * 2}, {keys_, kKeyTile * 4},
                       depth_);
  }

  void store_scores() const { store_columns<kColumns>(softmax_.scores, kKeyTile * 4); }

  void soften(int64_t i) const {
    const int64_t row = first_row(i);
    soften_rows(task_, softmax_.state,
                {row, smaller(tile_rows_, task_.num_rows - row), first_key(i)}, softmax_.scores,
                probabilities(i));
  }

  // out += p v.
  void weigh(int64_t i) {
    const int64_t key = first_key(i);
    if (i % num_groups_ == 0) lay_out_values(key, smaller(kKeyTile, end_key_ - key));
    for (int64_t col = 0; col < padded_; col += kColumns * kLanes) {
      weigh_columns<kColumns>(i, col, (padded_ - col) / kLanes);
    }
  }

  template <int64_t kCount>
  void weigh_columns(int64_t i, int64_t col, int64_t count) const {
    if constexpr (kCount > 1) {
      if (count < kCount) return weigh_columns<kCount - 1>(i, col, count);
    }
    float* out = s_.out + first_row(i) * padded_ + col;
    load_columns<kCount>(out, padded_ * 4);
    multiply<kCount>({probabilities(i), kKeyTile * 2}, {values_ + 2 * col, padded_ * 4}, kKeyTile);
    store_columns<kCount>(out, padded_ * 4);
  }

  struct Matrix {
    const uint16_t* data;
    int64_t stride_bytes;
  };

  // Tiles 0 to kCount - 1 += rows [tile_rows_, depth] x columns [depth / 2, 16 kCount, 2]. Tile 4
  // holds rows, 5 to 7 hold columns.
  template <int64_t kCount>
  static void multiply(Matrix rows, Matrix columns, int64_t depth) {
    for (int64_t d = 0; d < depth; d += kTileDepth) {
      const uint16_t* column = columns.data + d / 2 * columns.stride_bytes / 2;
      Tiles::template load<4>(rows.data + d, rows.stride_bytes);
      add_column<0, 6, kCount>(column, columns.stride_bytes);
      add_column<1, 7, kCount>(column, columns.stride_bytes);
      add_column<2, 6, kCount>(column, columns.stride_bytes);
      add_column<3, 7, kCount>(column, columns.stride_bytes);
    }
  }

  template <int kColumn, int kTile, int64_t kCount>
  static void add_column(const uint16_t* columns, int64_t stride_bytes) {
    if constexpr (kColumn < kCount) {
      Tiles::template load<kTile>(columns + kColumn * 2 * kLanes, stride_bytes);
      Tiles::template add_bfloat16<kColumn, 4, kTile>();
    }
  }

  template <int64_t kCount, int kColumn = 0>
  static void zero_columns() {
    Tiles::template zero<kColumn>();
    if constexpr (kColumn + 1 < kCount) zero_columns<kCount, kColumn + 1>();
  }
  template <int64_t kCount, int kColumn = 0>
  static void load_columns(const float* out, int64_t stride_bytes) {
    Tiles::template load<kColumn>(out + kColumn * kLanes, stride_bytes);
    if constexpr (kColumn + 1 < kCount) load_columns<kCount, kColumn + 1>(out, stride_bytes);
  }
  template <int64_t kCount, int kColumn = 0>
  static void store_columns(float* out, int64_t stride_bytes) {
    Tiles::template store<kColumn>(out + kColumn * kLanes, stride_bytes);
    if constexpr (kColumn + 1 < kCount) store_columns<kCount, kColumn + 1>(out, stride_bytes);
  }

  // Columns of keys past `count` may be of any stale slot; the mask hides their scores.
  void lay_out_keys(int64_t begin, int64_t count) {
    const int64_t head_dim = task_.kv.head_dim, block_size = task_.kv.block_size;
    for (int64_t done = 0; done < count;) {
      const TilePart part = part_at(task_, begin + done, count - done);
      const int64_t room = smaller(block_size - part.first, kKeyTile - done);
      const uint16_t* in = part.keys<uint16_t>();
      uint16_t* out = keys_ + 2 * done;
      for (int64_t d = 0; d < head_dim; d += 2, in += 2 * block_size, out += 2 * kKeyTile) {
        const uint16_t* odd = d + 1 < head_dim ? in + block_size : nullptr;
        lay_out_pairs(in, odd, part.n, room, out);
      }
      done += part.n;
    }
  }

  // Values past `count` are zero, because their probability, which is 0, meets them.
  void lay_out_values(int64_t begin, int64_t count) {
    const int64_t head_dim = task_.kv.head_dim;
    const uint16_t* rows[kKeyTile] = {};
    for (int64_t done = 0; done < count;) {
      const TilePart part = part_at(task_, begin + done, count - done);
      for (int64_t i = 0; i < part.n; ++i) {
        rows[done + i] = part.values<uint16_t>() + i * head_dim;
      }
      done += part.n;
    }
    for (int64_t j = 0; j < kKeyTile; j += 2) {
      uint16_t* out = values_ + j * padded_;
      if (rows[j] == nullptr) {
        __builtin_memset(out, 0, static_cast<size_t>(padded_) * 4);
        continue;
      }
      lay_out_pairs(rows[j], rows[j + 1], head_dim, head_dim, out);
      for (int64_t d = head_dim; d < padded_; ++d) out[2 * d] = out[2 * d + 1] = 0;
    }
  }

  // out[2 i] = even[i], out[2 i + 1] = odd[i] for i < n; `odd` may be null for zeros. Up to `room`
  // elements may be read and written.
  static void lay_out_pairs(const uint16_t* even, const uint16_t* odd, int64_t n, int64_t room,
                            uint16_t* out) {
    alignas(32) static constexpr uint16_t kZeros[kLanes] = {};
    int64_t i = 0;
    for (; i < n && i + kLanes <= room; i += kLanes) {
      store_pairs(out + 2 * i, even + i, odd == nullptr ? kZeros : odd + i);
    }
    for (; i < n; ++i) {
      out[2 * i] = even[i];
      out[2 * i + 1] = odd == nullptr ? uint16_t{0} : odd[i];
    }
  }

  const AttentionTask& task_;
  const int64_t padded_;
  const int64_t depth_;
  const int64_t tile_rows_;
  const int64_t num_groups_;
  const AttentionScratch s_;
  const SoftmaxScratch softmax_;
  uint16_t* const queries_;
  uint16_t* const keys_;
  uint16_t* const values_;
  int64_t first_key_ = 0;
  int64_t end_key_ = 0;
};

template <typename Tiles>
void tile_attention(const AttentionTask& task) {
  const FlushDenormals flush;
  if (is_paired(task)) {
    PairedAttention(task).run();
  } else {
    TileAttention<Tiles>(task).run();
  }
}

}  // namespace
}  // namespace octavo::cpu
