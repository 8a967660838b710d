// Paged attention: every kernel behind Attention against float64, over ragged batches. Slots of the
// cache that hold no token are NaN, so a read past a sequence's end shows.
#include "cuda/attention.h"

#include <algorithm>
#include <numeric>

#include "checker.h"

namespace octavo::cuda::testing {
namespace {

struct Sequence {
  int64_t queries;
  int64_t length;  // the queries are its last tokens
};

struct AttentionCase {
  std::vector<Sequence> sequences;
  DType dtype = DType::kBFloat16;
  DType kv_dtype = DType::kBFloat16;
  int64_t head_dim = 128;
  int64_t kv_heads = 2;
  int64_t group = 4;
  int64_t block_size = 16;
  int64_t window = 0;
  float soft_cap = 0.0f;
  bool batch_invariant = false;
  bool has_sinks = false;
  bool is_hopper = true;

  std::string name() const {
    return std::string(name_of(dtype)) + "/" + name_of(kv_dtype) + " d" + std::to_string(head_dim) +
           " kv" + std::to_string(kv_heads) + " g" + std::to_string(group) + " b" +
           std::to_string(block_size) + " w" + std::to_string(window) + " cap" +
           std::to_string(soft_cap) + (batch_invariant ? " invariant" : "") +
           (has_sinks ? " sinks" : "") + (is_hopper ? "" : " portable");
  }
};

// A batch on the device with the host's copy of all it was made from.
class Batch {
 public:
  explicit Batch(const AttentionCase& c) : case_(c) {
    starts_.push_back(0);
    int64_t blocks = 3;
    for (const Sequence& s : c.sequences) {
      starts_.push_back(static_cast<int32_t>(starts_.back() + s.queries));
      lengths_.push_back(static_cast<int32_t>(s.length));
      stride_ = std::max(stride_, (s.length + c.block_size - 1) / c.block_size);
      blocks += (s.length + c.block_size - 1) / c.block_size;
      keys_.push_back(random_values(s.length * c.kv_heads * c.head_dim, c.kv_dtype));
      values_.push_back(random_values(s.length * c.kv_heads * c.head_dim, c.kv_dtype));
    }
    make_tables(blocks);
    cache_ = std::make_unique<CudaKVCache>(
        context(), KVCacheSpec{1, c.kv_heads, c.head_dim, c.block_size, blocks, c.kv_dtype});
    fill_cache(keys_, cache_->layer(0).keys, blocks);
    fill_cache(values_, cache_->layer(0).values, blocks);
    queries_ = random_values(num_tokens() * q_width(), c.dtype);
    std::vector<float> qkv(num_tokens() * qkv_width(), NAN);
    for (int64_t t = 0; t < num_tokens(); ++t) {
      std::copy_n(queries_.begin() + t * q_width(), q_width(), qkv.begin() + t * qkv_width());
    }
    qkv_ = std::make_unique<Array>(c.dtype, qkv);
    sinks_ = random_values(c.kv_heads * c.group, DType::kFloat32, 3.0f);
    device_sinks_ = upload(sinks_);
    device_starts_ = upload(starts_);
    device_lengths_ = upload(lengths_);
    device_tables_ = upload(tables_);
  }

  int64_t num_tokens() const { return starts_.back(); }
  int64_t q_width() const { return case_.kv_heads * case_.group * case_.head_dim; }
  int64_t qkv_width() const { return q_width() + 2 * case_.kv_heads * case_.head_dim; }

  std::vector<float> run(Attention& attention) const {
    DeviceContext device = context();
    device.batch_invariant = case_.batch_invariant;
    device.is_hopper = device.is_hopper && case_.is_hopper;
    ForwardInputs inputs;
    inputs.num_tokens = num_tokens();
    inputs.num_seqs = std::ssize(lengths_);
    inputs.max_seq_len = *std::ranges::max_element(lengths_);
    inputs.block_table_stride = stride_;
    inputs.query_start_loc = device_starts_.as<int32_t>();
    inputs.seq_lens = device_lengths_.as<int32_t>();
    inputs.block_tables = device_tables_.as<int32_t>();
    inputs.host_query_start_loc = starts_;
    inputs.host_seq_lens = lengths_;
    AttentionParams params;
    params.num_q_heads = case_.kv_heads * case_.group;
    params.num_kv_heads = case_.kv_heads;
    params.head_dim = case_.head_dim;
    params.scale = scale();
    params.logit_soft_cap = case_.soft_cap;
    params.sliding_window = case_.window;
    if (case_.has_sinks) params.sinks = device_sinks_.as<float>();
    const Array out(case_.dtype, num_tokens() * q_width());
    attention.run(device, qkv_->matrix(num_tokens(), qkv_width()), inputs, params, *cache_,
                  out.matrix(num_tokens(), q_width()));
    return out.download();
  }

  // Row of the output for query `query` of sequence `s` and query head `head`.
  std::vector<double> reference(int64_t s, int64_t query, int64_t head) const {
    const int64_t d = case_.head_dim, kv_head = head / case_.group;
    const int64_t position = lengths_[s] - case_.sequences[s].queries + query;
    const int64_t first = case_.window > 0 ? std::max<int64_t>(0, position - case_.window + 1) : 0;
    const float* q = queries_.data() + (starts_[s] + query) * q_width() + head * d;
    std::vector<double> out(d, 0.0), scores;
    for (int64_t j = first; j <= position; ++j) {
      const float* k = keys_[s].data() + (j * case_.kv_heads + kv_head) * d;
      double dot = 0.0;
      for (int64_t i = 0; i < d; ++i) dot += double{q[i]} * k[i];
      dot *= scale();
      scores.push_back(case_.soft_cap > 0 ? case_.soft_cap * std::tanh(dot / case_.soft_cap) : dot);
    }
    const double maximum = *std::ranges::max_element(scores);
    double sum = case_.has_sinks ? std::exp(sinks_[head] - maximum) : 0.0;
    for (int64_t j = first; j <= position; ++j) {
      const double p = std::exp(scores[j - first] - maximum);
      const float* v = values_[s].data() + (j * case_.kv_heads + kv_head) * d;
      for (int64_t i = 0; i < d; ++i) out[i] += p * v[i];
      sum += p;
    }
    for (double& o : out) o /= sum;
    return out;
  }

  int32_t start(int64_t s) const { return starts_[s]; }

 private:
  // Larger than 1 / sqrt(head_dim): the softmax must be far from uniform for errors to show.
  float scale() const { return 2.0f / std::sqrt(static_cast<float>(case_.head_dim)); }

  void make_tables(int64_t blocks) {
    std::vector<int32_t> order(blocks);
    std::iota(order.begin(), order.end(), 0);
    std::ranges::shuffle(order, generator());
    tables_.assign(lengths_.size() * stride_, 0);
    size_t next = 0;
    for (size_t s = 0; s < lengths_.size(); ++s) {
      for (int64_t i = 0; i * case_.block_size < lengths_[s]; ++i) {
        tables_[s * stride_ + i] = order[next++];
      }
    }
  }

  void fill_cache(const std::vector<std::vector<float>>& tokens, void* target, int64_t blocks) {
    const int64_t d = case_.head_dim, size = blocks * case_.kv_heads * case_.block_size * d;
    std::vector<float> image(size, NAN);
    for (size_t s = 0; s < tokens.size(); ++s) {
      for (int64_t j = 0; j < lengths_[s]; ++j) {
        const int64_t block = tables_[s * stride_ + j / case_.block_size];
        for (int64_t h = 0; h < case_.kv_heads; ++h) {
          const int64_t row =
              (block * case_.kv_heads + h) * case_.block_size + j % case_.block_size;
          std::copy_n(tokens[s].begin() + (j * case_.kv_heads + h) * d, d, image.begin() + row * d);
        }
      }
    }
    const Array staged(case_.kv_dtype, image);
    check_cuda(cudaMemcpy(target, staged.data(), dtype_bytes(case_.kv_dtype, size),
                          cudaMemcpyDeviceToDevice));
  }

  const AttentionCase case_;
  std::vector<int32_t> starts_, lengths_, tables_;
  int64_t stride_ = 1;
  std::vector<std::vector<float>> keys_, values_;  // a sequence: [length, kv_heads, head_dim]
  std::vector<float> queries_, sinks_;
  std::unique_ptr<CudaKVCache> cache_;
  std::unique_ptr<Array> qkv_;
  DeviceMemory device_starts_, device_lengths_, device_tables_, device_sinks_;
};

// Queries to compare: all when they are few, else the ends and some between.
std::vector<int64_t> chosen_queries(int64_t count, int64_t length) {
  const int64_t wanted = length > 4096 ? 2 : 6;
  std::vector<int64_t> chosen;
  if (count <= wanted) {
    for (int64_t i = 0; i < count; ++i) chosen.push_back(i);
    return chosen;
  }
  chosen = {0, count - 1};
  while (std::ssize(chosen) < wanted) chosen.push_back(random_int(0, count - 1));
  return chosen;
}

void check_attention(const AttentionCase& c) {
  DeviceContext device = context();
  device.batch_invariant = c.batch_invariant;
  Attention attention(device);
  const Batch batch(c);
  const auto out = batch.run(attention);
  std::vector<float> got;
  std::vector<double> ref;
  const int64_t heads = c.kv_heads * c.group;
  for (int64_t s = 0; s < std::ssize(c.sequences); ++s) {
    for (const int64_t query : chosen_queries(c.sequences[s].queries, c.sequences[s].length)) {
      for (const int64_t head : {int64_t{0}, random_int(0, heads - 1), heads - 1}) {
        const auto row = batch.reference(s, query, head);
        ref.insert(ref.end(), row.begin(), row.end());
        const auto first = out.begin() + ((batch.start(s) + query) * heads + head) * c.head_dim;
        got.insert(got.end(), first, first + c.head_dim);
      }
    }
  }
  expect_close(got, ref, 1.5 * tolerance_of(c.dtype), c.name());
  expect(std::ranges::none_of(out, [](float v) { return std::isnan(v); }), c.name() + ": NaN");
  expect(batch.run(attention) == out, c.name() + ": differs from run to run");
}

const std::vector<Sequence> kDecodes = {{1, 1},   {1, 15},  {1, 16},   {1, 17},   {1, 255},
                                        {1, 256}, {1, 257}, {1, 1000}, {1, 4097}, {1, 64}};
const std::vector<Sequence> kPrefills = {{2, 2},     {5, 5},     {64, 64},   {65, 300}, {3, 2000},
                                         {128, 128}, {200, 777}, {17, 4100}, {2, 33}};

CUDA_TEST(decode_head_sizes_and_groups) {
  for (const int64_t head_dim : {64, 80, 96, 128, 192, 256}) {
    for (const int64_t group : {1, 3, 4, 8, 12}) {
      check_attention({.sequences = kDecodes, .head_dim = head_dim, .group = group});
    }
  }
}

CUDA_TEST(decode_types) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (const DType kv_dtype : {dtype, DType::kFloat8E4M3}) {
      for (const int64_t head_dim : {64, 128, 256}) {
        check_attention(
            {.sequences = kDecodes, .dtype = dtype, .kv_dtype = kv_dtype, .head_dim = head_dim});
      }
    }
  }
}

CUDA_TEST(decode_window_and_cap) {
  for (const int64_t window : {1, 16, 100, 1024}) {
    check_attention({.sequences = kDecodes, .block_size = 32, .window = window});
    check_attention({.sequences = kDecodes, .window = window, .soft_cap = 5.0f});
  }
  check_attention({.sequences = kDecodes, .block_size = 48, .soft_cap = 30.0f});
}

CUDA_TEST(decode_long_and_many) {
  check_attention({.sequences = {{1, 32768}}, .kv_heads = 8});
  check_attention({.sequences = {{1, 32768}, {1, 3}, {1, 20000}}, .kv_heads = 1, .group = 8});
  std::vector<Sequence> many;
  for (int i = 0; i < 256; ++i) many.push_back({1, random_int(1, 600)});
  many[100].length = 9000;
  check_attention({.sequences = many, .kv_heads = 8});
  check_attention({.sequences = many, .kv_heads = 8, .batch_invariant = true});
}

CUDA_TEST(prefill_head_sizes_and_groups) {
  for (const int64_t head_dim : {64, 80, 96, 128, 192, 256}) {
    for (const int64_t group : {1, 3, 4, 8}) {
      check_attention({.sequences = kPrefills, .head_dim = head_dim, .group = group});
      check_attention(
          {.sequences = kPrefills, .head_dim = head_dim, .group = group, .batch_invariant = true});
    }
  }
}

CUDA_TEST(prefill_types) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (const DType kv_dtype : {dtype, DType::kFloat8E4M3}) {
      for (const int64_t head_dim : {64, 128, 256}) {
        check_attention(
            {.sequences = kPrefills, .dtype = dtype, .kv_dtype = kv_dtype, .head_dim = head_dim});
      }
      check_attention(
          {.sequences = kPrefills, .dtype = dtype, .kv_dtype = kv_dtype, .batch_invariant = true});
    }
  }
}

// batch_invariant takes the sm_90 kernel; a block size that is no power of two excludes it.
CUDA_TEST(prefill_window_cap_and_blocks) {
  for (const bool sm90 : {false, true}) {
    for (const int64_t block_size : {16, 32, 48, 128, 256}) {
      check_attention({.sequences = kPrefills, .block_size = block_size, .batch_invariant = sm90});
    }
    for (const int64_t window : {1, 100, 1024}) {
      check_attention({.sequences = kPrefills, .window = window, .batch_invariant = sm90});
      check_attention(
          {.sequences = kPrefills, .window = window, .soft_cap = 5.0f, .batch_invariant = sm90});
    }
  }
}

CUDA_TEST(prefill_large) {
  check_attention({.sequences = {{3000, 3000}}, .kv_heads = 8});
  check_attention({.sequences = {{3000, 3000}}, .kv_heads = 8, .block_size = 48});
  check_attention(
      {.sequences = {{1500, 1500}, {700, 2900}, {2, 5}}, .head_dim = 64, .kv_heads = 8});
  check_attention({.sequences = {{16, 30000}}, .kv_heads = 8});
  check_attention({.sequences = {{300, 32000}}, .kv_heads = 4});
}

CUDA_TEST(portable_prefill) {
  for (const int64_t head_dim : {64, 128}) {
    for (const bool invariant : {false, true}) {
      check_attention({.sequences = kPrefills,
                       .head_dim = head_dim,
                       .batch_invariant = invariant,
                       .is_hopper = false});
    }
    check_attention({.sequences = kPrefills,
                     .head_dim = head_dim,
                     .window = 100,
                     .has_sinks = true,
                     .is_hopper = false});
  }
}

CUDA_TEST(sinks) {
  std::vector<Sequence> mixed = kDecodes;
  mixed.insert(mixed.end(), kPrefills.begin(), kPrefills.end());
  for (const bool invariant : {false, true}) {
    for (const int64_t head_dim : {64, 96, 128}) {  // 96 takes the warp-level prefill
      for (const int64_t group : {1, 8}) {
        check_attention({.sequences = mixed,
                         .head_dim = head_dim,
                         .group = group,
                         .batch_invariant = invariant,
                         .has_sinks = true});
      }
    }
    check_attention({.sequences = mixed,
                     .window = 100,
                     .soft_cap = 5.0f,
                     .batch_invariant = invariant,
                     .has_sinks = true});
  }
}

// Small enough for compute-sanitizer.
CUDA_TEST(small_attention) {
  const std::vector<Sequence> mixed = {{1, 40}, {5, 5}, {1, 600}, {70, 200}, {1, 16}};
  for (const DType kv_dtype : {DType::kBFloat16, DType::kFloat8E4M3}) {
    check_attention({.sequences = mixed, .kv_dtype = kv_dtype});
    check_attention({.sequences = mixed, .kv_dtype = kv_dtype, .head_dim = 64, .window = 50});
  }
}

CUDA_TEST(mixed_prefill_and_decode) {
  std::vector<Sequence> mixed = kDecodes;
  mixed.insert(mixed.begin() + 3, kPrefills.begin(), kPrefills.end());
  for (const DType kv_dtype : {DType::kBFloat16, DType::kFloat8E4M3}) {
    check_attention({.sequences = mixed, .kv_dtype = kv_dtype, .kv_heads = 8});
    check_attention({.sequences = mixed, .kv_dtype = kv_dtype, .head_dim = 64, .window = 200});
  }
}

}  // namespace
}  // namespace octavo::cuda::testing
