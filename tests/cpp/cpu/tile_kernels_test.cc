// The tile kernels over plain C++ tiles, on any processor: layouts, shapes, remainders and the
// order of accumulation are those that AMX runs. Compiled for AVX2.
#include <cmath>

#include "cpu/cpu_testing.h"
#include "cpu/kv_memory.h"
#include "cpu/layer.h"
#include "cpu/paged_attention.h"
#include "cpu/paged_sequence.h"
#include "cpu/tile_table.h"

namespace octavo::cpu {
namespace {

std::vector<float> some_rows(const std::vector<float>& x, int64_t first, int64_t count,
                             int64_t width) {
  return {x.begin() + first * width, x.begin() + (first + count) * width};
}

struct Shape {
  int64_t rows, in, out;
};

TEST(TileKernelsTest, BFloat16MatchesADoublePrecisionTwin) {
  for (const Shape& s : {Shape{1, 1, 1},
                         {3, 48, 40},
                         {15, 33, 63},
                         {16, 64, 64},
                         {17, 96, 31},
                         {32, 40, 16},
                         {33, 576, 48},
                         {49, 65, 100},
                         {75, 32, 17}}) {
    const auto x = random_floats(s.rows * s.in, 1), w = random_floats(s.out * s.in, 2);
    const auto bias = random_floats(s.out, 77);
    const auto out = Layer(plain_tile_kernels(), float_view(w, s.out, s.in)).run(x);
    for (int64_t r = 0; r < s.rows; ++r) {
      for (int64_t c = 0; c < s.out; ++c) {
        double sum = bias[c], magnitude = std::abs(bias[c]);
        for (int64_t k = 0; k < s.in; ++k) {
          const double product =
              double{round_to_bfloat16(x[r * s.in + k])} * round_to_bfloat16(w[c * s.in + k]);
          sum += product;
          magnitude += std::abs(product);
        }
        ASSERT_NEAR(out[r * s.out + c], sum, 1e-6 * magnitude)
            << s.rows << "x" << s.in << "x" << s.out << " row " << r << " column " << c;
      }
    }
  }
}

// More panels than stay in L2 together, so that the groups of panels end in the middle.
TEST(TileKernelsTest, BFloat16RowsDoNotDependOnTheBatch) {
  constexpr int64_t kRows = 70, kIn = 2100, kOut = 1000;
  const auto x = random_floats(kRows * kIn, 1), w = random_floats(kOut * kIn, 2);
  Layer two(plain_tile_kernels(), float_view(w, kOut, kIn), 2);
  Layer one(plain_tile_kernels(), float_view(w, kOut, kIn), 1);
  const auto all = one.run(x);
  EXPECT_TRUE(same_bits(all, two.run(x)));
  for (const int64_t count : {1, 2, 15, 16, 17, 31, 33, 48}) {
    ASSERT_TRUE(same_bits(two.run(some_rows(x, 20, count, kIn)), some_rows(all, 20, count, kOut)))
        << count << " rows";
  }
}

// --- Attention -------------------------------------------------------------------------------

// The two operations of a backend that attention needs.
class Attention {
 public:
  explicit Attention(int num_threads = 1)
      : pool_(num_threads), attention_(plain_tile_kernels(), pool_) {}

  void rope_and_cache(TensorView qkv, const RopeTable& rope, const ForwardInputs& inputs,
                      const AttentionParams& params, KVCache& cache) {
    attention_.rope_and_cache(qkv, rope, inputs, params, dynamic_cast<KVMemory&>(cache));
  }
  void attention(TensorView qkv, const ForwardInputs& inputs, const AttentionParams& params,
                 const KVCache& cache, TensorView out) {
    attention_.run(qkv, inputs, params, dynamic_cast<const KVMemory&>(cache), out);
  }

 private:
  ThreadPool pool_;
  PagedAttention attention_;
};

const AttentionShape kShapes[] = {
    {9, 3, 64, 16},          // SmolLM2
    {4, 4, 48, 16},          // columns that are no pair of tiles
    {9, 3, 64, 64},          // values in one block
    {8, 1, 32, 48},          // values in one block or in two
    {4, 1, 64, 16},          // four rows in one decode
    {9, 1, 64, 16},          // nine
    {4, 1, 12, 16},          // a head smaller than a vector
    {6, 2, 80, 32},          // depth past a tile
    {8, 1, 128, 8},          // blocks smaller than a vector
    {2, 1, 33, 5},           // nothing divides anything
    {2, 2, 256, 128},        // blocks larger than a tile of keys
    {40, 2, 16, 16, 30.0f},  // soft cap; more than a tile of rows in one decode
    {4, 2, 32, 16, 0.0f, 10},
    {3, 1, 64, 16, 20.0f, 100},
    {6, 2, 32, 16, 0.0f, 40, {0.5f, -3.0f, 4.0f, 9.0f, -20.0f, 1.0f}},  // sinks
};

TEST(TileKernelsTest, AttentionMatchesADoublePrecisionTwin) {
  for (const AttentionShape& shape : kShapes) {
    const PagedSequences sequences(shape, {1, 70, 140, 201}, 1);
    Attention engine;
    KVMemory cache(sequences.cache_spec(DType::kBFloat16));
    sequences.run(engine, cache, {{2, 0, 50}, {3, 0, 200}});
    const std::vector<Chunk> chunks = {{0, 0, 1}, {1, 0, 70}, {2, 50, 90}, {3, 200, 1}};
    const auto out = sequences.run(engine, cache, chunks);
    const float* row = out.data();
    for (const Chunk& c : chunks) {
      for (int64_t p = c.computed; p < c.computed + c.scheduled; ++p) {
        for (int64_t h = 0; h < shape.num_q_heads; ++h, row += shape.head_dim) {
          const auto expected =
              sequences.twin(c.sequence, p, h, DType::kBFloat16, tile_query_type(shape));
          for (int64_t d = 0; d < shape.head_dim; ++d) {
            // Probabilities are rounded by 2^-9 at most; values reach 7.
            ASSERT_NEAR(row[d], expected[d], 0.014)
                << "head_dim " << shape.head_dim << " position " << p << " dimension " << d;
          }
        }
      }
    }
  }
}

// Runs 150 tokens whole, one at a time and in chunks, beside a sequence of 40.
void expect_rows_independent(const AttentionShape& shape, float deviation) {
  constexpr int64_t kLength = 150;
  const PagedSequences sequences(shape, {kLength, 40}, 5, deviation);
  const auto run = [&](int threads, const std::vector<int64_t>& cuts) {
    Attention engine(threads);
    KVMemory cache(sequences.cache_spec(DType::kBFloat16));
    std::vector<float> rows;
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      const int64_t count = cuts[i + 1] - cuts[i];
      const auto out = sequences.run(engine, cache, {{1, 0, 40}, {0, cuts[i], count}});
      rows.insert(rows.end(), out.end() - count * shape.out_width(), out.end());
    }
    return rows;
  };
  std::vector<int64_t> single(kLength + 1);
  std::iota(single.begin(), single.end(), 0);
  const auto whole = run(1, {0, kLength});
  EXPECT_TRUE(same_bits(whole, run(1, single)));
  EXPECT_TRUE(same_bits(whole, run(2, {0, 1, 16, 17, 63, 64, 100, 129, kLength})));
}

TEST(TileKernelsTest, AttentionRowsDoNotDependOnChunksOrNeighbours) {
  for (const AttentionShape& shape : kShapes) expect_rows_independent(shape, 1.5f);
}

TEST(TileKernelsTest, AttentionRowsOfTinyNumbersDoNotDependOnChunks) {
  for (const AttentionShape& shape : kTinyShapes) {
    for (const float deviation : kTinyDeviations) {
      SCOPED_TRACE(testing::Message() << shape.num_q_heads << " heads of " << shape.head_dim
                                      << ", deviation " << deviation);
      expect_rows_independent(shape, deviation);
    }
  }
}

TEST(TileKernelsTest, AttentionLeavesTheFloatingPointModeAsItWas) {
  const unsigned before = _mm_getcsr();
  const PagedSequences sequences(kTinyShapes[0], {20}, 5);
  Attention engine;
  KVMemory cache(sequences.cache_spec(DType::kBFloat16));
  sequences.run(engine, cache, {{0, 0, 20}});
  const unsigned mode = 0xFFC0;  // without the flags of what has happened
  EXPECT_EQ(_mm_getcsr() & mode, before & mode);
}

// What an ended sequence left in its blocks is never seen, not even as 0 * NaN.
TEST(TileKernelsTest, AttentionDoesNotSeeStaleSlots) {
  for (const AttentionShape& shape : {AttentionShape{4, 2, 48, 16},
                                      {4, 2, 64, 32},
                                      {9, 1, 32, 64},
                                      {2, 2, 128, 48},
                                      {4, 2, 40, 16}}) {
    const PagedSequences sequences(shape, {101}, 3);
    Attention engine;
    const KVCacheSpec spec = sequences.cache_spec(DType::kBFloat16);
    KVMemory fresh(spec), used(spec);
    const std::vector<float> bad(shape.head_dim, NAN);
    for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
      for (int64_t slot = 0; slot < spec.num_blocks * spec.block_size; ++slot) {
        plain_tile_kernels().write_kv[static_cast<int>(KVFormat::kBFloat16)](
            used.head(0, head), slot, bad.data(), bad.data());
      }
    }
    for (const Chunk& chunk : {Chunk{0, 0, 20}, {0, 20, 17}, {0, 37, 1}, {0, 38, 63}}) {
      const auto expected = sequences.run(engine, fresh, {chunk});
      EXPECT_FALSE(std::isnan(expected[0]));
      EXPECT_TRUE(same_bits(sequences.run(engine, used, {chunk}), expected))
          << "head_dim " << shape.head_dim << " from position " << chunk.computed;
    }
  }
}

TEST(TileKernelsTest, HalvesOfPairsAreWrittenAlone) {
  std::vector<uint16_t> pairs(32, 7);
  store_every_other(pairs.data() + 1, set1(1.5f));
  for (size_t i = 0; i < pairs.size(); ++i) EXPECT_EQ(pairs[i], i % 2 == 0 ? 7 : 0x3FC0);
}

}  // namespace
}  // namespace octavo::cpu
