// Paged attention on the CPU, one layer: decode at several depths and batch sizes, prefill at
// several lengths, each cache type.
//   bench_attention --benchmark_filter=decode/smollm2/bfloat16/amx
// Columns: GB/s of keys and values read (decode's bound, and its share of the read bandwidth when
// the cache does not fit L3), Gop/s of the visible scores and sums (prefill's bound) and its share
// of the float32 peak.
#include <benchmark/benchmark.h>

#include <cmath>
#include <numeric>
#include <string>

#include "backend/backend.h"
#include "roofline.h"

namespace octavo::cpu {
namespace {

struct Heads {
  const char* name;
  int64_t num_q, num_kv, head_dim;

  int64_t width() const { return (num_q + 2 * num_kv) * head_dim; }
};
constexpr Heads kHeads[] = {{"smollm2", 9, 3, 64}, {"llama8b", 32, 8, 128}};
constexpr DType kTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kInt8};

// `num_seqs` sequences of `context` tokens, of which the last `query_len` are computed.
struct Batch {
  Batch(const Heads& heads, DType type, Isa isa, int64_t num_seqs, int64_t context,
        int64_t query_len) {
    BackendOptions options;
    options.cpu_isa = isa_name(isa);
    backend = create_backend(options);
    constexpr int64_t kBlock = 16;
    const int64_t blocks = (context + kBlock - 1) / kBlock, num_tokens = num_seqs * query_len;
    cache = backend->create_kv_cache(
        {1, heads.num_kv, heads.head_dim, kBlock, num_seqs * blocks, type});
    params = {0,
              heads.num_q,
              heads.num_kv,
              heads.head_dim,
              1.0f / std::sqrt(static_cast<float>(heads.head_dim)),
              0.0f,
              0};
    tables.resize(num_seqs * blocks);
    std::iota(tables.begin(), tables.end(), 0);
    for (int64_t s = 0; s <= num_seqs; ++s) starts.push_back(static_cast<int32_t>(s * query_len));
    lengths.assign(num_seqs, static_cast<int32_t>(context));
    qkv.assign(std::max(num_tokens, num_seqs * context) * heads.width(), 0.25f);
    out.resize(num_tokens * heads.num_q * heads.head_dim);
    fill_cache(heads, num_seqs, context, blocks * kBlock);
    inputs.num_tokens = num_tokens;
    inputs.num_seqs = num_seqs;
    inputs.block_table_stride = blocks;
    inputs.query_start_loc = starts.data();
    inputs.seq_lens = lengths.data();
    inputs.block_tables = tables.data();
    qkv_view = TensorView::matrix(qkv.data(), DType::kFloat32, num_tokens, heads.width());
    out_view =
        TensorView::matrix(out.data(), DType::kFloat32, num_tokens, heads.num_q * heads.head_dim);
  }

  void fill_cache(const Heads& heads, int64_t num_seqs, int64_t context, int64_t slots_per_seq) {
    std::vector<int32_t> positions(num_seqs * context);
    std::vector<int64_t> slots;
    for (int64_t s = 0; s < num_seqs; ++s) {
      for (int64_t p = 0; p < context; ++p) slots.push_back(s * slots_per_seq + p);
    }
    ForwardInputs fill;
    fill.positions = positions.data();
    fill.slot_mapping = slots.data();
    backend->rope_and_cache(
        TensorView::matrix(qkv.data(), DType::kFloat32, std::ssize(slots), heads.width()), {}, fill,
        params, *cache);
  }

  void run() { backend->attention(qkv_view, inputs, params, *cache, out_view); }

  std::unique_ptr<Backend> backend;
  std::unique_ptr<KVCache> cache;
  AttentionParams params;
  std::vector<int32_t> tables, starts, lengths;
  std::vector<float> qkv, out;
  ForwardInputs inputs;
  TensorView qkv_view, out_view;
};

struct Roof {
  double read_bytes, ops;
};
const Roof& roof() {
  static const Roof measured = [] {
    ThreadPool pool(0);
    return Roof{peak_read_bytes(pool), peak_ops(pool, choose_isa(""), Arithmetic::kFloat32)};
  }();
  return measured;
}

void attention(benchmark::State& state, const Heads& heads, DType type, Isa isa, bool is_decode) {
  const int64_t num_seqs = state.range(0), context = state.range(1);
  Batch batch(heads, type, isa, num_seqs, context, is_decode ? 1 : context);
  for (auto _ : state) batch.run();
  const double keys =
      static_cast<double>(num_seqs * (is_decode ? context : context * (context + 1) / 2));
  const double ops = 4.0 * keys * static_cast<double>(heads.num_q * heads.head_dim);
  const double bytes = static_cast<double>(2 * num_seqs * context * heads.num_kv *
                                           dtype_bytes(type, heads.head_dim));
  using benchmark::Counter;
  state.counters["GB/s"] = Counter(bytes * 1e-9, Counter::kIsIterationInvariantRate);
  state.counters["of_read"] =
      Counter(bytes / roof().read_bytes, Counter::kIsIterationInvariantRate);
  state.counters["Gop/s"] = Counter(ops * 1e-9, Counter::kIsIterationInvariantRate);
  state.counters["of_peak"] = Counter(ops / roof().ops, Counter::kIsIterationInvariantRate);
}

void register_shape(const Heads& heads, DType type, Isa isa) {
  const auto add = [&](const char* phase, bool is_decode) {
    const std::string name = std::string(phase) + "/" + heads.name + "/" +
                             std::string(dtype_info(type).name) + "/" + std::string(isa_name(isa));
    return benchmark::RegisterBenchmark(name.c_str(),
                                        [&heads, type, isa, is_decode](benchmark::State& state) {
                                          attention(state, heads, type, isa, is_decode);
                                        })
        ->ArgNames({"seqs", "context"})
        ->UseRealTime();
  };
  auto* decode = add("decode", true);
  for (const int64_t context : {128, 1024, 8192}) decode->Args({1, context});
  decode->Args({16, 512})->Args({32, 1024});
  auto* prefill = add("prefill", false);
  for (const int64_t context : {128, 512, 2048}) prefill->Args({1, context});
}

[[maybe_unused]] const bool kRegistered = [] {
  for (const Heads& heads : kHeads) {
    for (const DType type : kTypes) {
      for (const Isa isa : {Isa::kAvx2, Isa::kAvx512, Isa::kAmx}) {
        if (is_supported(isa)) register_shape(heads, type, isa);
      }
    }
  }
  benchmark::AddCustomContext("read_GB/s", std::to_string(roof().read_bytes * 1e-9));
  benchmark::AddCustomContext("fma_Gop/s", std::to_string(roof().ops * 1e-9));
  return true;
}();

}  // namespace
}  // namespace octavo::cpu
