// Causal attention of up to 64 query rows of one KV head over the paged cache, with an online
// softmax over tiles of 64 keys in ascending position. Q, K, V and the probabilities are float32.
// A tile serves all rows, so that the query heads of a group read the cache once. For many rows it
// is widened into scratch first ([head_dim][64] keys, [64][head_dim] values); for the few of a
// decode it is widened in registers. Both ways add the same terms in the same order.
// Bound: fused multiply-add issue for prefill, memory for decode, which fetches a tile ahead.
// Memory is read in runs of a block, too short for the hardware to foresee the next one.
// Source: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.
#pragma once

#include "cpu/kernels.h"
#include "cpu/kernels/vec_math.h"

namespace octavo::cpu {
namespace {

struct Int8 {
  int8_t bits;
};
inline Vec load(const Int8* p) { return load_int8(&p->bits); }
inline float widen(Int8 x) { return x.bits; }
inline void narrow(float x, Int8* out) { out->bits = static_cast<int8_t>(__builtin_rintf(x)); }

inline void narrow_lanes(Vec x, float* out) { store(out, x); }
inline void narrow_lanes(Vec x, uint16_t* out) { store_half(out, x); }
inline void narrow_lanes(Vec x, BFloat16* out) { store_bfloat16(&out->bits, x); }
inline void narrow_lanes(Vec x, Int8* out) {
  float lanes[kLanes];
  store(lanes, x);
  for (int64_t i = 0; i < kLanes; ++i) narrow(lanes[i], out + i);
}

template <typename T>
inline constexpr bool kHasScales = false;
template <>
inline constexpr bool kHasScales<Int8> = true;

inline float* scale_at(std::byte* base, const KVHeadView& kv, int64_t slot) {
  std::byte* block = base + slot / kv.block_size * kv.block_stride_bytes;
  return reinterpret_cast<float*>(block) + slot % kv.block_size;
}

// 1/127 of the greatest magnitude; NaN when there is a NaN, so that it is not lost in rounding.
inline float int8_scale(const float* x, int64_t size) {
  float greatest = 0.0f;
  for (int64_t i = 0; i < size; ++i) {
    const float magnitude = __builtin_fabsf(x[i]);
    greatest = magnitude > greatest || magnitude != magnitude ? magnitude : greatest;
  }
  return greatest / 127.0f;
}

template <typename T>
void write_kv(const KVHeadView& kv, int64_t slot, const float* key, const float* value) {
  const int64_t offset = slot / kv.block_size * kv.block_stride_bytes;
  const int64_t in_block = slot % kv.block_size;
  float key_factor = 1.0f, value_factor = 1.0f;
  if constexpr (kHasScales<T>) {
    const float key_scale = int8_scale(key, kv.head_dim);
    const float value_scale = int8_scale(value, kv.head_dim);
    *scale_at(kv.key_scale_base, kv, slot) = key_scale;
    *scale_at(kv.value_scale_base, kv, slot) = value_scale;
    key_factor = key_scale > 0.0f ? 1.0f / key_scale : 0.0f;
    value_factor = value_scale > 0.0f ? 1.0f / value_scale : 0.0f;
  }
  T* key_out = reinterpret_cast<T*>(kv.key_base + offset) + in_block;
  T* value_out = reinterpret_cast<T*>(kv.value_base + offset) + in_block * kv.head_dim;
  for (int64_t d = 0; d < kv.head_dim; d += kLanes) {
    const int64_t n = smaller(kLanes, kv.head_dim - d);
    T narrowed[kLanes];
    narrow_lanes(mul(load_first(key + d, n), set1(key_factor)), narrowed);
    for (int64_t i = 0; i < n; ++i) key_out[(d + i) * kv.block_size] = narrowed[i];
    narrow_lanes(mul(load_first(value + d, n), set1(value_factor)), narrowed);
    __builtin_memcpy(value_out + d, narrowed, static_cast<size_t>(n) * sizeof(T));
  }
}

struct AttentionScratch {
  float* q;       // [kQueryRows, padded]
  float* out;     // [kQueryRows, padded]
  float* scores;  // [kQueryRows, kKeyTile]
  float* max;     // [kQueryRows]
  float* sum;     // [kQueryRows]
  float* keys;    // [head_dim, kKeyTile]
  float* values;  // [kKeyTile, padded]
};

inline AttentionScratch divide_scratch(float* base, int64_t padded) {
  AttentionScratch s;
  s.q = base;
  s.out = s.q + kQueryRows * padded;
  s.scores = s.out + kQueryRows * padded;
  s.max = s.scores + kQueryRows * kKeyTile;
  s.sum = s.max + kQueryRows;
  s.keys = s.sum + kQueryRows;
  s.values = s.keys + kKeyTile * padded;
  return s;
}

inline int64_t row_position(const AttentionTask& task, int64_t row) {
  return task.first_position + (task.row_begin + row) / task.group;
}

inline int64_t row_offset(const AttentionTask& task, int64_t row, int64_t token_stride) {
  const int64_t absolute = task.row_begin + row;
  return absolute / task.group * token_stride + absolute % task.group * task.kv.head_dim;
}

// Where the first tile of keys that a row of the task sees begins.
inline int64_t first_tile(const AttentionTask& task) {
  if (task.sliding_window == 0) return 0;
  return larger(0, row_position(task, 0) - task.sliding_window + 1) / kKeyTile * kKeyTile;
}

// A row's greatest score and sum of probabilities before it has seen a key.
inline void begin_softmax(const AttentionTask& task, const AttentionScratch& s, int64_t row) {
  const float* sinks = task.sinks;
  s.max[row] = sinks == nullptr ? -__builtin_inff() : sinks[(task.row_begin + row) % task.group];
  s.sum[row] = sinks == nullptr ? 0.0f : 1.0f;
}

inline void begin_rows(const AttentionTask& task, const AttentionScratch& s) {
  const int64_t head_dim = task.kv.head_dim, padded = padded_head_dim(head_dim);
  for (int64_t r = 0; r < task.num_rows; ++r) {
    const float* q = task.q + row_offset(task, r, task.q_stride);
    for (int64_t d = 0; d < head_dim; d += kLanes) {
      const int64_t n = smaller(kLanes, head_dim - d);
      store(s.q + r * padded + d, load_first(q + d, n));
      store(s.out + r * padded + d, zero());
    }
    begin_softmax(task, s, r);
  }
}

// Part of a tile: `n` slots of one block, from slot `first` of it on.
struct TilePart {
  const KVHeadView& kv;
  int64_t offset;  // of the block
  int64_t first;
  int64_t n;

  template <typename T>
  const T* keys() const {
    return reinterpret_cast<const T*>(kv.key_base + offset) + first;
  }
  template <typename T>
  const T* values() const {
    return reinterpret_cast<const T*>(kv.value_base + offset) + first * kv.head_dim;
  }
  const float* key_scales() const {
    return reinterpret_cast<const float*>(kv.key_scale_base + offset) + first;
  }
  const float* value_scales() const {
    return reinterpret_cast<const float*>(kv.value_scale_base + offset) + first;
  }
};

// Keys become columns of the tile.
template <typename T>
void gather_keys(const TilePart& part, float* out) {
  const T* in = part.keys<T>();
  const float* scales = part.key_scales();
  for (int64_t d = 0; d < part.kv.head_dim; ++d, in += part.kv.block_size, out += kKeyTile) {
    int64_t j = 0;
    for (; j + kLanes <= part.n; j += kLanes) {
      const Vec x = load(in + j);
      store(out + j, kHasScales<T> ? mul(x, load(scales + j)) : x);
    }
    for (; j < part.n; ++j) out[j] = kHasScales<T> ? widen(in[j]) * scales[j] : widen(in[j]);
  }
}

// Values become rows of the tile, zero from head_dim on.
template <typename T>
void gather_values(const TilePart& part, float* out) {
  const int64_t head_dim = part.kv.head_dim, padded = padded_head_dim(head_dim);
  const T* in = part.values<T>();
  for (int64_t j = 0; j < part.n; ++j, in += head_dim, out += padded) {
    const float scale = kHasScales<T> ? part.value_scales()[j] : 1.0f;
    int64_t d = 0;
    for (; d + kLanes <= head_dim; d += kLanes) {
      const Vec x = load(in + d);
      store(out + d, kHasScales<T> ? mul(x, set1(scale)) : x);
    }
    for (; d < padded; ++d) out[d] = d < head_dim ? widen(in[d]) * scale : 0.0f;
  }
}

// Where the part of a tile that begins at absolute position `begin` lies, at most `count` slots.
inline TilePart part_at(const AttentionTask& task, int64_t begin, int64_t count) {
  const int64_t size = task.kv.block_size, first = begin % size;
  return {task.kv, task.block_table[begin / size] * task.kv.block_stride_bytes, first,
          smaller(size - first, count)};
}

// Columns of the tile past `count` keep what they held; the mask hides their scores.
template <typename T>
void gather_tile(const AttentionTask& task, int64_t begin, int64_t count,
                 const AttentionScratch& s) {
  const int64_t padded = padded_head_dim(task.kv.head_dim);
  for (int64_t done = 0; done < count;) {
    const TilePart part = part_at(task, begin + done, count - done);
    gather_keys<T>(part, s.keys + done);
    gather_values<T>(part, s.values + done * padded);
    done += part.n;
  }
}

// One dimension of sixteen keys.
template <typename T>
inline Vec load_keys(const T* keys, const float* scales) {
  if constexpr (kHasScales<T>) return mul(load(keys), load(scales));
  return load(keys);
}

// The `count` keys of a tile from absolute position `begin` on. Meanwhile the same places of the
// tile at `next` are fetched, because blocks lie anywhere; the last tile names itself.
struct KeyTile {
  int64_t begin;
  int64_t count;
  int64_t next;
  int64_t next_count;

  // Where the next tile has what this one has at `offset`, or its first key.
  int64_t later(int64_t offset) const { return next + (offset < next_count ? offset : 0); }
};

// scores[r, j] = q[r] . key[j], straight from the cache. Vectors past `count` repeat the first; the
// mask hides them. Requires: block_size is a multiple of 16.
template <typename T, int kRows>
void score_in_place(const AttentionTask& task, const AttentionScratch& s, const KeyTile& tile) {
  const int64_t head_dim = task.kv.head_dim, padded = padded_head_dim(head_dim);
  for (int64_t j = 0; j < tile.count; j += kTileVecs * kLanes) {
    const T *keys[kTileVecs], *later[kTileVecs];
    const float* scales[kTileVecs];
    for (int v = 0; v < kTileVecs; ++v) {
      const int64_t at = j + v * kLanes < tile.count ? j + v * kLanes : j;
      const TilePart part = part_at(task, tile.begin + at, kLanes);
      keys[v] = part.keys<T>();
      scales[v] = part.key_scales();
      const TilePart next = part_at(task, tile.later(at), kLanes);
      later[v] = next.keys<T>();
      if constexpr (kHasScales<T>) _mm_prefetch(next.key_scales(), _MM_HINT_T0);
    }
    Vec acc[kRows][kTileVecs] = {};
    for (int64_t d = 0; d < head_dim; ++d) {
      Vec column[kTileVecs];
#pragma GCC unroll 8
      for (int v = 0; v < kTileVecs; ++v) {
        column[v] = load_keys(keys[v] + d * task.kv.block_size, scales[v]);
        _mm_prefetch(later[v] + d * task.kv.block_size, _MM_HINT_T0);
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Vec x = set1(s.q[r * padded + d]);
#pragma GCC unroll 8
        for (int v = 0; v < kTileVecs; ++v) acc[r][v] = fma(x, column[v], acc[r][v]);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kTileVecs; ++v) {
        store(s.scores + r * kKeyTile + j + v * kLanes, acc[r][v]);
      }
    }
  }
}

// out[r] += sum over j ascending of probability[r, j] * value[j], straight from the cache, for
// kVecs vectors of columns.
template <typename T, int kRows, int kVecs>
void weigh_in_place(const AttentionTask& task, const AttentionScratch& s, const KeyTile& tile,
                    int64_t col) {
  const int64_t head_dim = task.kv.head_dim, padded = padded_head_dim(head_dim);
  Vec acc[kRows][kVecs];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVecs; ++v) acc[r][v] = load(s.out + r * padded + col + v * kLanes);
  }
  for (int64_t done = 0; done < tile.count;) {
    const TilePart part = part_at(task, tile.begin + done, tile.count - done);
    const T* values = part.values<T>() + col;
    const TilePart next = part_at(task, tile.later(done), 1);
    const T* later = next.values<T>() + col;
    if constexpr (kHasScales<T>) _mm_prefetch(next.value_scales(), _MM_HINT_T0);
    for (int64_t i = 0; i < part.n; ++i, values += head_dim, later += head_dim) {
      Vec value[kVecs];
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) {
        value[v] = load(values + v * kLanes);
        _mm_prefetch(later + v * kLanes, _MM_HINT_T0);
        if constexpr (kHasScales<T>) value[v] = mul(value[v], set1(part.value_scales()[i]));
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Vec p = set1(s.scores[r * kKeyTile + done + i]);
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) acc[r][v] = fma(p, value[v], acc[r][v]);
      }
    }
    done += part.n;
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVecs; ++v) store(s.out + r * padded + col + v * kLanes, acc[r][v]);
  }
}

// scores[r, j] = q[r] . key[j] for kRows rows from `row` on.
template <int kRows>
void score_rows(const AttentionTask& task, const AttentionScratch& s, int64_t row) {
  const int64_t head_dim = task.kv.head_dim, padded = padded_head_dim(head_dim);
  for (int64_t j = 0; j < kKeyTile; j += kTileVecs * kLanes) {
    Vec acc[kRows][kTileVecs] = {};
    multiply_add(s.q + row * padded, padded, s.keys + j, kKeyTile, kLanes, head_dim, acc);
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kTileVecs; ++v) {
        store(s.scores + (row + r) * kKeyTile + j + v * kLanes, acc[r][v]);
      }
    }
  }
}

// out[r] += sum over j ascending of probability[r, j] * value[j]; out is already rescaled.
template <int kRows, int kVecs>
void weigh_columns(const AttentionScratch& s, int64_t row, int64_t col, int64_t padded,
                   int64_t count) {
  Vec acc[kRows][kVecs];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVecs; ++v) {
      acc[r][v] = load(s.out + (row + r) * padded + col + v * kLanes);
    }
  }
  multiply_add(s.scores + row * kKeyTile, kKeyTile, s.values + col, padded, kLanes, count, acc);
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVecs; ++v) {
      store(s.out + (row + r) * padded + col + v * kLanes, acc[r][v]);
    }
  }
}

template <int kRows>
void weigh_rows(const AttentionTask& task, const AttentionScratch& s, int64_t row, int64_t count) {
  const int64_t padded = padded_head_dim(task.kv.head_dim);
  int64_t col = 0;
  for (; col + kTileVecs * kLanes <= padded; col += kTileVecs * kLanes) {
    weigh_columns<kRows, kTileVecs>(s, row, col, padded, count);
  }
  for (; col < padded; col += kLanes) weigh_columns<kRows, 1>(s, row, col, padded, count);
}

template <int kRows = kTileRows>
void score_group(const AttentionTask& task, const AttentionScratch& s, int64_t row, int64_t rows) {
  if (rows == kRows) {
    score_rows<kRows>(task, s, row);
  } else if constexpr (kRows > 1) {
    score_group<kRows - 1>(task, s, row, rows);
  }
}

template <int kRows = kTileRows>
void weigh_group(const AttentionTask& task, const AttentionScratch& s, int64_t row, int64_t rows,
                 int64_t count) {
  if (rows == kRows) {
    weigh_rows<kRows>(task, s, row, count);
  } else if constexpr (kRows > 1) {
    weigh_group<kRows - 1>(task, s, row, rows, count);
  }
}

inline Vec soft_cap(Vec score, float cap) { return mul(set1(cap), tanh(div(score, set1(cap)))); }

// Hides the keys of the tile outside (position - window, position].
inline void mask_row(const AttentionTask& task, int64_t position, int64_t begin, float* scores) {
  const int64_t first = task.sliding_window > 0 ? position - task.sliding_window + 1 - begin : 0;
  const int64_t end = position + 1 - begin;
  if (first <= 0 && end >= kKeyTile) return;
  const Vec hidden = set1(-__builtin_inff());
  for (int64_t j = 0; j < kKeyTile; j += kLanes) {
    store(scores + j, select_lanes(load(scores + j), hidden, first - j, end - j));
  }
}

// Turns a row of scores into probabilities relative to the greatest score so far, and rescales what
// was summed before to it. A row that sees no key yet keeps its state: its terms are all 0.
inline void softmax_row(const AttentionTask& task, const AttentionScratch& s, int64_t row,
                        int64_t begin) {
  constexpr int kVecs = kKeyTile / kLanes;
  const int64_t padded = padded_head_dim(task.kv.head_dim);
  float* scores = s.scores + row * kKeyTile;
  for (int64_t j = 0; j < kKeyTile; j += kLanes) {
    const Vec scaled = mul(load(scores + j), set1(task.scale));
    store(scores + j, task.soft_cap > 0.0f ? soft_cap(scaled, task.soft_cap) : scaled);
  }
  mask_row(task, row_position(task, row), begin, scores);
  Vec greatest = load(scores);
  for (int v = 1; v < kVecs; ++v) greatest = max(greatest, load(scores + v * kLanes));
  const float tile_max = reduce_max(greatest);
  const float new_max = s.max[row] > tile_max ? s.max[row] : tile_max;
  const float reference = new_max == -__builtin_inff() ? 0.0f : new_max;
  const Vec rescale = exp(set1(s.max[row] - reference));
  Vec total = zero();
  for (int v = 0; v < kVecs; ++v) {
    const Vec p = exp(sub(load(scores + v * kLanes), set1(reference)));
    store(scores + v * kLanes, p);
    total = add(total, p);
  }
  s.max[row] = new_max;
  s.sum[row] = __builtin_fmaf(s.sum[row], first_lane(rescale), reduce_add(total));
  for (int64_t d = 0; d < padded; d += kLanes) {
    float* out = s.out + row * padded + d;
    store(out, mul(load(out), rescale));
  }
}

// One division a row: a vector's takes as long as sixteen products. A zero of the result has no
// sign: it would tell which terms of 0 a row has met, and that depends on the other rows of its
// task.
inline void end_rows(const AttentionTask& task, const AttentionScratch& s) {
  const int64_t head_dim = task.kv.head_dim, padded = padded_head_dim(head_dim);
  for (int64_t r = 0; r < task.num_rows; ++r) {
    float* out = task.out + row_offset(task, r, task.out_stride);
    const Vec share = set1(1.0f / s.sum[r]);
    for (int64_t d = 0; d < head_dim; d += kLanes) {
      const Vec y = add(mul(load(s.out + r * padded + d), share), zero());
      store_first(out + d, y, smaller(kLanes, head_dim - d));
    }
  }
}

// Whether a task's rows are so few that widening a tile into scratch would cost more than it saves.
inline bool reads_in_place(const AttentionTask& task) {
  return task.num_rows <= kTileRows && task.kv.block_size % kLanes == 0 &&
         task.kv.head_dim % kLanes == 0;
}

template <typename T, int kRows = kTileRows>
void attend_in_place(const AttentionTask& task, const AttentionScratch& s, const KeyTile& tile) {
  if (task.num_rows < kRows) {
    if constexpr (kRows > 1) attend_in_place<T, kRows - 1>(task, s, tile);
    return;
  }
  score_in_place<T, kRows>(task, s, tile);
  for (int64_t r = 0; r < kRows; ++r) softmax_row(task, s, r, tile.begin);
  int64_t col = 0;
  for (; col + kTileVecs * kLanes <= task.kv.head_dim; col += kTileVecs * kLanes) {
    weigh_in_place<T, kRows, kTileVecs>(task, s, tile, col);
  }
  for (; col < task.kv.head_dim; col += kLanes) {
    weigh_in_place<T, kRows, 1>(task, s, tile, col);
  }
}

template <typename T>
void attend_tile(const AttentionTask& task, const AttentionScratch& s, int64_t begin,
                 int64_t count) {
  gather_tile<T>(task, begin, count, s);
  for (int64_t r = 0; r < task.num_rows; r += kTileRows) {
    score_group(task, s, r, smaller(kTileRows, task.num_rows - r));
  }
  for (int64_t r = 0; r < task.num_rows; ++r) softmax_row(task, s, r, begin);
  for (int64_t r = 0; r < task.num_rows; r += kTileRows) {
    weigh_group(task, s, r, smaller(kTileRows, task.num_rows - r), count);
  }
}

template <typename T>
void attention(const AttentionTask& task) {
  const AttentionScratch s = divide_scratch(task.scratch, padded_head_dim(task.kv.head_dim));
  begin_rows(task, s);
  const int64_t end = row_position(task, task.num_rows - 1) + 1;
  for (int64_t begin = first_tile(task); begin < end; begin += kKeyTile) {
    const int64_t count = smaller(kKeyTile, end - begin);
    if (reads_in_place(task)) {
      const int64_t next = begin + kKeyTile < end ? begin + kKeyTile : begin;
      attend_in_place<T>(task, s, {begin, count, next, smaller(kKeyTile, end - next)});
    } else {
      attend_tile<T>(task, s, begin, count);
    }
  }
  end_rows(task, s);
}

}  // namespace
}  // namespace octavo::cpu
