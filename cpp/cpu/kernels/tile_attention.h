// The attention of attention.h over a bfloat16 cache on tiles: queries and probabilities are
// rounded to bfloat16 as well, scores, softmax and sums stay float32. The cache is kept in pairs
// (paired_cache.h), so tiles of keys, and of values where a block has 32 tokens, are loaded from
// it. The few rows of a decode would leave a tile almost empty; they take the vector units in the
// order of the tiles (paired_attention.h), so a row is the same bits in both. Denormals are zero
// throughout, as the tiles have it. Roof of 64 rows x 64 keys x 64 dimensions, computed: 64
// products, 1,024 cycles, beside the softmax (row_softmax.h), whose 1,800 cycles bound prefill.
#pragma once

#include "cpu/kernels.h"
#include "cpu/kernels/attention.h"
#include "cpu/kernels/paired_attention.h"
#include "cpu/kernels/paired_cache.h"
#include "cpu/kernels/row_softmax.h"
#include "cpu/kernels/tile_product.h"
#include "cpu/kernels/vec_math.h"

namespace octavo::cpu {
namespace {

// Requires: is_kept_in_pairs(task.kv).
template <typename Tiles>
class TileAttention {
 public:
  // Shares the layout of attention.h's scratch, whose parts are no smaller than these need: queries
  // [64, depth], keys [4][16 pairs, 16, 2], values [32, head_dim, 2] in bfloat16; softmax_scratch()
  // in place of the scores.
  explicit TileAttention(const AttentionTask& task)
      : task_(task),
        head_dim_(task.kv.head_dim),
        depth_((head_dim_ + kTileDepth - 1) / kTileDepth * kTileDepth),
        tile_rows_(smaller(kMaxTileRows, task.num_rows)),
        num_groups_((task.num_rows + tile_rows_ - 1) / tile_rows_),
        s_(divide_scratch(task.scratch, head_dim_)),
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
    const int64_t num_tiles = (ends_[num_groups_ - 1] - first_key_ + kKeyTile - 1) / kKeyTile;
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
  static constexpr int64_t kGroups = kQueryRows / kMaxTileRows;
  static constexpr int64_t kSteps = kKeyTile / kTileDepth;
  static_assert(kColumns * kLanes == kKeyTile);

  // Queries are zero beyond head_dim and beyond the rows of the task; keys are beyond head_dim.
  void begin() {
    const int64_t rows = num_groups_ * tile_rows_;
    if (depth_ > head_dim_) {
      __builtin_memset(queries_, 0, static_cast<size_t>(rows * depth_) * 2);
      __builtin_memset(keys_, 0, static_cast<size_t>(kColumns * kTileBytes));
    }
    for (int64_t r = 0; r < task_.num_rows; ++r) {
      const float* q = task_.q + row_offset(task_, r, task_.q_stride);
      for (int64_t d = 0; d < head_dim_; d += kLanes) {
        store_bfloat16(queries_ + r * depth_ + d, load(q + d));
      }
    }
    const int64_t num_padding = rows - task_.num_rows;
    __builtin_memset(queries_ + task_.num_rows * depth_, 0,
                     static_cast<size_t>(num_padding * depth_) * 2);
    begin_softmax(task_, softmax_.state, rows);
    first_key_ = first_tile(task_);
    for (int64_t g = 0; g < num_groups_; ++g) {
      ends_[g] = row_position(task_, smaller((g + 1) * tile_rows_, task_.num_rows) - 1) + 1;
    }
  }

  // Step i: group i % num_groups_ of rows at tile i / num_groups_ of keys.
  int64_t first_row(int64_t i) const { return i % num_groups_ * tile_rows_; }
  int64_t first_key(int64_t i) const { return first_key_ + i / num_groups_ * kKeyTile; }
  // Keys of the tile, from its first on, that a row of a group sees; 0 if it ends before the tile.
  int64_t num_keys(int64_t key, int64_t group) const {
    return larger(0, smaller(kKeyTile, ends_[group] - key));
  }
  int64_t num_keys(int64_t i) const { return num_keys(first_key(i), i % num_groups_); }
  uint16_t* probabilities(int64_t i) const {
    return softmax_.probabilities + i % 2 * kSoftmaxRows * kKeyTile;
  }

  // The scores of a step, left in tiles 0-3; those of columns that nobody sees are of anything.
  void score(int64_t i) {
    if (i % num_groups_ == 0) find_keys(first_key(i));
    score_columns<kColumns>(queries_ + first_row(i) * depth_, (num_keys(i) + kLanes - 1) / kLanes);
  }

  template <int64_t kCount>
  void score_columns(const uint16_t* queries, int64_t count) const {
    if constexpr (kCount > 0) {
      if (count < kCount) return score_columns<kCount - 1>(queries, count);
      zero_columns<kCount>();
      const int64_t block_size = task_.kv.block_size;
      for (int64_t d = 0; d + kTileDepth <= head_dim_; d += kTileDepth) {
        const auto key = [&](int column) { return key_columns_[column] + d * block_size; };
        add_products<kCount>({queries + d, depth_ * 2}, key, block_size * 4);
      }
      if (depth_ == head_dim_) return;
      const auto key = [&](int column) { return keys_ + column * kTileElements; };
      add_products<kCount>({queries + depth_ - kTileDepth, depth_ * 2}, key, kTileRowBytes);
    }
  }

  void store_scores() const { store_columns<kColumns>(softmax_.scores, kKeyTile * 4); }

  void soften(int64_t i) const {
    const int64_t row = first_row(i), count = num_keys(i);
    if (count == 0) return;
    soften_rows(task_, softmax_.state,
                {row, smaller(tile_rows_, task_.num_rows - row), first_key(i), count},
                softmax_.scores, probabilities(i));
  }

  // out += p v.
  void weigh(int64_t i) {
    if (i % num_groups_ == 0) find_values(first_key(i));
    const int64_t num_steps = (num_keys(i) + kTileDepth - 1) / kTileDepth;
    if (num_steps == 0) return;
    for (int64_t col = 0; col < head_dim_; col += kColumns * kLanes) {
      weigh_columns<kColumns>(i, num_steps, col);
    }
  }

  template <int64_t kCount>
  void weigh_columns(int64_t i, int64_t num_steps, int64_t col) const {
    if constexpr (kCount > 1) {
      if (col + kCount * kLanes > head_dim_) return weigh_columns<kCount - 1>(i, num_steps, col);
    }
    float* out = s_.out + first_row(i) * head_dim_ + col;
    load_columns<kCount>(out, head_dim_ * 4);
    for (int64_t step = 0; step < num_steps; ++step) {
      const auto value = [&](int column) {
        return value_steps_[step] + 2 * (col + column * kLanes);
      };
      add_products<kCount>({probabilities(i) + step * kTileDepth, kKeyTile * 2}, value,
                           head_dim_ * 4);
    }
    store_columns<kCount>(out, head_dim_ * 4);
  }

  // Where sixteen keys each begin in the cache; the part of their depth that fills no step is
  // copied. Slots past the last row's position may be stale; the mask hides their scores.
  void find_keys(int64_t key) {
    const int64_t count = num_keys(key, num_groups_ - 1), stride = 2 * task_.kv.block_size;
    for (int64_t column = 0; column * kLanes < count; ++column) {
      const uint16_t* in = paired_keys(part_at(task_, key + column * kLanes, kLanes));
      key_columns_[column] = in;
      uint16_t* out = keys_ + column * kTileElements;
      for (int64_t d = depth_ - kTileDepth; depth_ > head_dim_ && d < head_dim_; d += 2) {
        __builtin_memcpy(out, in + d / 2 * stride, kTileRowBytes);
        out += 2 * kLanes;
      }
    }
  }

  // Where 32 values each lie: in the cache if they are in one block, else in a copy, which is zero
  // past the last row's position, because probabilities of 0 meet what is there.
  void find_values(int64_t key) {
    const int64_t count = num_keys(key, num_groups_ - 1);
    for (int64_t step = 0; step * kTileDepth < count; ++step) {
      const int64_t first = step * kTileDepth, n = smaller(kTileDepth, count - first);
      const TilePart part = part_at(task_, key + first, kTileDepth);
      if (n == kTileDepth && part.n == kTileDepth) {
        value_steps_[step] = paired_values(part);
      } else {
        uint16_t* copy = values_ + first * head_dim_;
        copy_values(key + first, n, copy);
        value_steps_[step] = copy;
      }
    }
  }

  void copy_values(int64_t key, int64_t count, uint16_t* out) const {
    const auto bytes = [&](int64_t slots) { return static_cast<size_t>(slots * head_dim_) * 2; };
    for (int64_t j = 0; j < count; j += kLanes) {
      const int64_t pairs = (smaller(kLanes, count - j) + 1) / 2;
      __builtin_memcpy(out + j * head_dim_, paired_values(part_at(task_, key + j, kLanes)),
                       bytes(2 * pairs));
    }
    const int64_t end = (count + 1) / 2 * 2;
    if (count % 2 != 0) {
      for (int64_t d = 0; d < head_dim_; ++d) out[(count - 1) * head_dim_ + 2 * d + 1] = 0;
    }
    __builtin_memset(out + end * head_dim_, 0, bytes(kTileDepth - end));
  }

  struct Rows {
    const uint16_t* data;
    int64_t stride_bytes;
  };
  static constexpr int64_t kTileElements = kTileBytes / 2;

  // Tiles 0 to kCount - 1 += rows [tile_rows_, 32] x columns [16 pairs, 16, 2] at column_at(0) to
  // column_at(kCount - 1). Tile 4 holds rows, 6 and 7 hold columns.
  template <int64_t kCount, typename ColumnAt>
  static void add_products(const Rows& rows, const ColumnAt& column_at, int64_t stride_bytes) {
    Tiles::template load<4>(rows.data, rows.stride_bytes);
    add_column<0, 6, kCount>(column_at, stride_bytes);
    add_column<1, 7, kCount>(column_at, stride_bytes);
    add_column<2, 6, kCount>(column_at, stride_bytes);
    add_column<3, 7, kCount>(column_at, stride_bytes);
  }

  template <int kColumn, int kTile, int64_t kCount, typename ColumnAt>
  static void add_column(const ColumnAt& column_at, int64_t stride_bytes) {
    if constexpr (kColumn < kCount) {
      Tiles::template load<kTile>(column_at(kColumn), stride_bytes);
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

  const AttentionTask& task_;
  const int64_t head_dim_;  // a multiple of 16, so rows of the scratch are as long
  const int64_t depth_;
  const int64_t tile_rows_;
  const int64_t num_groups_;
  const AttentionScratch s_;
  const SoftmaxScratch softmax_;
  uint16_t* const queries_;
  uint16_t* const keys_;
  uint16_t* const values_;
  int64_t first_key_ = 0;
  int64_t ends_[kGroups] = {};  // the position past the last row of each group
  const uint16_t* key_columns_[kColumns] = {};
  const uint16_t* value_steps_[kSteps] = {};
};

template <typename Tiles>
void tile_attention(const AttentionTask& task) {
  if (!is_kept_in_pairs(task.kv)) return attention<BFloat16>(task);
  const FlushDenormals flush;
  if (task.num_rows <= kMaxPairedRows) {
    PairedAttention(task).run();
  } else {
    TileAttention<Tiles>(task).run();
  }
}

}  // namespace
}  // namespace octavo::cpu
