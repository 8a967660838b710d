// Forward passes of a whole model on the CPU, of SmolLM2-135M's geometry with dummy weights: one
// prompt, or decodes behind 128 tokens each. For profiles:
//   perf record bench_forward --benchmark_filter=int4/avx2/prefill/512
#include <benchmark/benchmark.h>

#include <memory>
#include <string>
#include <vector>

#include "cpu/cpu_features.h"
#include "geometries.h"
#include "model/registry.h"

namespace octavo::cpu {
namespace {

constexpr Isa kIsas[] = {Isa::kAvx2, Isa::kAvx512, Isa::kAmx};
constexpr int64_t kBlockSize = 16;
constexpr int64_t kBlocksPerSequence = 40;
constexpr int64_t kMaxTokens = 512;
constexpr int64_t kMaxSequences = 32;

ModelConfig smollm2() {
  ModelConfig config = bench::smollm2_geometry();
  config.max_position_embeddings = kBlocksPerSequence * kBlockSize;
  return config;
}

struct Loaded {
  Loaded(const std::string& quantization, Isa isa) {
    BackendOptions options;
    options.cpu_isa = isa_name(isa);
    options.quantization = quantization == "bf16" ? "" : quantization;
    backend = create_backend(options);
    model = create_model(smollm2(), *backend);
    model->weights().allocate();
    model->weights().load_dummy(7);
    model->prepare(smollm2().max_position_embeddings);
    KVCacheSpec spec = model->kv_cache_spec();
    spec.block_size = kBlockSize;
    spec.num_blocks = kMaxSequences * kBlocksPerSequence;
    cache = backend->create_kv_cache(spec);
    workspace = Workspace(backend->allocate(model->workspace_bytes(kMaxTokens)));
  }
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Model> model;
  std::unique_ptr<KVCache> cache;
  Workspace workspace;
};

// That of the last benchmark is kept, because loading takes longer than measuring.
Loaded& loaded(const std::string& quantization, Isa isa) {
  static std::string kept_name;
  static std::unique_ptr<Loaded> kept;
  const std::string name = quantization + std::string(isa_name(isa));
  if (name != kept_name) {
    kept.reset();
    kept = std::make_unique<Loaded>(quantization, isa);
    kept_name = name;
  }
  return *kept;
}

// `num_seqs` sequences of `length` tokens, of which the last `query_len` are computed.
struct Step {
  Step(int64_t num_seqs, int64_t query_len, int64_t length) {
    starts.push_back(0);
    for (int64_t s = 0; s < num_seqs; ++s) {
      for (int64_t p = length - query_len; p < length; ++p) {
        ids.push_back(static_cast<int32_t>((s * 131 + p * 31) % 49152));
        positions.push_back(static_cast<int32_t>(p));
        slots.push_back(s * kBlocksPerSequence * kBlockSize + p);
      }
      starts.push_back(static_cast<int32_t>(ids.size()));
      lengths.push_back(static_cast<int32_t>(length));
      logits_rows.push_back(starts.back() - 1);
      for (int64_t b = 0; b < kBlocksPerSequence; ++b) {
        tables.push_back(static_cast<int32_t>(s * kBlocksPerSequence + b));
      }
    }
  }

  ForwardInputs inputs() const {
    ForwardInputs inputs;
    inputs.num_tokens = std::ssize(ids);
    inputs.num_seqs = inputs.num_logits = std::ssize(lengths);
    inputs.max_query_len = inputs.num_tokens / inputs.num_seqs;
    inputs.max_seq_len = lengths[0];
    inputs.block_table_stride = kBlocksPerSequence;
    inputs.token_ids = ids.data();
    inputs.positions = positions.data();
    inputs.slot_mapping = slots.data();
    inputs.query_start_loc = starts.data();
    inputs.seq_lens = lengths.data();
    inputs.block_tables = tables.data();
    inputs.logits_indices = logits_rows.data();
    inputs.host_query_start_loc = starts;
    inputs.host_seq_lens = lengths;
    return inputs;
  }

  std::vector<int32_t> ids, positions, starts, lengths, tables, logits_rows;
  std::vector<int64_t> slots;
};

void forward(benchmark::State& state, const std::string& quantization, Isa isa, const Step& step) {
  Loaded& l = loaded(quantization, isa);
  const ForwardInputs inputs = step.inputs();
  const int64_t vocab = l.model->config().vocab_size;
  std::vector<float> logits(inputs.num_logits * vocab);
  for (auto _ : state) {
    const TensorView hidden = l.model->forward(inputs, *l.cache, l.workspace);
    l.model->compute_logits(
        hidden, TensorView::matrix(logits.data(), DType::kFloat32, inputs.num_logits, vocab));
  }
  state.SetItemsProcessed(state.iterations() * inputs.num_tokens);
}

void add(const std::string& quantization, Isa isa, const std::string& name, const Step& step) {
  const std::string full = quantization + "/" + std::string(isa_name(isa)) + "/" + name;
  const auto run = [=](benchmark::State& state) { forward(state, quantization, isa, step); };
  benchmark::RegisterBenchmark(full.c_str(), run)->UseRealTime()->Unit(benchmark::kMillisecond);
}

[[maybe_unused]] const bool kRegistered = [] {
  for (const char* quantization : {"bf16", "int8", "int4"}) {
    for (const Isa isa : kIsas) {
      if (!is_supported(isa)) continue;
      for (const int64_t sequences : {int64_t{1}, int64_t{16}, kMaxSequences}) {
        add(quantization, isa, "decode/" + std::to_string(sequences), {sequences, 1, 129});
      }
      for (const int64_t tokens : {int64_t{128}, kMaxTokens}) {
        add(quantization, isa, "prefill/" + std::to_string(tokens), {1, tokens, tokens});
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace octavo::cpu
