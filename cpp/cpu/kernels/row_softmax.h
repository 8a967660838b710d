// The online softmax of attention over a bfloat16 cache on the AMX table, for up to sixteen rows
// that share a tile of 64 keys. Few instructions a score, because it bounds prefill: 2^x is a
// polynomial of degree 4 (within 3e-6; probabilities are rounded by 2^-9), sums stay apart by lane
// until the end, what was summed before is rescaled only where a row's greatest score grew. A row's
// result does not depend on the other rows.
// Roof, computed, of 64 rows: 46 vector instructions a row, of which ten take a port twice; on two
// ports 1,800 cycles.
// Source: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.
#pragma once

#include "cpu/kernels.h"
#include "cpu/kernels/attention.h"
#include "cpu/kernels/vec_math.h"

namespace octavo::cpu {
namespace {

inline constexpr int64_t kSoftmaxRows = 16;
inline constexpr float kLog2E = 1.44269504088896341f;

// 2^x for x <= 0 or nearly so; 0 below -126. Requires: denormals are flushed.
inline Vec exp2(Vec x) {
  const Vec r = fraction(x);
  Vec p = set1(0.013426686f);
  p = fma(p, r, set1(0.05224247f));
  p = fma(p, r, set1(0.24128021f));
  p = fma(p, r, set1(0.69304484f));
  return scale_by_floor(fma(p, r, set1(1.0f)), x);
}

// What is kept of each row of a task from tile to tile. Scores are in units of `unit`: of 1 behind
// a soft cap, otherwise as the product leaves them.
struct SoftmaxState {
  float* out = nullptr;   // [rows, padded]
  float* sums = nullptr;  // [rows, 16], to be added
  float* max = nullptr;   // [rows]
  int64_t padded = 0;
  float unit = 0.0f;
};

// `rows` may be padded beyond those of the task.
inline void begin_softmax(const AttentionTask& task, const SoftmaxState& s, int64_t rows) {
  __builtin_memset(s.out, 0, static_cast<size_t>(rows * s.padded) * sizeof(float));
  __builtin_memset(s.sums, 0, static_cast<size_t>(rows * kLanes) * sizeof(float));
  for (int64_t r = 0; r < rows; ++r) {
    s.max[r] = -__builtin_inff();
    if (task.sinks == nullptr) continue;
    s.max[r] = task.sinks[(task.row_begin + r) % task.group] / s.unit;
    s.sums[r * kLanes] = 1.0f;
  }
}

inline Vec greatest_of_row(const float* scores) {
  return max(max(load(scores), load(scores + kLanes)),
             max(load(scores + 2 * kLanes), load(scores + 3 * kLanes)));
}

// The greatest score of each row; lanes past `num_rows` are -inf.
inline Vec row_maxima(const float* scores, int64_t num_rows) {
  if (num_rows == kSoftmaxRows) {
    Vec rows[kSoftmaxRows];
#pragma GCC unroll 16
    for (int r = 0; r < kSoftmaxRows; ++r) rows[r] = greatest_of_row(scores + r * kKeyTile);
    return lane_maxima(rows);
  }
  float greatest[kSoftmaxRows];
  store(greatest, set1(-__builtin_inff()));
  for (int64_t r = 0; r < num_rows; ++r) {
    greatest[r] = reduce_max(greatest_of_row(scores + r * kKeyTile));
  }
  return load(greatest);
}

// Where the parts lie in place of the scores of attention.h [kQueryRows, kKeyTile]: scores of
// sixteen rows, probabilities of twice as many, sums by lane of all rows.
struct SoftmaxScratch {
  float* scores;            // [16, kKeyTile]
  uint16_t* probabilities;  // [2, 16, kKeyTile]
  SoftmaxState state;
};

inline SoftmaxScratch softmax_scratch(const AttentionTask& task, const AttentionScratch& s) {
  constexpr int64_t kTile = kSoftmaxRows * kKeyTile;
  static_assert(2 * kTile + kQueryRows * kLanes <= kQueryRows * kKeyTile);
  const float unit = task.soft_cap > 0.0f ? 1.0f : task.scale;
  return {s.scores,
          reinterpret_cast<uint16_t*>(s.scores + kTile),
          {s.out, s.scores + 2 * kTile, s.max, padded_head_dim(task.kv.head_dim), unit}};
}

// Adds the sums of the lanes, for end_rows() of attention.h.
inline void end_sums(const AttentionTask& task, const AttentionScratch& s,
                     const SoftmaxState& state) {
  for (int64_t r = 0; r < task.num_rows; ++r) {
    s.sum[r] = reduce_add(load(state.sums + r * kLanes));
  }
}

// Up to sixteen rows of a task from `row` on at the tile of keys from `key` on, of which they see
// none past the first `num_keys`.
struct ScoredRows {
  int64_t row, num_rows, key, num_keys;
};

// Soft cap and mask of scores [16, 64].
inline void prepare_scores(const AttentionTask& task, const ScoredRows& at, float* scores) {
  const int64_t row = at.row, num_rows = at.num_rows, key = at.key;
  if (task.soft_cap > 0.0f) {
    for (int64_t i = 0; i < num_rows * kKeyTile; i += kLanes) {
      store(scores + i, soft_cap(mul(load(scores + i), set1(task.scale)), task.soft_cap));
    }
  }
  const int64_t last = row_position(task, row + num_rows - 1);
  const bool sees_all = row_position(task, row) >= key + kKeyTile - 1 &&
                        (task.sliding_window == 0 || last - task.sliding_window < key);
  if (sees_all) return;
  for (int64_t r = 0; r < num_rows; ++r) {
    mask_row(task, row_position(task, row + r), key, scores + r * kKeyTile);
  }
}

// Takes the rows' greatest scores into `s`, rescales what was summed before where they grew, and
// gives what is to be subtracted from each score: before it is scaled, so that the greatest one is
// 0 to the last bit, however large.
inline void raise_maxima(const SoftmaxState& s, int64_t row, int64_t num_rows, Vec tile_max,
                         float* bases) {
  const Vec scale = set1(s.unit * kLog2E);
  const Vec before = load_first(s.max + row, num_rows), now = max(before, tile_max);
  // Where no key was seen yet the greatest is -inf, and any finite base gives 0.
  store(bases, zero_where_less(now, now, set1(-3e38f)));
  store_first(s.max + row, now, num_rows);
  uint32_t grown = mask_greater(now, before) & ((1u << num_rows) - 1);
  if (grown == 0) return;
  float factors[kLanes];
  store(factors, exp2(mul(sub(before, load(bases)), scale)));
  for (; grown != 0; grown &= grown - 1) {
    const int r = __builtin_ctz(grown);
    const Vec factor = set1(factors[r]);
    float* out = s.out + (row + r) * s.padded;
    for (int64_t d = 0; d < s.padded; d += kLanes) store(out + d, mul(load(out + d), factor));
    float* sums = s.sums + (row + r) * kLanes;
    store(sums, mul(load(sums), factor));
  }
}

// The last part of soften_rows() for the first kVecs vectors of keys.
template <int kVecs>
void exponentiate_rows(const SoftmaxState& s, const ScoredRows& at, const float* scores,
                       const float* bases, uint16_t* probabilities) {
  const Vec scale = set1(s.unit * kLog2E);
#pragma GCC unroll 2
  for (int64_t r = 0; r < at.num_rows; ++r) {
    const Vec base = set1(bases[r]);
    Vec p[4] = {zero(), zero(), zero(), zero()};
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      p[v] = exp2(mul(sub(load(scores + r * kKeyTile + v * kLanes), base), scale));
    }
    float* sums = s.sums + (at.row + r) * kLanes;
    store(sums, add(load(sums), add(add(p[0], p[1]), add(p[2], p[3]))));
    store_bfloat16(probabilities + r * kKeyTile, p[0], p[1]);
    if (kVecs > 2) store_bfloat16(probabilities + r * kKeyTile + 2 * kLanes, p[2], p[3]);
  }
}

// Turns scores [16, 64] into probabilities [16, 64] in bfloat16, up to the 32 keys that the last
// visible one belongs to.
inline void soften_rows(const AttentionTask& task, const SoftmaxState& s, const ScoredRows& at,
                        float* scores, uint16_t* probabilities) {
  prepare_scores(task, at, scores);
  float bases[kLanes];
  raise_maxima(s, at.row, at.num_rows, row_maxima(scores, at.num_rows), bases);
  if (at.num_keys > 3 * kLanes) {
    exponentiate_rows<4>(s, at, scores, bases, probabilities);
  } else if (at.num_keys > 2 * kLanes) {
    exponentiate_rows<3>(s, at, scores, bases, probabilities);
  } else if (at.num_keys > kLanes) {
    exponentiate_rows<2>(s, at, scores, bases, probabilities);
  } else {
    exponentiate_rows<1>(s, at, scores, bases, probabilities);
  }
}

}  // namespace
}  // namespace octavo::cpu
