// The gated MLP of a layer on the CPU: fused, and as one operation after the other. The layers of
// one benchmark rotate through 96 MiB of weights, so that few rows read memory as a decode step
// does.
//   bench_gated_mlp --benchmark_filter='smollm2/bf16/avx2'
// `gate_up` ends with gate * up in float32, `mlp` with the product with `down`.
#include <benchmark/benchmark.h>

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "cpu/cpu_features.h"

namespace octavo::cpu {
namespace {

struct Shape {
  const char* name;
  int64_t hidden, inner;
};
constexpr Shape kShapes[] = {{"smollm2", 576, 1536}, {"llama1b", 2048, 8192}};

struct WeightType {
  const char* name;
  DType source;  // in the checkpoint
};
constexpr WeightType kTypes[] = {
    {"bf16", DType::kBFloat16}, {"q8_0", DType::kQ8_0}, {"q4_1", DType::kQ4_1}};

constexpr Isa kIsas[] = {Isa::kAvx2, Isa::kAvx512, Isa::kAmx};

struct Layer {
  std::unique_ptr<LinearWeight> gate_up, down;
};

// Enough copies of one layer that they do not fit a cache.
struct Layers {
  Layers(const Shape& shape, const WeightType& type, Isa isa) {
    BackendOptions options;
    options.cpu_isa = isa_name(isa);
    options.keep_quantized = true;
    backend = create_backend(options);
    for (int64_t total_bytes = 0; total_bytes < int64_t{96} << 20;) {
      layers.push_back({load(type, 2 * shape.inner, shape.hidden),  //
                        load(type, shape.hidden, shape.inner)});
      total_bytes += layers.back().gate_up->size_bytes() + layers.back().down->size_bytes();
    }
  }

  // Bits that are a fair weight in every type: small halves everywhere.
  std::unique_ptr<LinearWeight> load(const WeightType& type, int64_t out, int64_t in) {
    std::mt19937 generator(1);
    std::vector<uint16_t> bits(dtype_bytes(type.source, out * in) / 2);
    for (uint16_t& b : bits) b = static_cast<uint16_t>(0x2000 + (generator() & 0x8FFF));
    auto weight = backend->create_linear(out, in, false);
    backend->load_rows(*weight, 0, {bits.data(), type.source, out, in});
    return weight;
  }

  std::unique_ptr<Backend> backend;
  std::vector<Layer> layers;
};

// Those of the last benchmark are kept, because packing takes longer than measuring.
Layers& layers_of(const std::string& name, const Shape& shape, const WeightType& type, Isa isa) {
  static std::string kept_name;
  static std::unique_ptr<Layers> kept;
  if (name != kept_name) {
    kept.reset();
    kept = std::make_unique<Layers>(shape, type, isa);
    kept_name = name;
  }
  return *kept;
}

struct Way {
  const char* name;
  bool has_down;
  bool is_fused;
};
constexpr Way kWays[] = {{"gate_up/separate", false, false},
                         {"gate_up/fused", false, true},
                         {"mlp/separate", true, false},
                         {"mlp/fused", true, true}};

struct Matrix {
  Matrix(int64_t rows, int64_t cols, float value)
      : data(rows * cols, value),
        view(TensorView::matrix(data.data(), DType::kFloat32, rows, cols)) {}
  std::vector<float> data;
  TensorView view;
};

void gated_mlp(benchmark::State& state, const Shape& shape, Layers& layers, const Way& way) {
  const int64_t rows = state.range(0);
  Matrix x(rows, shape.hidden, 0.5f), gate_up(rows, 2 * shape.inner, 0.0f),
      gated(rows, shape.inner, 0.0f), out(rows, shape.hidden, 0.0f);
  Backend& backend = *layers.backend;
  size_t next = 0;
  for (auto _ : state) {
    const Layer& layer = layers.layers[next];
    next = (next + 1) % layers.layers.size();
    if (way.is_fused && way.has_down) {
      backend.gated_mlp({*layer.gate_up, *layer.down}, x.view, {gate_up.view, gated.view},
                        out.view);
    } else if (way.is_fused) {
      backend.gated_linear(*layer.gate_up, x.view, gate_up.view, gated.view);
    } else {
      backend.linear(*layer.gate_up, x.view, gate_up.view);
      backend.silu_mul(gate_up.view, gated.view);
      if (way.has_down) backend.linear(*layer.down, gated.view, out.view);
    }
  }
  const double weights = static_cast<double>((way.has_down ? 3 : 2) * shape.hidden * shape.inner);
  state.counters["Gop/s"] = benchmark::Counter(2e-9 * weights * static_cast<double>(rows),
                                               benchmark::Counter::kIsIterationInvariantRate);
}

[[maybe_unused]] const bool kRegistered = [] {
  for (const Shape& shape : kShapes) {
    for (const WeightType& type : kTypes) {
      for (const Isa isa : kIsas) {
        if (!is_supported(isa)) continue;
        const std::string layers =
            std::string(shape.name) + "/" + type.name + "/" + std::string(isa_name(isa));
        for (const int64_t rows : {1, 16, 128, 512}) {
          for (const Way& way : kWays) {
            const auto run = [&shape, &type, &way, layers, isa](benchmark::State& state) {
              gated_mlp(state, shape, layers_of(layers, shape, type, isa), way);
            };
            benchmark::RegisterBenchmark((layers + "/" + way.name).c_str(), run)
                ->ArgName("M")
                ->Arg(rows)
                ->UseRealTime();
          }
        }
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace octavo::cpu
