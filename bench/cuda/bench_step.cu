// Time of whole steps of a real geometry on random weights: decode as one graph, prefill eagerly.
//   bench_step [8b | 8b-lora | 8b-fp8 | 8b-fp8-blocks | 8b-awq | 1b | qwen3-30b-a3b [batch ...]]
// and qwen3-30b-a3b-fp8-blocks, qwen3-30b-a3b-awq. With batches given: only their decode steps.
// 8b-lora: each row has one of eight adapters of rank 16 on every projection.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "backend/cuda_backend.h"
#include "cuda/weights.h"
#include "fill.cuh"
#include "fill_codes.cuh"
#include "timing.h"

namespace octavo::cuda::bench {
namespace {

struct Geometry {
  const char* name;
  int64_t hidden, intermediate, layers, q_heads, kv_heads, dim, vocab;
  DType coding = DType::kBFloat16;  // of the projections
  int64_t experts = 0;              // with `intermediate` features each
  int64_t experts_per_token = 0;
  int32_t num_loras = 0;  // adapters that the rows have in turns

  int64_t q_width() const { return q_heads * dim; }
  int64_t qkv_width() const { return (q_heads + 2 * kv_heads) * dim; }
  // Experts that a step of `tokens` reads, when each token draws its own at random.
  double experts_read(int64_t tokens) const {
    const double missed =
        1.0 - static_cast<double>(experts_per_token) / static_cast<double>(experts);
    return static_cast<double>(experts) * (1.0 - std::pow(missed, static_cast<double>(tokens)));
  }
  // Weights of the layers that a step reads, and those that a token is multiplied by; in elements.
  double read_parameters(int64_t tokens) const { return layer_parameters(experts_read(tokens)); }
  double parameters() const { return layer_parameters(static_cast<double>(experts_per_token)); }
  double weight_bytes(int64_t tokens) const {
    const DTypeInfo info = dtype_info(coding);
    const auto head = static_cast<double>(vocab * hidden);
    return read_parameters(tokens) * info.block_bytes / info.block_elements + 2.0 * head;
  }

 private:
  double layer_parameters(double num_experts) const {
    const double mlp = experts == 0 ? 1.0 : num_experts;
    const auto attention = static_cast<double>(hidden * (qkv_width() + q_width()));
    return static_cast<double>(layers) *
           (attention + mlp * 3.0 * static_cast<double>(hidden * intermediate));
  }
};
constexpr Geometry kGeometries[] = {
    {"8b", 4096, 14336, 32, 32, 8, 128, 128256},
    {"8b-lora", 4096, 14336, 32, 32, 8, 128, 128256, DType::kBFloat16, 0, 0, 8},
    {"8b-fp8", 4096, 14336, 32, 32, 8, 128, 128256, DType::kFloat8Rows},
    {"8b-fp8-blocks", 4096, 14336, 32, 32, 8, 128, 128256, DType::kFloat8Blocks},
    {"8b-awq", 4096, 14336, 32, 32, 8, 128, 128256, DType::kInt4G128},
    {"1b", 2048, 8192, 16, 32, 8, 64, 128256},
    {"qwen3-30b-a3b", 2048, 768, 48, 32, 4, 128, 151936, DType::kBFloat16, 128, 8},
    {"qwen3-30b-a3b-fp8-blocks", 2048, 768, 48, 32, 4, 128, 151936, DType::kFloat8Blocks, 128, 8},
    {"qwen3-30b-a3b-awq", 2048, 768, 48, 32, 4, 128, 151936, DType::kInt4G128, 128, 8}};

constexpr int64_t kBlock = 16, kMaxTokens = 8192, kMaxSeqs = 256, kMaxLength = 8192 + kBlock;
constexpr int64_t kLoraRank = 16;
constexpr int64_t kCacheTokens = int64_t{256} * 1024;

double now_us() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) * 1e6 + static_cast<double>(t.tv_nsec) * 1e-3;
}

class Step {
 public:
  Step(Backend& backend, const Geometry& geometry) : backend_(backend), g_(geometry) {
    for (int64_t i = 0; i < g_.layers; ++i) {
      const int64_t copies = std::max<int64_t>(1, g_.experts);
      layers_.push_back({random_projection(g_.qkv_width(), g_.hidden),
                         random_projection(g_.hidden, g_.q_width()),
                         random_projection(copies * 2 * g_.intermediate, g_.hidden),
                         random_projection(copies * g_.hidden, g_.intermediate)});
    }
    if (g_.experts > 0) make_experts();
    head_ = filled(backend.create_linear(g_.vocab, g_.hidden, false));
    cache_ = backend.create_kv_cache(
        {g_.layers, g_.kv_heads, g_.dim, kBlock, kCacheTokens / kBlock, DType::kBFloat16});
    norm_ = DeviceMemory(g_.hidden * 4);
    fill_floats<<<64, 256>>>(norm_.as<float>(), g_.hidden, 1.0f);
    rope_ = DeviceMemory(kMaxLength * g_.dim * 2);
    fill_floats<<<64, 256>>>(rope_.as<float>(), kMaxLength * g_.dim / 2, 0.5f);
    residual_ = DeviceMemory(dtype_bytes(backend.residual_dtype(), kMaxTokens * g_.hidden));
    normed_ = random_halves(kMaxTokens * g_.hidden);
    delta_ = random_halves(kMaxTokens * g_.hidden);
    qkv_ = random_halves(kMaxTokens * g_.qkv_width());
    attended_ = random_halves(kMaxTokens * g_.q_width());
    const int64_t rows = kMaxTokens * std::max<int64_t>(1, g_.experts_per_token);
    gate_up_ = random_halves(rows * 2 * g_.intermediate);
    gated_ = random_halves(rows * g_.intermediate);
    logits_ = DeviceMemory(kMaxSeqs * g_.vocab * 4);
    metadata_ = DeviceMemory(int64_t{4} << 20);
    if (g_.num_loras > 0) load_loras();
  }

  // `seqs` sequences of `length` tokens whose last `queries` are computed. Returns the bytes
  // copied.
  int64_t prepare(int64_t seqs, int64_t queries, int64_t length) {
    const int64_t tokens = seqs * queries, stride = (length + kBlock - 1) / kBlock;
    std::vector<int64_t> slots;
    std::vector<int32_t> ids(tokens, 5), positions, table(seqs * stride), last, lora_slots;
    starts_.assign(1, 0);
    lengths_.assign(seqs, static_cast<int32_t>(length));
    const int64_t blocks = kCacheTokens / kBlock;
    for (int64_t i = 0; i < seqs * stride; ++i) table[i] = static_cast<int32_t>(i * 977 % blocks);
    for (int64_t s = 0; s < seqs; ++s) {
      for (int64_t p = length - queries; p < length; ++p) {
        positions.push_back(static_cast<int32_t>(p));
        slots.push_back(table[s * stride + p / kBlock] * kBlock + p % kBlock);
        lora_slots.push_back(static_cast<int32_t>(s % std::max(1, g_.num_loras)));
      }
      starts_.push_back(static_cast<int32_t>((s + 1) * queries));
      last.push_back(starts_.back() - 1);
    }
    inputs_ = {};
    inputs_.num_tokens = tokens;
    inputs_.num_seqs = inputs_.num_logits = seqs;
    inputs_.max_query_len = queries;
    inputs_.max_seq_len = length;
    inputs_.block_table_stride = stride;
    std::vector<std::byte> image;
    const auto put = [&]<typename T>(const std::vector<T>& values) {
      const size_t at = (image.size() + 63) / 64 * 64;
      image.resize(at + values.size() * sizeof(T));
      std::memcpy(image.data() + at, values.data(), values.size() * sizeof(T));
      return reinterpret_cast<const T*>(metadata_.as() + at);
    };
    inputs_.slot_mapping = put(slots);
    inputs_.token_ids = put(ids);
    inputs_.positions = put(positions);
    inputs_.query_start_loc = put(starts_);
    inputs_.seq_lens = put(lengths_);
    inputs_.block_tables = put(table);
    inputs_.logits_indices = put(last);
    inputs_.lora_slots = put(lora_slots);
    inputs_.host_query_start_loc = starts_;
    inputs_.host_seq_lens = lengths_;
    backend_.copy_to_device(metadata_.data(), image.data(), std::ssize(image));
    return std::ssize(image);
  }

  // Parts of a step that can be left out, to see what they cost.
  enum Part { kNone, kLinears, kAttention, kRope, kNorms, kSilu };

  void forward(Part without = kNone) {
    const int64_t t = inputs_.num_tokens;
    const float* norm = norm_.as<float>();
    const TensorView residual =
        TensorView::matrix(residual_.data(), backend_.residual_dtype(), t, g_.hidden);
    const TensorView delta = view(delta_, t, g_.hidden);
    const TensorView normed = view(normed_, t, g_.hidden), qkv = view(qkv_, t, g_.qkv_width());
    const TensorView attended = view(attended_, t, g_.q_width());
    const TensorView gate_up = view(gate_up_, t, 2 * g_.intermediate);
    const TensorView gated = view(gated_, t, g_.intermediate);
    const RopeTable rope{rope_.as<float>(), rope_.as<float>(), g_.dim, false};
    AttentionParams params;
    params.num_q_heads = g_.q_heads;
    params.num_kv_heads = g_.kv_heads;
    params.head_dim = g_.dim;
    params.scale = 0.1f;
    backend_.embed(*head_, inputs_.token_ids, residual);
    backend_.rms_norm(residual, norm, 1e-5f, normed);
    const LoraPlan plan{lora_plan_.as<int32_t>(), t, g_.num_loras};
    if (g_.num_loras > 0) backend_.plan_lora(inputs_.lora_slots, nullptr, plan);
    const auto linear = [&](const Projection& projection, TensorView x, TensorView out) {
      if (without == kLinears) return;
      if (projection.bank != nullptr) {
        backend_.lora_linear(*projection.weight, *projection.bank, plan, x, out);
      } else {
        backend_.linear(*projection.weight, x, out);
      }
    };
    const auto add_norm = [&] {
      if (without != kNorms) backend_.add_rms_norm(residual, delta, norm, 1e-5f, normed);
    };
    for (const Layer& layer : layers_) {
      linear(layer.qkv, normed, qkv);
      if (without != kRope) backend_.rope_and_cache(qkv, rope, inputs_, params, *cache_);
      if (without != kAttention) backend_.attention(qkv, inputs_, params, *cache_, attended);
      ++params.layer;
      linear(layer.output, attended, delta);
      add_norm();
      if (g_.experts > 0) {
        mix(layer, normed, delta, without != kLinears);
        add_norm();
        continue;
      }
      if (without == kSilu) {
        linear(layer.gate_up, normed, gate_up);
      } else if (without == kLinears || layer.gate_up.bank != nullptr) {
        linear(layer.gate_up, normed, gate_up);
        backend_.silu_mul(gate_up, gated);
      } else {
        backend_.gated_linear(*layer.gate_up.weight, normed, gate_up, gated);
      }
      linear(layer.down, gated, delta);
      add_norm();
    }
    const int64_t n = inputs_.num_logits;
    TensorView hidden = normed;
    if (n < t) {
      hidden = view(delta_, n, g_.hidden);
      backend_.gather_rows(normed, inputs_.logits_indices, hidden);
    }
    backend_.linear(*head_, hidden, logits(n));
  }

  TensorView logits(int64_t rows) const {
    return TensorView::matrix(logits_.data(), DType::kFloat32, rows, g_.vocab);
  }

 private:
  struct Projection {
    std::unique_ptr<LinearWeight> weight;
    std::unique_ptr<LoraBank> bank;
  };
  struct Layer {
    Projection qkv, output, gate_up, down;
  };

  // A layer's experts with other routers' logits for each layer and token.
  void mix(const Layer& layer, TensorView normed, TensorView delta, bool has_experts) {
    const int64_t t = normed.rows(), pairs = t * g_.experts_per_token;
    const TensorView logits =
        TensorView::matrix(router_logits_.data(), DType::kFloat32, t, g_.experts);
    backend_.linear(*router_, normed, logits);
    const auto index = static_cast<int64_t>(&layer - layers_.data());
    TensorView drawn = logits;
    drawn.data = random_logits_.as<float>() + index * kMaxTokens % 7919 * g_.experts;
    const ExpertScratch scratch{
        TensorView::matrix(plan_.data(), DType::kInt32, 1, expert_plan_size(pairs, g_.experts)),
        view(gate_up_, pairs, 2 * g_.intermediate), view(gated_, pairs, g_.intermediate),
        view(expert_out_, pairs, g_.hidden)};
    const ExpertBank bank{*layer.gate_up.weight, *layer.down.weight, g_.experts,
                          g_.experts_per_token, true};
    if (has_experts) backend_.experts(normed, drawn, bank, scratch, delta);
  }

  void make_experts() {
    router_ = filled(backend_.create_linear(g_.experts, g_.hidden, false));
    const int64_t logits = 2 * kMaxTokens * g_.experts, pairs = kMaxTokens * g_.experts_per_token;
    router_logits_ = DeviceMemory(logits * 4);
    random_logits_ = DeviceMemory(logits * 4);
    fill_floats<<<1024, 256>>>(random_logits_.as<float>(), logits, 2.0f);
    expert_out_ = random_halves(pairs * g_.hidden);
    plan_ = DeviceMemory(expert_plan_size(pairs, g_.experts) * 4);
  }

  static TensorView view(const DeviceMemory& memory, int64_t rows, int64_t cols) {
    return TensorView::matrix(memory.data(), DType::kBFloat16, rows, cols);
  }
  Projection random_projection(int64_t rows, int64_t cols) {
    return {filled(backend_.create_projection(rows, cols, false, g_.coding)), nullptr};
  }
  void load_loras() {
    lora_plan_ = DeviceMemory(lora_plan_size(kMaxTokens, g_.num_loras) * 4);
    const int64_t q = g_.q_width(), kv = g_.kv_heads * g_.dim, inner = g_.intermediate;
    for (Layer& layer : layers_) {
      layer.qkv.bank = random_bank(g_.hidden, {{0, q}, {q, kv}, {q + kv, kv}});
      layer.output.bank = random_bank(q, {{0, g_.hidden}});
      layer.gate_up.bank = random_bank(g_.hidden, {{0, inner}, {inner, inner}});
      layer.down.bank = random_bank(inner, {{0, g_.hidden}});
    }
  }
  std::unique_ptr<LoraBank> random_bank(int64_t in, const std::vector<LoraPart>& parts) {
    auto bank = backend_.create_lora_bank(in, parts, {g_.num_loras, kLoraRank});
    for (int32_t slot = 0; slot < g_.num_loras; ++slot) {
      for (int64_t part = 0; part < std::ssize(parts); ++part) {
        const std::vector<float> a(kLoraRank * in, 0.01f);
        const std::vector<float> b(parts[part].num_rows * kLoraRank, 0.01f);
        backend_.load_lora(*bank, slot, part,
                           {1.0f,
                            {a.data(), DType::kFloat32, kLoraRank, in},
                            {b.data(), DType::kFloat32, parts[part].num_rows, kLoraRank}});
      }
    }
    return bank;
  }
  static std::unique_ptr<LinearWeight> filled(std::unique_ptr<LinearWeight> weight) {
    const auto& target = static_cast<const CudaLinearWeight&>(*weight);
    const int64_t rows = target.out_features(), cols = target.in_features();
    if (target.coding() == DType::kBFloat16) {
      fill_halves<<<1024, 256>>>(target.matrix().as<uint16_t>(), rows * cols);
      check_cuda(cudaGetLastError());
    } else {
      fill_operand(target.operand());
    }
    return weight;
  }

  Backend& backend_;
  const Geometry g_;
  std::vector<Layer> layers_;
  std::unique_ptr<LinearWeight> head_;
  std::unique_ptr<KVCache> cache_;
  DeviceMemory norm_, rope_, residual_, normed_, delta_, qkv_, attended_, gate_up_, gated_;
  DeviceMemory logits_, metadata_, lora_plan_;
  DeviceMemory router_logits_, random_logits_, expert_out_, plan_;
  std::unique_ptr<LinearWeight> router_;
  ForwardInputs inputs_;
  std::vector<int32_t> starts_, lengths_;
};

// Time of `f` when it runs without a pause for most of a second: the clocks that power allows.
template <typename F>
double sustained_us(Backend& backend, double single_us, F&& f) {
  const int count = std::max(1, static_cast<int>(0.7e6 / single_us));
  const double begin = now_us();
  for (int i = 0; i < count; ++i) f();
  backend.synchronize();
  return (now_us() - begin) / count;
}

// Median wall time of `f` and the wait after it.
template <typename F>
double wall_us(Backend& backend, F&& f) {
  std::vector<double> times;
  for (int i = 0; i < 9; ++i) {
    const double begin = now_us();
    f();
    backend.synchronize();
    times.push_back(now_us() - begin);
  }
  return median(times);
}

void bench_decode(Backend& backend, Step& step, const Geometry& g,
                  std::span<const int64_t> batches) {
  std::printf(
      "\n### %s decode, ctx 256 (then 1024): ms\n\n"
      "| batch | graph | sustained | eager | graph + greedy | host time to launch us | bytes floor "
      "| "
      "ctx 1024 graph |\n|---|---|---|---|---|---|---|---|\n",
      g.name);
  for (const int64_t batch : batches) {
    step.prepare(batch, 1, 256);
    step.forward();
    backend.synchronize();
    const int32_t graph = backend.capture_graph([&] { step.forward(); });
    const double graph_us = wall_us(backend, [&] { backend.launch_graph(graph); });
    const double steady_us = sustained_us(backend, graph_us, [&] { backend.launch_graph(graph); });
    const double eager_us = wall_us(backend, [&] { step.forward(); });
    SamplingParams params;
    params.temperature = 0.0f;
    std::vector<int32_t> history(256, 3);
    std::vector<ScheduledSequence> sequences(batch);
    std::vector<SampleRow> rows(batch);
    for (int64_t i = 0; i < batch; ++i) {
      sequences[i].token_ids = history;
      sequences[i].sampling = &params;
      rows[i] = {&sequences[i], static_cast<int32_t>(i), -1};
    }
    StepResult result;
    result.token_ids.assign(batch, -1);
    result.is_invalid.assign(batch, 0);
    const double sampled_us = wall_us(backend, [&] {
      backend.begin_step();
      backend.launch_graph(graph);
      backend.sample(step.logits(batch), rows, result);
      backend.end_step();
      backend.wait_step();
    });
    const double begin = now_us();
    backend.launch_graph(graph);
    const double launch_us = now_us() - begin;
    backend.synchronize();
    const double kv = 4.0 * static_cast<double>(batch * 256 * g.layers * g.kv_heads * g.dim);
    const double floor_us = (g.weight_bytes(batch) + kv) / kRoofBytesPerSecond * 1e6;
    step.prepare(batch, 1, 1024);
    step.forward();
    backend.synchronize();
    const int32_t longer = backend.capture_graph([&] { step.forward(); });
    const double longer_us = wall_us(backend, [&] { backend.launch_graph(longer); });
    std::printf("| %lld | %.3f | %.3f | %.3f | %.3f | %.1f | %.3f | %.3f |\n",
                static_cast<long long>(batch), graph_us * 1e-3, steady_us * 1e-3, eager_us * 1e-3,
                sampled_us * 1e-3, launch_us, floor_us * 1e-3, longer_us * 1e-3);
    std::fflush(stdout);
  }
}

// What a step loses when a part is left out.
void bench_parts(Backend& backend, Step& step, const Geometry& g) {
  std::printf(
      "\n### %s decode, ctx 256: ms whole, and saved without a part\n\n"
      "| batch | whole | linears | attention | rope | norms | silu "
      "|\n|---|---|---|---|---|---|---|\n",
      g.name);
  for (const int64_t batch : {1, 8, 64, 256}) {
    step.prepare(batch, 1, 256);
    const auto time = [&](Step::Part without) {
      step.forward(without);
      backend.synchronize();
      const int32_t graph = backend.capture_graph([&] { step.forward(without); });
      return wall_us(backend, [&] { backend.launch_graph(graph); }) * 1e-3;
    };
    const double whole = time(Step::kNone);
    std::printf("| %lld | %.3f |", static_cast<long long>(batch), whole);
    for (const Step::Part part :
         {Step::kLinears, Step::kAttention, Step::kRope, Step::kNorms, Step::kSilu}) {
      std::printf(" %.3f |", whole - time(part));
    }
    std::printf("\n");
    std::fflush(stdout);
  }
}

void bench_prefill(Backend& backend, Step& step, const Geometry& g) {
  std::printf("\n### %s prefill\n\n| tokens | ms | TFLOP/s of the linears |\n|---|---|---|\n",
              g.name);
  for (const int64_t tokens : {128, 512, 2048, 8192}) {
    step.prepare(1, tokens, tokens);
    step.forward();
    backend.synchronize();
    const double us = wall_us(backend, [&] { step.forward(); });
    const double flops = 2.0 * g.parameters() * static_cast<double>(tokens);
    std::printf("| %lld | %.2f | %.0f |\n", static_cast<long long>(tokens), us * 1e-3,
                flops / us * 1e-6);
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace octavo::cuda::bench

int main(int argc, char** argv) {
  using namespace octavo::cuda::bench;
  std::vector<int64_t> batches;
  for (int i = 2; i < argc; ++i) batches.push_back(std::atoll(argv[i]));
  const bool is_whole = batches.empty();
  if (is_whole) batches = {1, 8, 16, 32, 64, 128, 256};
  for (const Geometry& geometry : kGeometries) {
    if (argc > 1 && std::strcmp(argv[1], geometry.name) != 0) continue;
    octavo::BackendOptions options;
    options.device = "cuda:0";
    options.keep_quantized = true;
    const auto backend = octavo::create_cuda_backend(options);
    Step step(*backend, geometry);
    octavo::cuda::check_cuda(cudaDeviceSynchronize());
    bench_decode(*backend, step, geometry, batches);
    if (!is_whole) continue;
    bench_parts(*backend, step, geometry);
    bench_prefill(*backend, step, geometry);
  }
  return 0;
}
