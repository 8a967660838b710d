// The attention of attention.h over a bfloat16 cache on tiles: queries and probabilities are
// rounded to bfloat16 as well, scores, softmax and sums stay float32. A tile of keys and values is
// laid out in pairs for the products, once for all rows of the task. The few rows of a decode read
// the cache in place, because laying out pairs costs more than it saves; they add in the order of
// the tiles (paired_attention.h), so a row is the same bits in both. Denormals are zero throughout,
// as the tiles have it. Roof of 64 rows x 64 keys x 64 dimensions, computed: 64 products, 1,024
// cycles; about 60 vector instructions a row for the softmax, 2,000 cycles, bound prefill. Measured
// by `bench_attention`, a prefill takes 0.65 to 0.74 of the time of AVX-512
// (bench/results/2026-11-29-cpu.md).
#pragma once

#include "cpu/kernels.h"
#include "cpu/kernels/attention.h"
#include "cpu/kernels/paired_attention.h"
#include "cpu/kernels/tile_product.h"
#include "cpu/kernels/vec_math.h"

namespace octavo::cpu {
namespace {

template <typename Tiles>
class TileAttention {
 public:
  // Shares the layout of attention.h's scratch, whose parts are no smaller than these need: queries
  // [64, depth], keys [depth / 2, 64, 2], values [32, padded, 2] in bfloat16, the probabilities in
  // the first half of their row of scores.
  explicit TileAttention(const AttentionTask& task)
      : task_(task),
        padded_(padded_head_dim(task.kv.head_dim)),
        depth_((task.kv.head_dim + kTileDepth - 1) / kTileDepth * kTileDepth),
        tile_rows_(smaller(kMaxTileRows, task.num_rows)),
        padded_rows_((task.num_rows + tile_rows_ - 1) / tile_rows_ * tile_rows_),
        s_(divide_scratch(task.scratch, padded_)),
        queries_(reinterpret_cast<uint16_t*>(s_.q)),
        keys_(reinterpret_cast<uint16_t*>(s_.keys)),
        values_(reinterpret_cast<uint16_t*>(s_.values)) {}

  void run() {
    begin();
    configure_product<Tiles>(tile_rows_);
    const int64_t end = row_position(task_, task_.num_rows - 1) + 1;
    for (int64_t key = first_tile(task_); key < end; key += kKeyTile) {
      const int64_t count = smaller(kKeyTile, end - key);
      lay_out_keys(key, count);
      lay_out_values(key, count);
      score();
      for (int64_t r = 0; r < task_.num_rows; ++r) {
        softmax_row(task_, s_, r, key);
        round_probabilities(s_.scores + r * kKeyTile);
      }
      weigh();
    }
    Tiles::release();
    end_rows(task_, s_);
  }

 private:
  static constexpr int64_t kScoreBytes = kKeyTile * 4;

  // Queries are zero beyond head_dim and beyond the rows of the task, and so is what they meet.
  void begin() {
    const int64_t head_dim = task_.kv.head_dim;
    __builtin_memset(queries_, 0, static_cast<size_t>(padded_rows_ * depth_) * 2);
    __builtin_memset(s_.out, 0, static_cast<size_t>(padded_rows_ * padded_) * 4);
    __builtin_memset(keys_, 0, static_cast<size_t>(depth_ * kKeyTile) * 2);
    for (int64_t r = 0; r < task_.num_rows; ++r) {
      const float* q = task_.q + row_offset(task_, r, task_.q_stride);
      for (int64_t d = 0; d < head_dim; d += kLanes) {
        store_bfloat16(queries_ + r * depth_ + d, load_first(q + d, smaller(kLanes, head_dim - d)));
      }
      begin_softmax(task_, s_, r);
    }
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

  static void round_probabilities(float* row) {
    auto* out = reinterpret_cast<uint16_t*>(row);
    for (int64_t j = 0; j < kKeyTile; j += kLanes) store_bfloat16(out + j, load(row + j));
  }

  // scores = q k^T.
  void score() const {
    TileProduct product;
    product.rows = {nullptr, depth_ * 2, tile_rows_ * depth_ * 2, kTileRowBytes};
    product.columns = {nullptr, kKeyTile * 4, kTileRowBytes, kKeyTile * 2 * kTileDepth};
    product.num_steps = depth_ / kTileDepth;
    for_row_tiles([&](int64_t row, auto row_tiles) {
      for (int64_t j = 0; j < kKeyTile; j += 2 * kLanes) {
        product.rows.data = reinterpret_cast<const std::byte*>(queries_ + row * depth_);
        product.columns.data = reinterpret_cast<const std::byte*>(keys_ + 2 * j);
        zero_tiles<Tiles, row_tiles.value, 2>();
        add_product<Tiles, row_tiles.value, 2>(product);
        store_tiles<Tiles, row_tiles.value, 2>(
            {s_.scores + row * kKeyTile + j, kScoreBytes, tile_rows_ * kScoreBytes, kTileRowBytes});
      }
    });
  }

  // out += p v.
  void weigh() const {
    for_row_tiles([&](int64_t row, auto row_tiles) {
      int64_t col = 0;
      for (; col + 2 * kLanes <= padded_; col += 2 * kLanes) weigh<row_tiles.value, 2>(row, col);
      if (col < padded_) weigh<row_tiles.value, 1>(row, col);
    });
  }

  template <int kRowTiles, int kColumnTiles>
  void weigh(int64_t row, int64_t col) const {
    TileProduct product;
    product.rows = {reinterpret_cast<const std::byte*>(s_.scores + row * kKeyTile), kScoreBytes,
                    tile_rows_ * kScoreBytes, kTileRowBytes};
    product.columns = {reinterpret_cast<const std::byte*>(values_ + 2 * col), padded_ * 4,
                       kTileRowBytes, padded_ * 2 * kTileDepth};
    product.num_steps = kKeyTile / kTileDepth;
    const TileOutput out{s_.out + row * padded_ + col, padded_ * 4, tile_rows_ * padded_ * 4,
                         kTileRowBytes};
    load_tiles<Tiles, kRowTiles, kColumnTiles>(out);
    add_product<Tiles, kRowTiles, kColumnTiles>(product);
    store_tiles<Tiles, kRowTiles, kColumnTiles>(out);
  }

  template <int kValue>
  struct Constant {
    static constexpr int value = kValue;
  };

  // Calls body(first row, number of tiles) for pairs of tiles of rows and for the last one.
  template <typename Body>
  void for_row_tiles(const Body& body) const {
    int64_t row = 0;
    for (; row + tile_rows_ < padded_rows_; row += 2 * tile_rows_) body(row, Constant<2>{});
    if (row < padded_rows_) body(row, Constant<1>{});
  }

  const AttentionTask& task_;
  const int64_t padded_;
  const int64_t depth_;
  const int64_t tile_rows_;
  const int64_t padded_rows_;
  const AttentionScratch s_;
  uint16_t* const queries_;
  uint16_t* const keys_;
  uint16_t* const values_;
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
