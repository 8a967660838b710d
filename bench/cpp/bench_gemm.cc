// Linear layers on the CPU: each weight type at M = 1 ... 512, beside what the memory and the
// arithmetic of this machine allow, measured first. The weights of one benchmark rotate through
// 96 MiB, so that few rows read memory as a decode step does.
//   bench_gemm --benchmark_filter=smollm2_gate_up/q4_1/amx
// Columns: GB/s of weights and its share of the read bandwidth, Gop/s and its share of the peak.
#include <benchmark/benchmark.h>

#include <map>
#include <random>
#include <string>

#include "backend/backend.h"
#include "cpu/kernels.h"
#include "roofline.h"

namespace octavo::cpu {
namespace {

struct Shape {
  const char* name;
  int64_t out_features, in_features;
};
constexpr Shape kShapes[] = {
    {"smollm2_qkv", 960, 576},        {"smollm2_output", 576, 576}, {"smollm2_gate_up", 3072, 576},
    {"smollm2_down", 576, 1536},      {"smollm2_head", 49152, 576}, {"llama1b_qkv", 3072, 2048},
    {"llama1b_gate_up", 16384, 2048}, {"llama1b_down", 2048, 8192},
};

struct WeightType {
  const char* name;
  DType kept;    // as BackendOptions::weight_dtype
  DType source;  // in the checkpoint
  Arithmetic arithmetic;
};
constexpr WeightType kTypes[] = {
    {"f32", DType::kFloat32, DType::kFloat32, Arithmetic::kFloat32},
    {"f16", DType::kFloat16, DType::kFloat16, Arithmetic::kFloat32},
    {"bf16", DType::kBFloat16, DType::kBFloat16, Arithmetic::kBFloat16},
    {"q8_0", DType::kBFloat16, DType::kQ8_0, Arithmetic::kInt8},
    {"q4_0", DType::kBFloat16, DType::kQ4_0, Arithmetic::kInt8},
    {"q4_1", DType::kBFloat16, DType::kQ4_1, Arithmetic::kInt8},
    {"q4_k", DType::kBFloat16, DType::kQ4_K, Arithmetic::kInt8},
    {"q5_k", DType::kBFloat16, DType::kQ5_K, Arithmetic::kInt8},
    {"q6_k", DType::kBFloat16, DType::kQ6_K, Arithmetic::kInt8},
};

struct Roof {
  double read_bytes;
  std::map<Arithmetic, double> ops;
};

// Quantised weights are widened on AMX for many rows; in batch-invariant mode for any.
struct Way {
  const char* name;
  Isa isa;
  bool batch_invariant = false;
};
constexpr Way kWays[] = {{"avx2", Isa::kAvx2},
                         {"avx512", Isa::kAvx512},
                         {"amx", Isa::kAmx},
                         {"amx_invariant", Isa::kAmx, true}};

Arithmetic arithmetic_of(const WeightType& type, const Way& way, int64_t num_rows) {
  const bool widens = way.isa == Isa::kAmx && type.arithmetic == Arithmetic::kInt8 &&
                      (way.batch_invariant || num_rows >= kernels_for(way.isa).min_widen_rows);
  return widens ? Arithmetic::kBFloat16 : type.arithmetic;
}

Roof measure_roof(Isa isa) {
  static ThreadPool pool(0);
  static const double read_bytes = peak_read_bytes(pool);
  Roof r{read_bytes, {}};
  for (const Arithmetic a : {Arithmetic::kFloat32, Arithmetic::kBFloat16, Arithmetic::kInt8}) {
    r.ops[a] = peak_ops(pool, isa, a);
  }
  return r;
}

const Roof& roof(Isa isa) {
  static std::map<Isa, Roof> measured;
  const auto [it, is_new] = measured.try_emplace(isa);
  if (is_new) it->second = measure_roof(isa);
  return it->second;
}

// Bits that are a fair weight in every type: small halves everywhere.
std::vector<uint16_t> checkpoint_bits(const WeightType& type, int64_t num_elements) {
  std::mt19937 generator(1);
  std::vector<uint16_t> bits(dtype_bytes(type.source, num_elements) / 2);
  for (uint16_t& b : bits) b = static_cast<uint16_t>(0x2000 + (generator() & 0x8FFF));
  return bits;
}

// Enough copies of one weight that they do not fit a cache.
struct Weights {
  Weights(const Shape& shape, const WeightType& type, const Way& way) {
    const int64_t in = shape.in_features, out = shape.out_features;
    BackendOptions options;
    options.cpu_isa = isa_name(way.isa);
    options.batch_invariant = way.batch_invariant;
    options.weight_dtype = type.kept;
    options.keep_quantized = true;
    backend = create_backend(options);
    const auto bits = checkpoint_bits(type, out * in);
    for (int64_t total_bytes = 0; total_bytes < int64_t{96} << 20;) {
      copies.push_back(backend->create_linear(out, in, false));
      backend->load_rows(*copies.back(), 0, {bits.data(), type.source, out, in});
      total_bytes += copies.back()->size_bytes();
    }
  }
  std::unique_ptr<Backend> backend;
  std::vector<std::unique_ptr<LinearWeight>> copies;
};

// Those of the last benchmark are kept, because packing takes longer than measuring.
Weights& weights_of(const std::string& name, const Shape& shape, const WeightType& type,
                    const Way& way) {
  static std::string kept_name;
  static std::unique_ptr<Weights> kept;
  if (name != kept_name) {
    kept.reset();
    kept = std::make_unique<Weights>(shape, type, way);
    kept_name = name;
  }
  return *kept;
}

void linear(benchmark::State& state, const std::string& name, const Shape& shape,
            const WeightType& type, const Way& way) {
  const int64_t num_rows = state.range(0), in = shape.in_features, out = shape.out_features;
  if (in % dtype_info(type.source).block_elements != 0) {
    state.SkipWithError("the type has no blocks of this size");
    return;
  }
  auto& [backend, weights] = weights_of(name, shape, type, way);
  std::vector<float> x(num_rows * in, 0.5f), y(num_rows * out);
  const auto x_view = TensorView::matrix(x.data(), DType::kFloat32, num_rows, in);
  const auto y_view = TensorView::matrix(y.data(), DType::kFloat32, num_rows, out);
  size_t next = 0;
  for (auto _ : state) {
    backend->linear(*weights[next], x_view, y_view);
    next = (next + 1) % weights.size();
  }
  const double bytes = static_cast<double>(weights[0]->size_bytes());
  const double ops = 2.0 * static_cast<double>(num_rows * in * out);
  using benchmark::Counter;
  state.counters["GB/s"] = Counter(bytes * 1e-9, Counter::kIsIterationInvariantRate);
  state.counters["of_read"] =
      Counter(bytes / roof(way.isa).read_bytes, Counter::kIsIterationInvariantRate);
  state.counters["Gop/s"] = Counter(ops * 1e-9, Counter::kIsIterationInvariantRate);
  const double peak = roof(way.isa).ops.at(arithmetic_of(type, way, num_rows));
  state.counters["of_peak"] = Counter(ops / peak, Counter::kIsIterationInvariantRate);
}

void add_context(Isa isa) {
  const std::string name(isa_name(isa));
  const auto add = [&](const char* unit, double value) {
    benchmark::AddCustomContext(name + unit, std::to_string(value * 1e-9));
  };
  add("_fma_Gop/s", roof(isa).ops.at(Arithmetic::kFloat32));
  add("_bf16_Gop/s", roof(isa).ops.at(Arithmetic::kBFloat16));
  add("_int8_Gop/s", roof(isa).ops.at(Arithmetic::kInt8));
}

[[maybe_unused]] const bool kRegistered = [] {
  for (const Shape& shape : kShapes) {
    for (const WeightType& type : kTypes) {
      for (const Way& way : kWays) {
        if (!is_supported(way.isa)) continue;
        if (way.batch_invariant && type.arithmetic != Arithmetic::kInt8) continue;
        const std::string name = std::string(shape.name) + "/" + type.name + "/" + way.name;
        auto* b = benchmark::RegisterBenchmark(
            name.c_str(), [&shape, &type, name, &way](benchmark::State& state) {
              linear(state, name, shape, type, way);
            });
        b->ArgName("M")->UseRealTime();
        for (const int64_t rows : {1, 2, 4, 8, 16, 24, 32, 64, 128, 512}) b->Arg(rows);
      }
    }
  }
  for (const Way& way : kWays) {
    if (is_supported(way.isa) && !way.batch_invariant) add_context(way.isa);
  }
  benchmark::AddCustomContext("read_GB/s", std::to_string(roof(Isa::kAvx2).read_bytes * 1e-9));
  return true;
}();

}  // namespace
}  // namespace octavo::cpu
