#include <cmath>

#include "base/errors.h"
#include "cpu/paged_sequence.h"

namespace octavo::cpu {
namespace {

class AttentionTest : public EachIsa {
 protected:
  static std::unique_ptr<Backend> backend(int32_t num_threads = 2) {
    return create_backend(backend_options(isa(), DType::kFloat32, num_threads));
  }
  // AMX rounds queries and probabilities to bfloat16 against a bfloat16 cache: the probabilities by
  // 2^-9 at most, and values reach 7.
  static bool has_tiles(DType dtype) {
    return GetParam() == Isa::kAmx && dtype == DType::kBFloat16;
  }
  static DType query_type(DType dtype, const AttentionShape& shape) {
    return has_tiles(dtype) ? tile_query_type(shape) : DType::kFloat32;
  }
  static double tolerance(DType dtype) { return has_tiles(dtype) ? 0.014 : 1.5e-5; }
};
OCTAVO_TEST_EACH_ISA(AttentionTest);

constexpr DType kCacheTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kInt8};

const AttentionShape kShapes[] = {
    {9, 3, 64, 16},  // SmolLM2
    {4, 4, 48, 16},  // no grouping
    {4, 1, 80, 16},  // four and nine rows in one decode
    {9, 1, 32, 16},
    {4, 1, 12, 16},         // a head smaller than a vector
    {6, 2, 80, 32},         // head_dim past a tile
    {8, 1, 128, 8},         // blocks smaller than a vector
    {2, 1, 33, 5},          // nothing divides anything
    {2, 2, 256, 128},       // Gemma-sized heads, blocks larger than a tile
    {4, 2, 16, 16, 30.0f},  // soft cap
    {4, 2, 32, 16, 0.0f, 10},
    {3, 1, 64, 16, 20.0f, 100},
    {6, 2, 32, 16, 0.0f, 40, {0.5f, -3.0f, 4.0f, 9.0f, -20.0f, 1.0f}},  // sinks
};

// A prefill, a chunk in the middle of a prompt, decodes at several depths: all in one batch.
const std::vector<int64_t> kLengths = {1, 7, 70, 140, 201, 64, 65};
const std::vector<Chunk> kRagged = {{0, 0, 1},   {1, 0, 7},  {2, 0, 70}, {3, 50, 90},
                                    {4, 200, 1}, {5, 63, 1}, {6, 60, 5}};

std::vector<Chunk> prefixes(const std::vector<Chunk>& chunks) {
  std::vector<Chunk> result;
  for (const Chunk& c : chunks) {
    if (c.computed > 0) result.push_back({c.sequence, 0, c.computed});
  }
  return result;
}

TEST_P(AttentionTest, MatchesADoublePrecisionTwin) {
  const auto b = backend();
  for (const AttentionShape& shape : kShapes) {
    for (const DType dtype : kCacheTypes) {
      const PagedSequences sequences(shape, kLengths, 1);
      const auto cache = b->create_kv_cache(sequences.cache_spec(dtype));
      sequences.run(*b, *cache, prefixes(kRagged));
      const auto out = sequences.run(*b, *cache, kRagged);
      const float* row = out.data();
      for (const Chunk& c : kRagged) {
        for (int64_t p = c.computed; p < c.computed + c.scheduled; ++p) {
          for (int64_t h = 0; h < shape.num_q_heads; ++h, row += shape.head_dim) {
            const auto expected = sequences.twin(c.sequence, p, h, dtype, query_type(dtype, shape));
            for (int64_t d = 0; d < shape.head_dim; ++d) {
              ASSERT_NEAR(row[d], expected[d], tolerance(dtype))
                  << "head_dim " << shape.head_dim << " sequence " << c.sequence << " position "
                  << p;
            }
          }
        }
      }
    }
  }
}

TEST_P(AttentionTest, RowsOfTinyNumbersDoNotDependOnChunks) {
  for (const AttentionShape& shape : kTinyShapes) {
    for (const float deviation : kTinyDeviations) {
      constexpr int64_t kLength = 100;
      const PagedSequences sequences(shape, {kLength}, 5, deviation);
      const auto b = backend();
      const auto cache = b->create_kv_cache(sequences.cache_spec(DType::kBFloat16));
      const auto whole = sequences.run(*b, *cache, {{0, 0, kLength}});
      for (int64_t p = 0; p < kLength; ++p) {
        const auto begin = whole.begin() + p * shape.out_width();
        ASSERT_TRUE(
            same_bits(sequences.run(*b, *cache, {{0, p, 1}}), {begin, begin + shape.out_width()}))
            << shape.num_q_heads << " heads of " << shape.head_dim << " position " << p
            << " deviation " << deviation;
      }
    }
  }
}

// However a sequence is cut into steps and whatever runs beside it, its rows are the same bits.
TEST_P(AttentionTest, RowsDoNotDependOnChunksOrNeighbours) {
  for (const AttentionShape& shape : kShapes) {
    constexpr int64_t kLength = 150;
    const PagedSequences sequences(shape, {kLength, 90, 33}, 5);
    const DType dtype = shape.head_dim == 64 ? DType::kInt8 : DType::kBFloat16;
    const auto run = [&](int32_t threads, const std::vector<int64_t>& cuts, bool neighbours) {
      const auto b = backend(threads);
      const auto cache = b->create_kv_cache(sequences.cache_spec(dtype));
      std::vector<float> rows;
      for (size_t i = 0; i + 1 < cuts.size(); ++i) {
        std::vector<Chunk> chunks = {{0, cuts[i], cuts[i + 1] - cuts[i]}};
        if (neighbours) {
          chunks.insert(chunks.begin(), {1, 0, 90});
          chunks.push_back({2, 0, 33});
        }
        const auto out = sequences.run(*b, *cache, chunks);
        const auto begin = out.begin() + (neighbours ? 90 : 0) * shape.out_width();
        rows.insert(rows.end(), begin, begin + (cuts[i + 1] - cuts[i]) * shape.out_width());
      }
      return rows;
    };
    const auto whole = run(2, {0, kLength}, false);
    std::vector<int64_t> single(kLength + 1);
    std::iota(single.begin(), single.end(), 0);
    EXPECT_TRUE(same_bits(whole, run(1, {0, kLength}, false)));
    EXPECT_TRUE(same_bits(whole, run(2, {0, kLength}, true)));
    EXPECT_TRUE(same_bits(whole, run(2, single, false)));
    EXPECT_TRUE(same_bits(whole, run(1, {0, 1, 16, 17, 63, 64, 100, 129, kLength}, true)));
  }
}

// What an ended sequence left in its blocks is never seen, not even as 0 * NaN.
TEST_P(AttentionTest, StaleSlotsAreInvisible) {
  const auto b = backend();
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (const AttentionShape& shape : {AttentionShape{4, 2, 40, 16}, {4, 2, 48, 16}}) {
      const PagedSequences sequences(shape, {37}, 3);
      const auto fresh = b->create_kv_cache(sequences.cache_spec(dtype));
      const auto used = b->create_kv_cache(sequences.cache_spec(dtype));
      std::vector<float> poison(48 * shape.qkv_width(), NAN);
      std::vector<int32_t> positions(48);
      std::vector<int64_t> slots(48);
      std::iota(positions.begin(), positions.end(), 0);
      std::iota(slots.begin(), slots.end(), 0);
      ForwardInputs inputs;
      inputs.num_tokens = 48;
      inputs.num_seqs = 1;
      inputs.positions = positions.data();
      inputs.slot_mapping = slots.data();
      b->rope_and_cache(matrix(poison, 48, shape.qkv_width()), {}, inputs, sequences.params(),
                        *used);
      for (const Chunk& chunk : {Chunk{0, 0, 20}, {0, 20, 16}, {0, 36, 1}}) {
        const auto expected = sequences.run(*b, *fresh, {chunk});
        EXPECT_FALSE(std::isnan(expected[0]));
        EXPECT_TRUE(same_bits(sequences.run(*b, *used, {chunk}), expected))
            << "head_dim " << shape.head_dim << " from position " << chunk.computed;
      }
    }
  }
}

TEST_P(AttentionTest, LayersAreApart) {
  const auto b = backend();
  const AttentionShape shape{2, 1, 16, 16};
  const PagedSequences one(shape, {20}, 1), other(shape, {20}, 9);
  const auto cache = b->create_kv_cache(one.cache_spec(DType::kFloat32, 3));
  const auto expected = one.run(*b, *cache, {{0, 0, 20}}, {}, 1);
  other.run(*b, *cache, {{0, 0, 20}}, {}, 0);
  other.run(*b, *cache, {{0, 0, 20}}, {}, 2);
  EXPECT_TRUE(same_bits(expected, one.run(*b, *cache, {{0, 0, 20}}, {}, 1)));
  const auto last = one.run(*b, *cache, {{0, 19, 1}}, {}, 1);
  EXPECT_TRUE(same_bits(last, {expected.end() - shape.out_width(), expected.end()}));
}

TEST_P(AttentionTest, CacheRefusesTypesItCannotKeep) {
  const auto b = backend();
  EXPECT_THROW(b->create_kv_cache({1, 1, 16, 16, 4, DType::kQ8_0}), ConfigError);
}

// --- Rotary embedding ------------------------------------------------------------------------

struct RopeCase {
  int64_t head_dim, rotary_dim;
  bool interleaved;
};

TEST_P(AttentionTest, RopeRotatesQueriesAndKeys) {
  const auto b = backend();
  for (const RopeCase& c : {RopeCase{64, 64, false},
                            {64, 64, true},
                            {48, 20, false},
                            {48, 20, true},
                            {12, 12, false},
                            {12, 0, false}}) {
    constexpr int64_t kTokens = 21, kQ = 3, kKV = 1;
    const int64_t half = c.rotary_dim / 2, width = (kQ + 2 * kKV) * c.head_dim;
    std::vector<float> cos, sin;
    for (int64_t p = 0; p < 100; ++p) {
      for (int64_t i = 0; i < half; ++i) {
        const double angle = static_cast<double>(p) * std::pow(10000.0, -2.0 * i / c.rotary_dim);
        cos.push_back(static_cast<float>(std::cos(angle)));
        sin.push_back(static_cast<float>(std::sin(angle)));
      }
    }
    auto qkv = random_floats(kTokens * width, 1);
    const auto before = qkv;
    std::vector<int32_t> positions;
    std::vector<int64_t> slots;
    for (int64_t t = 0; t < kTokens; ++t) {
      positions.push_back(static_cast<int32_t>(t * 4));
      slots.push_back(t);
    }
    ForwardInputs inputs;
    inputs.num_tokens = kTokens;
    inputs.positions = positions.data();
    inputs.slot_mapping = slots.data();
    const auto cache = b->create_kv_cache({1, kKV, c.head_dim, 16, 2, DType::kFloat32});
    const AttentionParams params{0, kQ, kKV, c.head_dim, 1.0f, 0.0f, 0};
    b->rope_and_cache(matrix(qkv, kTokens, width),
                      {cos.data(), sin.data(), c.rotary_dim, c.interleaved}, inputs, params,
                      *cache);
    for (int64_t t = 0; t < kTokens; ++t) {
      for (int64_t h = 0; h < kQ + 2 * kKV; ++h) {
        const float* in = &before[t * width + h * c.head_dim];
        std::vector<double> expected(in, in + c.head_dim);
        for (int64_t i = 0; i < half && h < kQ + kKV; ++i) {
          const int64_t a = c.interleaved ? 2 * i : i, z = c.interleaved ? 2 * i + 1 : i + half;
          const double cosine = cos[positions[t] * half + i], sine = sin[positions[t] * half + i];
          expected[a] = in[a] * cosine - in[z] * sine;
          expected[z] = in[z] * cosine + in[a] * sine;
        }
        for (int64_t d = 0; d < c.head_dim; ++d) {
          ASSERT_NEAR(qkv[t * width + h * c.head_dim + d], expected[d], 1e-6);
        }
      }
    }
  }
}

}  // namespace
}  // namespace octavo::cpu
