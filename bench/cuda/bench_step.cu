// Time of whole steps of a Llama geometry on random weights: decode as one graph, prefill eagerly.
//   bench_step [8b | 8b-fp8 | 1b [batch ...]]      with batches given: only their decode steps
#include <cstdlib>
#include <cstring>
#include <memory>

#include "backend/cuda_backend.h"
#include "cuda/quantize.h"
#include "cuda/weights.h"
#include "fill.cuh"
#include "timing.h"

namespace octavo::cuda::bench {
namespace {

struct Geometry {
  const char* name;
  int64_t hidden, intermediate, layers, q_heads, kv_heads, dim, vocab;
  bool is_fp8;  // the projections

  int64_t q_width() const { return q_heads * dim; }
  int64_t qkv_width() const { return (q_heads + 2 * kv_heads) * dim; }
  // Weights that a step reads, in elements.
  double parameters() const {
    const int64_t layer = hidden * (qkv_width() + q_width() + 3 * intermediate);
    return static_cast<double>(layers * layer + vocab * hidden);
  }
  double weight_bytes() const {
    const auto head = static_cast<double>(vocab * hidden);
    return (parameters() - head) * (is_fp8 ? 1.0 : 2.0) + 2.0 * head;
  }
};
constexpr Geometry kGeometries[] = {{"8b", 4096, 14336, 32, 32, 8, 128, 128256, false},
                                    {"8b-fp8", 4096, 14336, 32, 32, 8, 128, 128256, true},
                                    {"1b", 2048, 8192, 16, 32, 8, 64, 128256, false}};

constexpr int64_t kBlock = 16, kMaxTokens = 8192, kMaxSeqs = 256, kMaxLength = 8192 + kBlock;
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
      layers_.push_back({random_projection(g_.qkv_width(), g_.hidden),
                         random_projection(g_.hidden, g_.q_width()),
                         random_projection(2 * g_.intermediate, g_.hidden),
                         random_projection(g_.hidden, g_.intermediate)});
    }
    head_ = filled(backend.create_linear(g_.vocab, g_.hidden, false));
    cache_ = backend.create_kv_cache(
        {g_.layers, g_.kv_heads, g_.dim, kBlock, kCacheTokens / kBlock, DType::kBFloat16});
    norm_ = DeviceMemory(g_.hidden * 4);
    fill_floats<<<64, 256>>>(norm_.as<float>(), g_.hidden, 1.0f);
    rope_ = DeviceMemory(kMaxLength * g_.dim * 2);
    fill_floats<<<64, 256>>>(rope_.as<float>(), kMaxLength * g_.dim / 2, 0.5f);
    residual_ = random_halves(kMaxTokens * g_.hidden);
    normed_ = random_halves(kMaxTokens * g_.hidden);
    delta_ = random_halves(kMaxTokens * g_.hidden);
    qkv_ = random_halves(kMaxTokens * g_.qkv_width());
    attended_ = random_halves(kMaxTokens * g_.q_width());
    gate_up_ = random_halves(kMaxTokens * 2 * g_.intermediate);
    gated_ = random_halves(kMaxTokens * g_.intermediate);
    logits_ = DeviceMemory(kMaxSeqs * g_.vocab * 4);
    metadata_ = DeviceMemory(int64_t{4} << 20);
  }

  // `seqs` sequences of `length` tokens whose last `queries` are computed. Returns the bytes
  // copied.
  int64_t prepare(int64_t seqs, int64_t queries, int64_t length) {
    const int64_t tokens = seqs * queries, stride = (length + kBlock - 1) / kBlock;
    std::vector<int64_t> slots;
    std::vector<int32_t> ids(tokens, 5), positions, table(seqs * stride), last;
    starts_.assign(1, 0);
    lengths_.assign(seqs, static_cast<int32_t>(length));
    const int64_t blocks = kCacheTokens / kBlock;
    for (int64_t i = 0; i < seqs * stride; ++i) table[i] = static_cast<int32_t>(i * 977 % blocks);
    for (int64_t s = 0; s < seqs; ++s) {
      for (int64_t p = length - queries; p < length; ++p) {
        positions.push_back(static_cast<int32_t>(p));
        slots.push_back(table[s * stride + p / kBlock] * kBlock + p % kBlock);
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
    inputs_.host_query_start_loc = starts_;
    inputs_.host_seq_lens = lengths_;
    backend_.copy_to_device(metadata_.data(), image.data(), std::ssize(image));
    return std::ssize(image);
  }

  // Parts of a step that can be left out, to see what they cost; with kFusion only the fusion of a
  // layer's tail, which the others go without too.
  enum Part { kNone, kFusion, kLinears, kAttention, kRope, kNorms, kSilu };

  void forward(Part without = kNone) {
    const int64_t t = inputs_.num_tokens;
    const float* norm = norm_.as<float>();
    const TensorView residual = view(residual_, t, g_.hidden), delta = view(delta_, t, g_.hidden);
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
    const auto linear = [&](const LinearWeight& weight, TensorView x, TensorView out) {
      if (without != kLinears) backend_.linear(weight, x, out);
    };
    const auto add_norm = [&] {
      if (without != kNorms) backend_.add_rms_norm(residual, delta, norm, 1e-5f, normed);
    };
    bool has_qkv = false;
    for (size_t i = 0; i < layers_.size(); ++i) {
      const Layer& layer = layers_[i];
      if (!has_qkv) linear(*layer.qkv, normed, qkv);
      if (without != kRope) backend_.rope_and_cache(qkv, rope, inputs_, params, *cache_);
      if (without != kAttention) backend_.attention(qkv, inputs_, params, *cache_, attended);
      ++params.layer;
      if (without == kNone) {
        const LinearWeight* next = i + 1 < layers_.size() ? layers_[i + 1].qkv.get() : nullptr;
        has_qkv = backend_.finish_layer(
            {*layer.output, norm, *layer.gate_up, *layer.down, norm, next, 1e-5f},
            {attended, residual, normed, gated, qkv});
        if (has_qkv) continue;
      }
      linear(*layer.output, attended, delta);
      add_norm();
      if (without == kSilu) {
        linear(*layer.gate_up, normed, gate_up);
      } else if (without == kLinears) {
        backend_.silu_mul(gate_up, gated);
      } else {
        backend_.gated_linear(*layer.gate_up, normed, gate_up, gated);
      }
      linear(*layer.down, gated, delta);
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
  struct Layer {
    std::unique_ptr<LinearWeight> qkv, output, gate_up, down;
  };

  static TensorView view(const DeviceMemory& memory, int64_t rows, int64_t cols) {
    return TensorView::matrix(memory.data(), DType::kBFloat16, rows, cols);
  }
  std::unique_ptr<LinearWeight> random_projection(int64_t rows, int64_t cols) {
    return filled(backend_.create_projection(rows, cols, false));
  }
  static std::unique_ptr<LinearWeight> filled(std::unique_ptr<LinearWeight> weight) {
    const auto& target = static_cast<const CudaLinearWeight&>(*weight);
    const int64_t rows = target.out_features(), cols = target.in_features();
    if (target.is_fp8()) {
      const Device device;
      const DeviceMemory halves = random_halves(rows * cols);
      quantize_rows(device.context, view(halves, rows, cols), target.matrix(), target.scales());
      device.stream.synchronize();
    } else {
      fill_halves<<<1024, 256>>>(target.matrix().as<uint16_t>(), rows * cols);
    }
    check_cuda(cudaGetLastError());
    return weight;
  }

  Backend& backend_;
  const Geometry g_;
  std::vector<Layer> layers_;
  std::unique_ptr<LinearWeight> head_;
  std::unique_ptr<KVCache> cache_;
  DeviceMemory norm_, rope_, residual_, normed_, delta_, qkv_, attended_, gate_up_, gated_;
  DeviceMemory logits_, metadata_;
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
    const double floor_us = (g.weight_bytes() + kv) / kRoofBytesPerSecond * 1e6;
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
      "\n### %s decode, ctx 256: ms whole, without fusion of the layers' tails, and saved then "
      "without "
      "a part\n\n| batch | whole | not fused | linears | attention | rope | norms | silu |\n"
      "|---|---|---|---|---|---|---|---|\n",
      g.name);
  for (const int64_t batch : {1, 8, 64, 256}) {
    step.prepare(batch, 1, 256);
    const auto time = [&](Step::Part without) {
      step.forward(without);
      backend.synchronize();
      const int32_t graph = backend.capture_graph([&] { step.forward(without); });
      return wall_us(backend, [&] { backend.launch_graph(graph); }) * 1e-3;
    };
    const double fused = time(Step::kNone);
    const double whole = time(Step::kFusion);
    std::printf("| %lld | %.3f | %.3f |", static_cast<long long>(batch), fused, whole);
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
    const double flops = 2.0 * (g.parameters() - static_cast<double>(g.vocab * g.hidden)) *
                         static_cast<double>(tokens);
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
    options.fused_layer_tail = true;
    if (geometry.is_fp8) options.quantization = "fp8";
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
