// The small operations between linear layers on the CPU, at the sizes of SmolLM2-135M: their share
// of a step is what matters, so the column is microseconds; GB/s counts every float read or
// written.
//   bench_norm --benchmark_filter=silu
#include <benchmark/benchmark.h>

#include <string>
#include <vector>

#include "backend/backend.h"

namespace octavo {
namespace {

constexpr int64_t kHidden = 576, kIntermediate = 1536, kQHeads = 9, kKVHeads = 3, kHeadDim = 64;

struct Tensors {
  explicit Tensors(int64_t rows) : rows(rows) {}

  TensorView make(int64_t cols) {
    storage.emplace_back(rows * cols, 0.5f);
    return TensorView::matrix(storage.back().data(), DType::kFloat32, rows, cols);
  }

  int64_t rows;
  std::vector<std::vector<float>> storage;
};

void count_floats(benchmark::State& state, int64_t floats_per_row) {
  const double bytes = 4e-9 * static_cast<double>(floats_per_row * state.range(0));
  state.counters["GB/s"] = benchmark::Counter(bytes, benchmark::Counter::kIsIterationInvariantRate);
}

void rms_norm(benchmark::State& state) {
  const auto backend = create_backend({});
  Tensors tensors(state.range(0));
  const TensorView x = tensors.make(kHidden), out = tensors.make(kHidden);
  const std::vector<float> weight(kHidden, 1.0f);
  for (auto _ : state) backend->rms_norm(x, weight.data(), 1e-5f, out);
  count_floats(state, 2 * kHidden);
}

void add_rms_norm(benchmark::State& state) {
  const auto backend = create_backend({});
  Tensors tensors(state.range(0));
  const TensorView residual = tensors.make(kHidden), delta = tensors.make(kHidden);
  const TensorView out = tensors.make(kHidden);
  const std::vector<float> weight(kHidden, 1.0f);
  for (float& x : tensors.storage[1]) x = 0.0f;
  for (auto _ : state) backend->add_rms_norm(residual, delta, weight.data(), 1e-5f, out);
  count_floats(state, 4 * kHidden);
}

void silu_mul(benchmark::State& state) {
  const auto backend = create_backend({});
  Tensors tensors(state.range(0));
  const TensorView gate_up = tensors.make(2 * kIntermediate), out = tensors.make(kIntermediate);
  for (auto _ : state) backend->silu_mul(gate_up, out);
  count_floats(state, 3 * kIntermediate);
}

void rope_and_cache(benchmark::State& state) {
  const auto backend = create_backend({});
  const int64_t rows = state.range(0), width = (kQHeads + 2 * kKVHeads) * kHeadDim;
  Tensors tensors(rows);
  const TensorView qkv = tensors.make(width);
  const auto cache =
      backend->create_kv_cache({1, kKVHeads, kHeadDim, 16, rows / 16 + 1, DType::kBFloat16});
  const std::vector<float> cos(rows * kHeadDim, 1.0f), sin(rows * kHeadDim, 0.0f);
  std::vector<int32_t> positions(rows);
  std::vector<int64_t> slots(rows);
  for (int64_t i = 0; i < rows; ++i) {
    positions[i] = static_cast<int32_t>(i);
    slots[i] = i;
  }
  ForwardInputs inputs;
  inputs.positions = positions.data();
  inputs.slot_mapping = slots.data();
  const AttentionParams params{0, kQHeads, kKVHeads, kHeadDim, 1.0f, 0.0f, 0};
  for (auto _ : state) {
    backend->rope_and_cache(qkv, {cos.data(), sin.data(), kHeadDim, false}, inputs, params, *cache);
  }
  count_floats(state, 2 * width);
}

void embed(benchmark::State& state) {
  const auto backend = create_backend({});
  constexpr int64_t kVocab = 49152;
  const auto table = backend->create_linear(kVocab, kHidden, false);
  const std::vector<float> rows(kVocab * kHidden, 0.5f);
  backend->load_rows(*table, 0, {rows.data(), DType::kFloat32, kVocab, kHidden});
  Tensors tensors(state.range(0));
  const TensorView out = tensors.make(kHidden);
  std::vector<int32_t> ids(state.range(0));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i * 7919 % kVocab);
  for (auto _ : state) backend->embed(*table, ids.data(), out);
  count_floats(state, kHidden);
}

#define OCTAVO_BENCH_ROWS(op) \
  BENCHMARK(op)->ArgName("rows")->UseRealTime()->Arg(1)->Arg(16)->Arg(128)->Arg(512)
OCTAVO_BENCH_ROWS(rms_norm);
OCTAVO_BENCH_ROWS(add_rms_norm);
OCTAVO_BENCH_ROWS(silu_mul);
OCTAVO_BENCH_ROWS(rope_and_cache);
OCTAVO_BENCH_ROWS(embed);

}  // namespace
}  // namespace octavo
