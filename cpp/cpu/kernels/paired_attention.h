// Attention of a few rows over a cache in pairs (paired_cache.h), straight from it, in the order of
// TDPBF16PS: for 32 terms at a time the even and the odd ones are two chains of fused multiply-adds
// from 0, whose sum joins the total. With denormals flushed the results are the bits of
// tile_attention.h: terms that are left out here are zeros there, which change no more than the
// sign of a zero, and end_rows() takes that off. Bound: cache bandwidth.
// Source: Intel SDM volume 2, TDPBF16PS.
#pragma once

#include "cpu/kernels.h"
#include "cpu/kernels/attention.h"
#include "cpu/kernels/paired_cache.h"
#include "cpu/kernels/row_softmax.h"
#include "cpu/kernels/tile_shape.h"
#include "cpu/kernels/vec_math.h"

namespace octavo::cpu {
namespace {

// Denormals are zero as operands and as results of what reads or writes memory while one of these
// lives. The compiler takes arithmetic for independent of the mode, so accesses to memory, which
// its operands and results pass through, are kept on their side of each change.
class FlushDenormals {
 public:
  FlushDenormals() : before_(_mm_getcsr()) {
    change_to(before_ | _MM_FLUSH_ZERO_ON | kDenormalsAreZero);
  }
  ~FlushDenormals() { change_to(before_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  static constexpr unsigned kDenormalsAreZero = 0x40;

  static void change_to(unsigned mode) {
    __asm__ volatile("" ::: "memory");
    _mm_setcsr(mode);
    __asm__ volatile("" ::: "memory");
  }

  const unsigned before_;
};

inline Vec load_bfloat16(const uint16_t* bits) {
  return load(reinterpret_cast<const BFloat16*>(bits));
}

inline void round_lanes(const float* x, float* out) {
  uint16_t rounded[kLanes];
  store_bfloat16(rounded, load(x));
  store(out, load_bfloat16(rounded));
}

// Two chains for each of kRows x kVecs sums.
template <int kRows, int kVecs>
struct PairedSums {
  Vec even[kRows][kVecs] = {};
  Vec odd[kRows][kVecs] = {};

  void add_even(int row, const PairVecs (&column)[kVecs], float x) {
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) even[row][v] = fma(set1(x), column[v].even, even[row][v]);
  }
  void add_odd(int row, const PairVecs (&column)[kVecs], float x) {
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) odd[row][v] = fma(set1(x), column[v].odd, odd[row][v]);
  }
  void join(Vec (&total)[kRows][kVecs]) const {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) total[r][v] = add(total[r][v], add(even[r][v], odd[r][v]));
    }
  }
};

// Rows of a task up to which this is faster than tiles; 0 = never.
inline constexpr int64_t kMaxPairedRows = 6;
static_assert(kMaxPairedRows <= kTileRows);

// Requires: is_kept_in_pairs(task.kv), num_rows <= kMaxPairedRows.
class PairedAttention {
 public:
  explicit PairedAttention(const AttentionTask& task)
      : task_(task),
        head_dim_(task.kv.head_dim),
        s_(divide_scratch(task.scratch, padded_head_dim(head_dim_))),
        softmax_(softmax_scratch(task, s_)) {}

  void run() {
    const int64_t end = row_position(task_, task_.num_rows - 1) + 1, first = first_tile(task_);
    find_slots(first, smaller(kKeyTile, end - first));
    fetch_first(smaller(kKeyTile, end - first));
    begin_softmax(task_, softmax_.state, task_.num_rows);
    for (int64_t r = 0; r < task_.num_rows; ++r) {
      const float* q = task_.q + row_offset(task_, r, task_.q_stride);
      for (int64_t d = 0; d < head_dim_; d += kLanes) round_lanes(q + d, s_.q + r * head_dim_ + d);
    }
    for (int64_t key = first; key < end; key += kKeyTile) {
      now_ = next_;
      if (key + kKeyTile < end) find_slots(key + kKeyTile, smaller(kKeyTile, end - key - kKeyTile));
      attend<kTileRows>(key, smaller(kKeyTile, end - key));
    }
    end_sums(task_, s_, softmax_.state);
    end_rows(task_, s_);
  }

 private:
  template <int kRows>
  void attend(int64_t key, int64_t count) {
    if (task_.num_rows < kRows) {
      if constexpr (kRows > 1) attend<kRows - 1>(key, count);
      return;
    }
    for (int64_t j = 0; j < count; j += 2 * kLanes) score<kRows>(j, count);
    soften_rows(task_, softmax_.state, {0, kRows, key, count}, s_.scores, softmax_.probabilities);
    for (int64_t i = 0; i < kRows * kKeyTile; i += kLanes) {
      store(s_.scores + i, load_bfloat16(softmax_.probabilities + i));
    }
    int64_t col = 0;
    for (; col + 2 * kLanes <= head_dim_; col += 2 * kLanes) weigh<kRows, 2>(col, count);
    if (col < head_dim_) weigh<kRows, 1>(col, count);
  }

  // Where the keys of each vector and the values of each pair of slots of a tile lie. Those of the
  // next tile are fetched while this one is worked on, because blocks lie anywhere.
  void find_slots(int64_t key, int64_t count) {
    for (int64_t j = 0; j < count; j += kLanes) {
      const TilePart part = part_at(task_, key + j, kLanes);
      next_.keys[j / kLanes] = paired_keys(part);
      for (int64_t i = 0; i < kLanes; i += 2) {
        next_.values[(j + i) / 2] = paired_values(part) + i * head_dim_;
      }
    }
  }

  // What begins beside it hides some of the way of the first tile; the values are later than keys.
  void fetch_first(int64_t count) const {
    for (int64_t j = 0; j < count; j += kLanes) {
      for (int64_t d = 0; d < head_dim_; d += 2) {
        _mm_prefetch(next_.keys[j / kLanes] + d * task_.kv.block_size, _MM_HINT_T0);
      }
    }
    for (int64_t j = 0; j < count; j += 2) {
      for (int64_t d = 0; d < head_dim_; d += kLanes) {
        _mm_prefetch(next_.values[j / 2] + 2 * d, _MM_HINT_T1);
      }
    }
  }

  // scores of two vectors of keys; a second one past `count` repeats the first, and the mask hides
  // it.
  template <int kRows>
  void score(int64_t j, int64_t count) const {
    const uint16_t* first = now_.keys[j / kLanes];
    const uint16_t* second = j + kLanes < count ? now_.keys[j / kLanes + 1] : first;
    const uint16_t* const later[2] = {next_.keys[j / kLanes], next_.keys[j / kLanes + 1]};
    const int64_t stride = task_.kv.block_size;  // of one dimension
    Vec total[kRows][2];  // "= {}" would clear memory too, by a slow string instruction
    for (int r = 0; r < kRows; ++r) total[r][0] = total[r][1] = zero();
    for (int64_t begin = 0; begin < head_dim_; begin += kTileDepth) {
      PairedSums<kRows, 2> sums;
      for (int64_t d = begin; d < smaller(head_dim_, begin + kTileDepth); d += 2) {
        const PairVecs keys[2] = {load_pairs(first + d * stride), load_pairs(second + d * stride)};
        _mm_prefetch(later[0] + d * stride, _MM_HINT_T0);
        _mm_prefetch(later[1] + d * stride, _MM_HINT_T0);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          sums.add_even(r, keys, s_.q[r * head_dim_ + d]);
          sums.add_odd(r, keys, s_.q[r * head_dim_ + d + 1]);
        }
      }
      sums.join(total);
    }
    for (int r = 0; r < kRows; ++r) {
      store(s_.scores + r * kKeyTile + j, total[r][0]);
      store(s_.scores + r * kKeyTile + j + kLanes, total[r][1]);
    }
  }

  // out += probabilities x values for kVecs vectors of dimensions.
  template <int kRows, int kVecs>
  void weigh(int64_t col, int64_t count) const {
    Vec total[kRows][kVecs];
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVecs; ++v) total[r][v] = load(s_.out + r * head_dim_ + col + v * kLanes);
    }
    for (int64_t begin = 0; begin < count; begin += kTileDepth) {
      PairedSums<kRows, kVecs> sums;
      const int64_t end = smaller(count, begin + kTileDepth);
      for (int64_t j = begin; j < end; j += 2) {
        PairVecs values[kVecs];
#pragma GCC unroll 2
        for (int v = 0; v < kVecs; ++v) {
          values[v] = load_pairs(now_.values[j / 2] + 2 * (col + v * kLanes));
          _mm_prefetch(next_.values[j / 2] + 2 * (col + v * kLanes), _MM_HINT_T0);
        }
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) sums.add_even(r, values, s_.scores[r * kKeyTile + j]);
        if (j + 1 == end) break;
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) sums.add_odd(r, values, s_.scores[r * kKeyTile + j + 1]);
      }
      sums.join(total);
    }
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVecs; ++v) store(s_.out + r * head_dim_ + col + v * kLanes, total[r][v]);
    }
  }

  const AttentionTask& task_;
  const int64_t head_dim_;  // a multiple of 16, so rows of the scratch are as long
  const AttentionScratch s_;
  const SoftmaxScratch softmax_;
  struct Slots {
    const uint16_t* keys[kKeyTile / kLanes] = {};
    const uint16_t* values[kKeyTile / 2] = {};
  };
  Slots now_, next_;
};

}  // namespace
}  // namespace octavo::cpu
