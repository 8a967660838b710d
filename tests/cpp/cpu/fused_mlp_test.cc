// A fused MLP against its operations one after the other, to the last bit. Compiled for AVX2, so
// that activations in bfloat16 are met on any processor: by the tile kernels over plain C++ tiles.
#include "cpu/fused_mlp.h"

#include <string>
#include <vector>

#include "cpu/cpu_testing.h"
#include "cpu/tile_table.h"

namespace octavo::cpu {
namespace {

struct Table {
  std::string name;
  Kernels kernels;
};

std::vector<Table> tables() {
  std::vector<Table> tables;
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx512, Isa::kAmx}) {
    if (is_supported(isa)) tables.push_back({std::string(isa_name(isa)), kernels_for(isa)});
  }
  tables.push_back({"tiles", plain_tile_kernels()});
  return tables;
}

// What a projection is loaded from.
struct Source {
  DType dtype;
  DType kept = DType::kBFloat16;  // plain types only
};
constexpr Source kSources[] = {{DType::kFloat32, DType::kFloat32},
                               {DType::kFloat32, DType::kFloat16},
                               {DType::kFloat32},
                               {DType::kQ8_0},
                               {DType::kQ4_0},
                               {DType::kQ4_1},
                               {DType::kQ5_K},
                               {DType::kQ6_K}};

class Mlp {
 public:
  Mlp(const Kernels& kernels, int64_t hidden, int64_t inner, bool has_bias, int num_threads = 2)
      : inner_(inner),
        kernels_(kernels),
        pool_(num_threads),
        linear_(kernels, pool_),
        fused_(kernels, pool_, linear_),
        gate_up_(2 * inner, hidden, has_bias),
        down_(hidden, inner, has_bias) {
    if (!has_bias) return;
    gate_up_.load_bias(0, float_view(random_floats(2 * inner, 5), 1, 2 * inner));
    down_.load_bias(0, float_view(random_floats(hidden, 6), 1, hidden));
  }

  void load_gate_up(int64_t row_begin, int64_t rows, Source source) {
    load(gate_up_, row_begin, rows, source);
  }
  void load_down(Source source) { load(down_, 0, down_.out_features(), source); }

  struct Result {
    bool is_fused;
    std::vector<float> out;
  };
  // gated [T, inner].
  Result gated(bool fused, std::vector<float> x, FusedMlp::Function function) {
    const int64_t rows = std::ssize(x) / gate_up_.in_features();
    std::vector<float> gated(rows * inner_, -1.0f);
    const TensorView in = matrix(x, rows, gate_up_.in_features());
    const TensorView out = matrix(gated, rows, inner_);
    if (fused) {
      const bool done = fused_.multiply_gate_up(gate_up_, function, in, out);
      return {done, gated};
    }
    std::vector<float> both(rows * 2 * inner_);
    linear_.run(gate_up_, in, matrix(both, rows, 2 * inner_));
    for (int64_t r = 0; r < rows; ++r) {
      const float* gate = &both[r * 2 * inner_];
      function(gate, gate + inner_, inner_, &gated[r * inner_]);
    }
    return {false, gated};
  }
  // [T, hidden].
  Result run(bool fused, std::vector<float> x, FusedMlp::Function function) {
    const int64_t hidden = down_.out_features(), rows = std::ssize(x) / hidden;
    std::vector<float> rows_out(rows * hidden, -1.0f), scratch(rows * inner_);
    const TensorView out = matrix(rows_out, rows, hidden);
    if (fused) {
      const bool done = fused_.run(gate_up_, function, down_, matrix(x, rows, hidden),
                                   matrix(scratch, rows, inner_), out);
      return {done, rows_out};
    }
    scratch = gated(false, x, function).out;
    linear_.run(down_, matrix(scratch, rows, inner_), out);
    return {false, rows_out};
  }

 private:
  void load(PackedWeight& weight, int64_t row_begin, int64_t rows, Source source) {
    const WeightPolicy policy{source.kept, true, std::nullopt};
    const int64_t cols = weight.in_features(), count = rows * cols;
    const auto seed = static_cast<uint32_t>(row_begin + cols);
    if (source.dtype == DType::kFloat32) {
      const auto w = random_floats(count, seed, 0.1f);
      weight.load_rows({kernels_, policy, arena_}, row_begin, float_view(w, rows, cols));
    } else {
      const auto w = random_bits(source.dtype, count, seed);
      weight.load_rows({kernels_, policy, arena_}, row_begin, {w.data(), source.dtype, rows, cols});
    }
  }

  const int64_t inner_;
  const Kernels& kernels_;
  WeightArena arena_;
  ThreadPool pool_;
  Linear linear_;
  FusedMlp fused_;
  PackedWeight gate_up_, down_;
};

constexpr int64_t kHidden = 256, kInner = 512;

std::string name_of(const Source& s) {
  return std::string(dtype_info(s.dtype).name) + "/" + std::string(dtype_info(s.kept).name);
}

// Of every two formats, with row counts around those of a tile and of a chunk.
TEST(FusedMlpTest, GivesTheBitsOfTheSeparateOperations) {
  for (const auto& [table, kernels] : tables()) {
    for (const Source& gate : kSources) {
      for (const Source& up : kSources) {
        const bool has_bias = gate.dtype == up.dtype;
        Mlp mlp(kernels, kHidden, kInner, has_bias);
        mlp.load_gate_up(0, kInner, gate);
        mlp.load_gate_up(kInner, kInner, up);
        mlp.load_down(up);
        for (const int64_t rows : {1, 3, 17, 130}) {
          if (rows == 130 && !has_bias && up.dtype != DType::kQ5_K) continue;  // takes long
          SCOPED_TRACE(table + " " + name_of(gate) + " " + name_of(up) + " " +
                       std::to_string(rows) + " rows");
          const auto x = random_floats(rows * kHidden, 1);
          const auto gated = mlp.gated(true, x, kernels.silu_mul);
          ASSERT_TRUE(gated.is_fused);
          for (const float v : gated.out) ASSERT_TRUE(std::isfinite(v));
          ASSERT_TRUE(same_bits(gated.out, mlp.gated(false, x, kernels.silu_mul).out));
          const auto out = mlp.run(true, x, kernels.gelu_tanh_mul);
          ASSERT_TRUE(out.is_fused);
          ASSERT_TRUE(same_bits(out.out, mlp.run(false, x, kernels.gelu_tanh_mul).out));
        }
      }
    }
  }
}

// Widths of tasks from one block of features to all.
TEST(FusedMlpTest, ResultsDoNotDependOnTheNumberOfThreads) {
  for (const auto& [table, kernels] : tables()) {
    std::vector<float> first;
    const auto x = random_floats(150 * kHidden, 1);
    for (const int num_threads : {1, 2, 3, 7, 16}) {
      Mlp mlp(kernels, kHidden, kInner, true, num_threads);
      mlp.load_gate_up(0, 2 * kInner, {DType::kQ4_1});
      mlp.load_down({DType::kFloat32});
      const auto out = mlp.run(true, x, kernels.silu_mul);
      EXPECT_TRUE(out.is_fused);
      if (first.empty()) first = mlp.run(false, x, kernels.silu_mul).out;
      EXPECT_TRUE(same_bits(out.out, first)) << table << " " << num_threads << " threads";
    }
  }
}

struct Cut {
  const char* what;
  int64_t inner;
  std::vector<int64_t> rows;  // of the tensors of gate_up
  bool fuses_gate_up, fuses_down;
};

TEST(FusedMlpTest, TakesWhateverPanelsGateAndUpShare) {
  const Cut cuts[] = {
      {"one tensor", 64, {128}, true, true},
      {"several tensors", 96, {32, 64, 96}, true, true},
      {"a part of a panel at the end", 40, {40, 40}, true, false},
      {"a part of a panel at the same place", 70, {30, 40, 30, 40}, true, false},
      {"half a block at a border", 96, {48, 48, 96}, true, false},
      {"up begins inside a panel", 24, {48}, false, false},
      {"a border of gate inside a panel of up", 70, {30, 40, 70}, false, false},
      {"a border of up inside a panel of gate", 70, {70, 30, 40}, false, false},
  };
  for (const auto& [table, kernels] : tables()) {
    for (const Cut& cut : cuts) {
      for (const Source& source :
           {Source{DType::kFloat32}, Source{DType::kFloat32, DType::kFloat32}}) {
        SCOPED_TRACE(table + " " + cut.what + " " + name_of(source));
        Mlp mlp(kernels, kHidden, cut.inner, true);
        int64_t begin = 0;
        for (const int64_t rows : cut.rows) {
          mlp.load_gate_up(begin, rows, source);
          begin += rows;
        }
        mlp.load_down(source);
        const auto x = random_floats(20 * kHidden, 1);
        const auto gated = mlp.gated(true, x, kernels.silu_mul);
        EXPECT_EQ(gated.is_fused, cut.fuses_gate_up);
        if (gated.is_fused) {
          EXPECT_TRUE(same_bits(gated.out, mlp.gated(false, x, kernels.silu_mul).out));
        }
        const auto out = mlp.run(true, x, kernels.silu_mul);
        const bool takes_floats = source.kept == DType::kFloat32 || table == "avx2";
        EXPECT_EQ(out.is_fused, takes_floats ? cut.fuses_gate_up : cut.fuses_down);
        if (out.is_fused) {
          EXPECT_TRUE(same_bits(out.out, mlp.run(false, x, kernels.silu_mul).out));
        }
      }
    }
  }
}

class GatedBackendTest : public EachIsa {};
OCTAVO_TEST_EACH_ISA(GatedBackendTest);

// With panels in common and without, by either function.
TEST_P(GatedBackendTest, MatchesTheOperationsThatItStandsFor) {
  const auto backend = create_backend(backend_options(isa(), DType::kBFloat16));
  for (const int64_t inner : {64, 24}) {
    constexpr int64_t kRows = 19, kWidth = 32;
    const auto gate_up =
        make_linear(*backend, random_floats(2 * inner * kWidth, 1), 2 * inner, kWidth);
    const auto down = make_linear(*backend, random_floats(inner * kWidth, 2), kWidth, inner);
    auto x = random_floats(kRows * kWidth, 3);
    const TensorView in = matrix(x, kRows, kWidth);
    for (const GatedFunction function : {GatedFunction::kSilu, GatedFunction::kGeluTanh}) {
      std::vector<float> both(kRows * 2 * inner), gated(kRows * inner), out(kRows * kWidth);
      backend->linear(*gate_up, in, matrix(both, kRows, 2 * inner));
      if (function == GatedFunction::kSilu) {
        backend->silu_mul(matrix(both, kRows, 2 * inner), matrix(gated, kRows, inner));
        std::vector<float> fused(kRows * inner);
        backend->gated_linear(*gate_up, in, matrix(both, kRows, 2 * inner),
                              matrix(fused, kRows, inner));
        EXPECT_TRUE(same_bits(fused, gated));
      } else {
        backend->gelu_tanh_mul(matrix(both, kRows, 2 * inner), matrix(gated, kRows, inner));
      }
      backend->linear(*down, matrix(gated, kRows, inner), matrix(out, kRows, kWidth));
      std::vector<float> fused(kRows * kWidth);
      backend->gated_mlp({*gate_up, *down, function}, in,
                         {matrix(both, kRows, 2 * inner), matrix(gated, kRows, inner)},
                         matrix(fused, kRows, kWidth));
      EXPECT_TRUE(same_bits(fused, out));
    }
  }
}

}  // namespace
}  // namespace octavo::cpu
