// A ragged batch over a paged cache, as the runner lays it out, and a double-precision twin of the
// attention over it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "backend/backend.h"
#include "cpu/cpu_testing.h"

namespace octavo::cpu {

// Tokens [computed, computed + scheduled) of one sequence are run.
struct Chunk {
  int64_t sequence;
  int64_t computed;
  int64_t scheduled;
};

struct AttentionShape {
  int64_t num_q_heads;
  int64_t num_kv_heads;
  int64_t head_dim;
  int64_t block_size;
  float soft_cap = 0.0f;
  int64_t sliding_window = 0;
  std::vector<float> sinks = {};  // none, or one a query head

  // Heads and blocks that the tiles take; others go through the vector units.
  bool fits_tiles() const { return head_dim % 16 == 0 && block_size % 16 == 0; }
  int64_t qkv_width() const { return (num_q_heads + 2 * num_kv_heads) * head_dim; }
  int64_t out_width() const { return num_q_heads * head_dim; }
};

// What tiles round queries to.
inline DType tile_query_type(const AttentionShape& shape) {
  return shape.fits_tiles() ? DType::kBFloat16 : DType::kFloat32;
}

// Attention whose products are denormal or nearly so, for sequences of such deviations: one, three,
// four and nine query heads of a KV head; sinks that make the probabilities as small.
inline const AttentionShape kTinyShapes[] = {
    {1, 1, 64, 16},
    {9, 3, 48, 16},
    {4, 1, 64, 32},
    {9, 1, 64, 16},
    {3, 1, 64, 16, 0.0f, 0, {41.5f, 43.0f, 87.0f}},
    {4, 1, 16, 16, 0.0f, 70, {41.5f, 43.0f, 87.0f, 20.0f}},
};
inline constexpr float kTinyDeviations[] = {1e-20f, 1e-37f};

// Sequences of given lengths, each with random q, k, v rows of the given deviation and blocks
// scattered over the cache.
class PagedSequences {
 public:
  PagedSequences(const AttentionShape& shape, std::vector<int64_t> lengths, uint32_t seed,
                 float deviation = 1.5f)
      : shape_(shape), lengths_(std::move(lengths)) {
    for (const int64_t length : lengths_) {
      qkv_.push_back(random_floats(length * shape.qkv_width(), seed++, deviation));
      blocks_per_seq_ =
          std::max(blocks_per_seq_, (length + shape.block_size - 1) / shape.block_size);
    }
    std::vector<int32_t> ids(num_blocks());
    std::iota(ids.begin(), ids.end(), 0);
    std::mt19937 generator(seed);
    std::ranges::shuffle(ids, generator);
    block_tables_ = ids;
  }

  int64_t num_blocks() const { return blocks_per_seq_ * std::ssize(lengths_); }
  const std::vector<float>& qkv(int64_t sequence) const { return qkv_[sequence]; }
  const AttentionShape& shape() const { return shape_; }

  KVCacheSpec cache_spec(DType dtype, int64_t num_layers = 1) const {
    return {num_layers,        shape_.num_kv_heads, shape_.head_dim,
            shape_.block_size, num_blocks(),        dtype};
  }

  AttentionParams params(int64_t layer = 0) const {
    return {layer,
            shape_.num_q_heads,
            shape_.num_kv_heads,
            shape_.head_dim,
            1.0f / std::sqrt(static_cast<float>(shape_.head_dim)),
            shape_.soft_cap,
            shape_.sliding_window,
            shape_.sinks.empty() ? nullptr : shape_.sinks.data()};
  }

  // Writes keys and values and attends, for the chunks in order. Returns [T, num_q_heads * dim].
  // Engine: a Backend, or what has its two operations.
  template <typename Engine>
  std::vector<float> run(Engine& backend, KVCache& cache, const std::vector<Chunk>& chunks,
                         const RopeTable& rope = {}, int64_t layer = 0) const {
    std::vector<float> rows;
    std::vector<int32_t> positions, query_start_loc{0}, seq_lens, tables;
    std::vector<int64_t> slots;
    for (const Chunk& c : chunks) {
      const float* first = qkv_[c.sequence].data() + c.computed * shape_.qkv_width();
      rows.insert(rows.end(), first, first + c.scheduled * shape_.qkv_width());
      const int32_t* table = &block_tables_[c.sequence * blocks_per_seq_];
      for (int64_t p = c.computed; p < c.computed + c.scheduled; ++p) {
        positions.push_back(static_cast<int32_t>(p));
        slots.push_back(table[p / shape_.block_size] * shape_.block_size + p % shape_.block_size);
      }
      query_start_loc.push_back(static_cast<int32_t>(positions.size()));
      seq_lens.push_back(static_cast<int32_t>(c.computed + c.scheduled));
      tables.insert(tables.end(), table, table + blocks_per_seq_);
    }
    ForwardInputs inputs;
    inputs.num_tokens = std::ssize(positions);
    inputs.num_seqs = std::ssize(chunks);
    inputs.block_table_stride = blocks_per_seq_;
    inputs.positions = positions.data();
    inputs.slot_mapping = slots.data();
    inputs.query_start_loc = query_start_loc.data();
    inputs.seq_lens = seq_lens.data();
    inputs.block_tables = tables.data();
    inputs.host_query_start_loc = query_start_loc;
    inputs.host_seq_lens = seq_lens;
    const TensorView qkv = matrix(rows, inputs.num_tokens, shape_.qkv_width());
    backend.rope_and_cache(qkv, rope, inputs, params(layer), cache);
    std::vector<float> out(inputs.num_tokens * shape_.out_width());
    backend.attention(qkv, inputs, params(layer), cache,
                      matrix(out, inputs.num_tokens, shape_.out_width()));
    return out;
  }

  // The exact result of one query row of `sequence`; keys and values as the cache rounds them, the
  // query in its own type.
  std::vector<double> twin(int64_t sequence, int64_t position, int64_t head, DType dtype,
                           DType query_dtype = DType::kFloat32) const {
    const int64_t dim = shape_.head_dim, kv = head / (shape_.num_q_heads / shape_.num_kv_heads);
    const auto q = as_cached(query_dtype, row(sequence, position) + head * dim, dim);
    const int64_t window = shape_.sliding_window;
    const int64_t first = window > 0 ? std::max<int64_t>(0, position - window + 1) : 0;
    std::vector<double> scores;
    for (int64_t j = first; j <= position; ++j) {
      const auto k = as_cached(dtype, row(sequence, j) + (shape_.num_q_heads + kv) * dim, dim);
      double s = 0;
      for (int64_t d = 0; d < dim; ++d) s += double{q[d]} * k[d];
      s *= params().scale;
      scores.push_back(shape_.soft_cap > 0 ? shape_.soft_cap * std::tanh(s / shape_.soft_cap) : s);
    }
    const double max = *std::ranges::max_element(scores);
    double sum = shape_.sinks.empty() ? 0.0 : std::exp(shape_.sinks[head] - max);
    std::vector<double> out(dim);
    for (size_t i = 0; i < scores.size(); ++i) {
      const double p = std::exp(scores[i] - max);
      sum += p;
      const auto v = as_cached(dtype,
                               row(sequence, first + static_cast<int64_t>(i)) +
                                   (shape_.num_q_heads + shape_.num_kv_heads + kv) * dim,
                               dim);
      for (int64_t d = 0; d < dim; ++d) out[d] += p * v[d];
    }
    for (double& x : out) x /= sum;
    return out;
  }

 private:
  const float* row(int64_t sequence, int64_t position) const {
    return qkv_[sequence].data() + position * shape_.qkv_width();
  }

  AttentionShape shape_;
  std::vector<int64_t> lengths_;
  std::vector<std::vector<float>> qkv_;
  int64_t blocks_per_seq_ = 0;
  std::vector<int32_t> block_tables_;
};

}  // namespace octavo::cpu
