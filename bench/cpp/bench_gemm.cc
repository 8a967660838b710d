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

constexpr Isa kIsas[] = {Isa::kAvx2, Isa::kAvx512, Isa::kAmx};

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
  Weights(const Shape& shape, const WeightType& type, Isa isa) {
    const int64_t in = shape.in_features, out = shape.out_features;
    BackendOptions options;
    options.cpu_isa = isa_name(isa);
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
Weights& weights_of(const std::string& name, const Shape& shape, const WeightType& type, Isa isa) {
  static std::string kept_name;
  static std::unique_ptr<Weights> kept;
  if (name != kept_name) {
    kept.reset();
    kept = std::make_unique<Weights>(shape, type, isa);
    kept_name = name;
  }
  return *kept;
}

void linear(benchmark::State& state, const std::string& name, const Shape& shape,
            const WeightType& type, Isa isa) {
  const int64_t num_rows = state.range(0), in = shape.in_features, out = shape.out_features;
  if (in % dtype_info(type.source).block_elements != 0) {
    state.SkipWithError("the type has no blocks of this size");
    return;
  }
  auto& [backend, weights] = weights_of(name, shape, type, isa);
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
      Counter(bytes / roof(isa).read_bytes, Counter::kIsIterationInvariantRate);
  state.counters["Gop/s"] = Counter(ops * 1e-9, Counter::kIsIterationInvariantRate);
  state.counters["of_peak"] =
      Counter(ops / roof(isa).ops.at(type.arithmetic), Counter::kIsIterationInvariantRate);
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
      for (const Isa isa : kIsas) {
        if (!is_supported(isa)) continue;
        const std::string name =
            std::string(shape.name) + "/" + type.name + "/" + std::string(isa_name(isa));
        auto* b = benchmark::RegisterBenchmark(name.c_str(),
                                               [&shape, &type, name, isa](benchmark::State& state) {
                                                 linear(state, name, shape, type, isa);
                                               });
        b->ArgName("M")->UseRealTime();
        for (const int64_t rows : {1, 2, 4, 8, 16, 32, 128, 512}) b->Arg(rows);
      }
    }
  }
  for (const Isa isa : kIsas) {
    if (is_supported(isa)) add_context(isa);
  }
  benchmark::AddCustomContext("read_GB/s", std::to_string(roof(Isa::kAvx2).read_bytes * 1e-9));
  return true;
}();

}  // namespace
}  // namespace octavo::cpu
