// Time, rate and share of the roof of every kernel, for the shapes of Llama-3.1-8B.
//   bench_kernels [part of a section's name]
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>

#include "cuda/attention.h"
#include "cuda/coded_gemm.h"
#include "cuda/coded_stream.h"
#include "cuda/common/element.cuh"
#include "cuda/cublas_lt.h"
#include "cuda/embedding.h"
#include "cuda/experts.h"
#include "cuda/grouped_stream.h"
#include "cuda/rms_norm.h"
#include "cuda/rope_cache.h"
#include "cuda/sampler.h"
#include "cuda/silu_mul.h"
#include "cuda/stream_linear.h"
#include "cuda/weights.h"
#include "fill.cuh"
#include "fill_codes.cuh"
#include "timing.h"

namespace octavo::cuda::bench {
namespace {

constexpr DType kType = DType::kBFloat16;
constexpr int64_t kHidden = 4096, kIntermediate = 14336, kVocab = 128256;
constexpr int64_t kQHeads = 32, kKvHeads = 8, kDim = 128;
constexpr int64_t kQkv = (kQHeads + 2 * kKvHeads) * kDim;

TensorView view(const DeviceMemory& memory, int64_t rows, int64_t cols, DType dtype = kType) {
  return TensorView::matrix(memory.data(), dtype, rows, cols);
}

std::string shape_text(int64_t m, int64_t k, int64_t n) {
  return std::to_string(m) + " x " + std::to_string(k) + " -> " + std::to_string(n);
}

Work linear_work(int64_t m, int64_t k, int64_t n) {
  return {2.0 * static_cast<double>(n * k + m * k + m * n), 2.0 * static_cast<double>(m * n * k)};
}

struct Projection {
  int64_t k, n;
};
constexpr Projection kProjections[] = {{kHidden, kQkv},
                                       {kHidden, kHidden},
                                       {kHidden, 2 * kIntermediate},
                                       {kIntermediate, kHidden},
                                       {kHidden, kVocab}};

// Copies of the weights that together are several times the L2 cache.
int copies_of(int64_t bytes) { return static_cast<int>(std::max<int64_t>(1, (400 << 20) / bytes)); }

void bench_copy(const Device& device) {
  print_header("copy");
  const int64_t bytes = int64_t{4} << 30;
  const DeviceMemory a(bytes), b(bytes);
  const double us = time_us(device.stream.get(), 2, [&](int) {
    check_cuda(
        cudaMemcpyAsync(b.data(), a.data(), bytes, cudaMemcpyDeviceToDevice, device.stream.get()));
  });
  print_row("cudaMemcpy", "4 GiB", us, {2.0 * static_cast<double>(bytes), 0});
}

struct LinearShape {
  int64_t m;
  Projection p;
};

// The same memory read as fp8: any bytes but those of NaN do.
void bench_fp8_stream(const Device& device, StreamLinear& linear, const DeviceMemory& weights,
                      const DeviceMemory& x, const DeviceMemory& out, LinearShape shape) {
  const int64_t m = shape.m;
  const Projection p = shape.p;
  const int copies = copies_of(p.n * p.k);
  const DeviceMemory scales(p.n * 4);
  fill_floats<<<64, 256>>>(scales.as<float>(), p.n, 1.0f);
  const double us = time_us(device.stream.get(), 3 * copies, [&](int i) {
    const int64_t at = i % copies * p.n * p.k % (weights.size_bytes() - p.n * p.k + 1);
    const TensorView matrix =
        TensorView::matrix(weights.as<std::byte>() + at / 16 * 16, DType::kFloat8E4M3, p.n, p.k);
    linear.run(device.context, {matrix, nullptr, scales.as<float>()}, view(x, m, p.k),
               view(out, m, p.n));
  });
  Work work = linear_work(m, p.k, p.n);
  work.bytes -= static_cast<double>(p.n * p.k);
  print_row("stream, fp8", shape_text(m, p.k, p.n), us, work);
}

void bench_stream(const Device& device) {
  print_header("streaming linears");
  StreamLinear linear(device.context);
  for (const Projection p : kProjections) {
    const int copies = copies_of(p.n * p.k * 2);
    const DeviceMemory weights = random_halves(copies * p.n * p.k);
    const DeviceMemory x = random_halves(StreamLinear::kMaxRows * p.k, 1.0f);
    const DeviceMemory out = random_halves(StreamLinear::kMaxRows * p.n);
    for (const int64_t m : {1, 8, 16, 32, 64}) {
      const auto weight = [&](int i) {
        return TensorView::matrix(weights.as<bf16>() + i % copies * p.n * p.k, kType, p.n, p.k);
      };
      const double us = time_us(device.stream.get(), 3 * copies, [&](int i) {
        linear.run(device.context, {weight(i)}, view(x, m, p.k), view(out, m, p.n));
      });
      print_row("stream", shape_text(m, p.k, p.n), us, linear_work(m, p.k, p.n));
      bench_fp8_stream(device, linear, weights, x, out, {m, p});
      if (p.n != 2 * kIntermediate) continue;
      const double gated_us = time_us(device.stream.get(), 3 * copies, [&](int i) {
        linear.run_gated(device.context, {weight(i)}, view(x, m, p.k), view(out, m, p.n / 2));
      });
      print_row("stream, gated", shape_text(m, p.k, p.n), gated_us, linear_work(m, p.k, p.n));
    }
  }
}

// Weights of one shape that keep codes, several times the L2 cache in all.
class CodedWeights {
 public:
  CodedWeights(DType coding, Projection p) {
    const int64_t bytes = CudaLinearWeight::coded_bytes(coding, p.n, p.k);
    for (int i = 0; i < copies_of(bytes); ++i) {
      weights_.push_back(std::make_unique<CudaLinearWeight>(kType, p.n, p.k, false, coding));
      fill_operand(weights_.back()->operand());
    }
  }
  int count() const { return static_cast<int>(weights_.size()); }
  LinearOperand operator[](int i) const { return weights_[i % count()]->operand(); }
  double bytes() const { return static_cast<double>(weights_[0]->size_bytes()); }

 private:
  std::vector<std::unique_ptr<CudaLinearWeight>> weights_;
};

// Few rows by the streaming kernels in passes of 64, many by decoding: where they cross.
void bench_codes(const Device& device) {
  print_header("weights that keep codes (share of the roof of their own bytes)");
  CodedStream linear(device.context);
  Gemm gemm(device.context);
  CodedGemm coded_gemm;
  for (const DType coding : {DType::kInt4G128, DType::kInt4G32, DType::kFloat8Blocks}) {
    for (const Projection p :
         {kProjections[0], kProjections[1], kProjections[2], kProjections[3]}) {
      const CodedWeights weights(coding, p);
      const std::string name = dtype_info(coding).name.data();
      for (const int64_t m : {1, 8, 16, 32, 64, 192, 256, 2048}) {
        const DeviceMemory x = random_halves(m * p.k, 1.0f), out = random_halves(m * p.n);
        const Work work{weights.bytes() + 2.0 * static_cast<double>(m * (p.k + p.n)),
                        2.0 * static_cast<double>(m * p.n * p.k)};
        const int calls = m > 512 ? 3 : 2 * weights.count();
        const auto stream = [&](int i) {
          for (int64_t begin = 0; begin < m; begin += CodedStream::kMaxRows) {
            const int64_t rows = std::min(CodedStream::kMaxRows, m - begin);
            linear.run(device.context, weights[i], view(x, m, p.k).row_range(begin, rows),
                       view(out, m, p.n).row_range(begin, rows));
          }
        };
        if (m <= 256) {
          const double us = time_us(device.stream.get(), calls, stream);
          print_row("stream " + name, shape_text(m, p.k, p.n), us, work);
        }
        if (m <= CodedStream::kMaxRows && p.n == 2 * kIntermediate) {
          const double us = time_us(device.stream.get(), calls, [&](int i) {
            linear.run_gated(device.context, weights[i], view(x, m, p.k), view(out, m, p.n / 2));
          });
          print_row("gated " + name, shape_text(m, p.k, p.n), us, work);
        }
        if (m >= 192) {
          const double us = time_us(device.stream.get(), calls, [&](int i) {
            coded_gemm.run(device.context, gemm, weights[i], view(x, m, p.k), view(out, m, p.n));
          });
          print_row("decode " + name, shape_text(m, p.k, p.n), us, work);
        }
      }
    }
  }
}

// Products of experts, Qwen3-30B-A3B: routing, gate and up, down, sum; and each of the products.
void bench_experts(const Device& device) {
  print_header("experts, 128 of them, 8 a token, hidden 2048, intermediate 768");
  constexpr int64_t kExperts = 128, kPerToken = 8, kIn = 2048, kInner = 768, kBanks = 2;
  const DeviceContext& context = device.context;
  const DeviceMemory gate_up = random_halves(kBanks * kExperts * 2 * kInner * kIn);
  const DeviceMemory down = random_halves(kBanks * kExperts * kIn * kInner);
  GroupedStream linear(context);
  for (const int64_t tokens : {1, 2, 8, 32, 64, 128, 256, 512, 2048}) {
    const int64_t pairs = tokens * kPerToken;
    const DeviceMemory x = random_halves(tokens * kIn, 1.0f), out = random_halves(tokens * kIn);
    const DeviceMemory gates = random_halves(pairs * 2 * kInner),
                       inner = random_halves(pairs * kInner);
    const DeviceMemory rows = random_halves(pairs * kIn);
    const DeviceMemory logits(kBanks * tokens * kExperts * 4);
    fill_floats<<<64, 256>>>(logits.as<float>(), kBanks * tokens * kExperts, 2.0f);
    const int64_t size = expert_plan_size(pairs, kExperts);
    const DeviceMemory memory(size * 4);
    const ExpertPlan plan = expert_plan(TensorView::matrix(memory.data(), DType::kInt32, 1, size),
                                        tokens, kExperts, kPerToken);
    const auto matrix = [](const DeviceMemory& bank, int i, int64_t n, int64_t k) {
      return TensorView::matrix(bank.as<bf16>() + i % kBanks * n * k, kType, n, k);
    };
    const auto route = [&](int i) {
      const TensorView drawn = TensorView::matrix(
          logits.as<float>() + i % kBanks * tokens * kExperts, DType::kFloat32, tokens, kExperts);
      route_experts(context, drawn, true, plan);
    };
    const auto stream = [&](int i) {
      route(i);
      linear.run_gated(context, matrix(gate_up, i, kExperts * 2 * kInner, kIn),
                       view(x, tokens, kIn), plan, view(inner, pairs, kInner));
      linear.run(context, matrix(down, i, kExperts * kIn, kInner), view(inner, pairs, kInner), plan,
                 view(rows, pairs, kIn), true);
      combine_experts(context, view(rows, pairs, kIn), plan, view(out, tokens, kIn));
    };
    const auto tiles = [&](int i) {
      route(i);
      grouped_linear(context, matrix(gate_up, i, kExperts * 2 * kInner, kIn), view(x, tokens, kIn),
                     true, plan, view(gates, pairs, 2 * kInner));
      silu_mul(context, view(gates, pairs, 2 * kInner), view(inner, pairs, kInner));
      grouped_linear(context, matrix(down, i, kExperts * kIn, kInner), view(inner, pairs, kInner),
                     false, plan, view(rows, pairs, kIn));
      combine_experts(context, view(rows, pairs, kIn), plan, view(out, tokens, kIn));
    };
    const double missed = std::pow(1.0 - static_cast<double>(kPerToken) / kExperts, tokens);
    const Work work{kExperts * (1.0 - missed) * 6.0 * kIn * kInner,
                    6.0 * static_cast<double>(pairs * kIn * kInner)};
    const std::string shape = std::to_string(tokens) + " tokens";
    print_row("routing", shape, time_us(context.stream, 20, route), {});
    if (GroupedStream::accepts(plan, matrix(gate_up, 0, kExperts * 2 * kInner, kIn),
                               view(x, tokens, kIn), kInner)) {
      print_row("experts, streamed", shape, time_us(context.stream, 4, stream), work);
    }
    print_row("experts, by tiles", shape, time_us(context.stream, 4, tiles), work);
  }
}

void bench_gemm_choices(const Device& device, const char* title, bool measures) {
  print_header(title);
  Gemm gemm(device.context, {.tuning_path = {}, .measures = measures});
  for (const Projection p : kProjections) {
    const int copies = copies_of(p.n * p.k * 2);
    const DeviceMemory weights = random_halves(copies * p.n * p.k);
    for (const int64_t m : {64, 96, 128, 192, 256, 512, 2048, 8192}) {
      if (p.n == kVocab && m > 256) continue;
      const DeviceMemory x = random_halves(m * p.k, 1.0f), out = random_halves(m * p.n);
      const double us = time_us(device.stream.get(), m > 512 ? 3 : 2 * copies, [&](int i) {
        const TensorView matrix =
            TensorView::matrix(weights.as<bf16>() + i % copies * p.n * p.k, kType, p.n, p.k);
        gemm.run(device.context, {matrix}, view(x, m, p.k), view(out, m, p.n));
      });
      print_row("cuBLASLt", shape_text(m, p.k, p.n), us, linear_work(m, p.k, p.n));
    }
  }
}

void bench_gemm(const Device& device) { bench_gemm_choices(device, "cuBLASLt", false); }
void bench_tuned_gemm(const Device& device) {
  bench_gemm_choices(device, "cuBLASLt, the best of its measured choices", true);
}

void bench_elementwise(const Device& device) {
  print_header("elementwise");
  const DeviceContext& context = device.context;
  const DeviceMemory weight(kHidden * 4);
  fill_floats<<<64, 256>>>(weight.as<float>(), kHidden, 1.0f);
  for (const int64_t t : {1, 8, 64, 256, 2048, 8192}) {
    const DeviceMemory a = random_halves(t * kHidden), b = random_halves(t * kHidden);
    const DeviceMemory c = random_halves(t * kHidden), residual(t * kHidden * 4);
    fill_floats<<<1024, 256>>>(residual.as<float>(), t * kHidden, 1.0f);
    const DeviceMemory gate_up = random_halves(t * 2 * kIntermediate);
    const DeviceMemory gated = random_halves(t * kIntermediate);
    const std::string rows = std::to_string(t) + " rows";
    const auto bytes = [&](double elements) {
      return Work{2.0 * static_cast<double>(t) * elements, 0};
    };
    const int calls = 20;
    print_row("rms_norm", rows,
              time_us(context.stream, calls,
                      [&](int) {
                        rms_norm(context, view(a, t, kHidden), weight.as<float>(), 1e-5f,
                                 view(b, t, kHidden));
                      }),
              bytes(2.0 * kHidden));
    print_row("add_rms_norm", rows,
              time_us(context.stream, calls,
                      [&](int) {
                        add_rms_norm(context, view(residual, t, kHidden, DType::kFloat32),
                                     view(b, t, kHidden), weight.as<float>(), 1e-5f,
                                     view(c, t, kHidden));
                      }),
              bytes(6.0 * kHidden));
    print_row("silu_mul", rows,
              time_us(context.stream, calls,
                      [&](int) {
                        silu_mul(context, view(gate_up, t, 2 * kIntermediate),
                                 view(gated, t, kIntermediate));
                      }),
              bytes(3.0 * kIntermediate));
  }
}

// A batch for attention and the cache write: equal sequences, blocks in random order.
struct AttentionBatch {
  AttentionBatch(const Device& device, int64_t seqs, int64_t queries, int64_t length,
                 DType kv_dtype, int64_t block_size)
      : num_seqs(seqs), num_queries(queries), num_tokens(seqs * queries) {
    stride = (length + block_size - 1) / block_size;
    const int64_t blocks = seqs * stride;
    cache = std::make_unique<CudaKVCache>(
        device.context, KVCacheSpec{1, kKvHeads, kDim, block_size, blocks, kv_dtype});
    const int64_t cache_halves = cache->spec().block_bytes() * blocks / 2;
    fill_halves<<<1024, 256>>>(static_cast<uint16_t*>(cache->layer(0).keys), cache_halves);
    std::vector<int32_t> table(blocks);
    std::iota(table.begin(), table.end(), 0);
    for (int64_t i = blocks - 1; i > 0; --i) std::swap(table[i], table[i * 7919 % (i + 1)]);
    starts.resize(seqs + 1);
    for (int64_t i = 0; i <= seqs; ++i) starts[i] = static_cast<int32_t>(i * queries);
    lengths.assign(seqs, static_cast<int32_t>(length));
    std::vector<int32_t> positions(num_tokens);
    std::vector<int64_t> slots(num_tokens);
    for (int64_t t = 0; t < num_tokens; ++t) {
      positions[t] = static_cast<int32_t>(length - queries + t % queries);
      slots[t] = table[t / queries * stride + positions[t] / block_size] * block_size +
                 positions[t] % block_size;
    }
    device_starts = put(starts);
    device_lengths = put(lengths);
    device_table = put(table);
    device_positions = put(positions);
    device_slots = put(slots);
    qkv = random_halves(num_tokens * kQkv);
    out = random_halves(num_tokens * kQHeads * kDim);
    check_cuda(cudaDeviceSynchronize());
  }

  template <typename T>
  static DeviceMemory put(const std::vector<T>& values) {
    DeviceMemory memory(static_cast<int64_t>(values.size() * sizeof(T)));
    check_cuda(cudaMemcpy(memory.data(), values.data(), values.size() * sizeof(T),
                          cudaMemcpyHostToDevice));
    return memory;
  }

  ForwardInputs inputs() const {
    ForwardInputs in;
    in.num_tokens = num_tokens;
    in.num_seqs = num_seqs;
    in.max_query_len = num_queries;
    in.max_seq_len = lengths[0];
    in.block_table_stride = stride;
    in.positions = device_positions.as<int32_t>();
    in.slot_mapping = device_slots.as<int64_t>();
    in.query_start_loc = device_starts.as<int32_t>();
    in.seq_lens = device_lengths.as<int32_t>();
    in.block_tables = device_table.as<int32_t>();
    in.host_query_start_loc = starts;
    in.host_seq_lens = lengths;
    return in;
  }

  int64_t num_seqs, num_queries, num_tokens, stride;
  std::vector<int32_t> starts, lengths;
  std::unique_ptr<CudaKVCache> cache;
  DeviceMemory device_starts, device_lengths, device_table, device_positions, device_slots, qkv,
      out;
};

AttentionParams llama_params() {
  AttentionParams params;
  params.num_q_heads = kQHeads;
  params.num_kv_heads = kKvHeads;
  params.head_dim = kDim;
  params.scale = 0.088f;
  return params;
}

// One call of attention with and without the plan of the step, which is made once a step.
void bench_attention_batch(const Device& device, const char* name, const AttentionBatch& batch,
                           Work work) {
  Attention attention(device.context);
  const AttentionParams params = llama_params();
  const double us = time_us(device.stream.get(), 10, [&](int) {
    attention.run(device.context, view(batch.qkv, batch.num_tokens, kQkv), batch.inputs(), params,
                  *batch.cache, view(batch.out, batch.num_tokens, kQHeads * kDim));
  });
  print_row(name,
            std::to_string(batch.num_seqs) + " x " + std::to_string(batch.num_queries) +
                " queries, ctx " + std::to_string(batch.lengths[0]),
            us, work);
}

void bench_decode_attention(const Device& device) {
  print_header("decode attention (the plan of the step included)");
  for (const DType kv_dtype : {kType, DType::kFloat8E4M3}) {
    for (const int64_t seqs : {1, 8, 64, 256}) {
      for (const int64_t length : {256, 1024, 4096, 32768}) {
        if (seqs * length > (int64_t{4} << 20)) continue;
        const AttentionBatch batch(device, seqs, 1, length, kv_dtype, 16);
        const double bytes = 2.0 * static_cast<double>(seqs * length * kKvHeads * kDim) *
                             dtype_info(kv_dtype).block_bytes;
        bench_attention_batch(device, kv_dtype == kType ? "decode bf16" : "decode fp8", batch,
                              {bytes, 4.0 * static_cast<double>(seqs * length * kQHeads * kDim)});
      }
    }
  }
  const DeviceMemory table(8192 * kDim * 2);
  fill_floats<<<64, 256>>>(table.as<float>(), 8192 * kDim / 2, 0.5f);
  const RopeTable rope{table.as<float>(), table.as<float>(), kDim, false};
  for (const int64_t tokens : {1, 64, 256, 2048, 8192}) {
    const AttentionBatch batch(device, 1, tokens, tokens, kType, 16);
    const double us = time_us(device.stream.get(), 20, [&](int) {
      rope_and_cache(device.context, view(batch.qkv, tokens, kQkv), rope, batch.inputs(),
                     llama_params(), batch.cache->layer(0));
    });
    print_row("rope_and_cache", std::to_string(tokens) + " tokens", us,
              {2.0 * static_cast<double>(tokens) * (2 * kQkv + 2 * kKvHeads * kDim), 0});
  }
}

void bench_prefill_attention(const Device& device) {
  print_header("prefill attention (blocks of 48 tokens take the warp-level kernel)");
  for (const int64_t block_size : {16, 64, 48}) {
    for (const int64_t length : {512, 2048, 8192}) {
      const AttentionBatch batch(device, 1, length, length, kType, block_size);
      const double pairs = 0.5 * static_cast<double>(length) * static_cast<double>(length + 1);
      bench_attention_batch(device, ("prefill b" + std::to_string(block_size)).c_str(), batch,
                            {0, 4.0 * pairs * kQHeads * kDim});
    }
  }
  for (const int64_t queries : {16, 64, 256}) {
    const AttentionBatch batch(device, 1, queries, 30000, kType, 16);
    const double pairs = static_cast<double>(queries) * 30000.0;
    bench_attention_batch(device, "suffix", batch,
                          {30000.0 * kKvHeads * kDim * 4, 4.0 * pairs * kQHeads * kDim});
  }
}

// Host time is included: packing, two copies, the wait.
void bench_sampling(const Device& device) {
  print_header("sampling (wall time of Sampler::sample, vocabulary 128256)");
  Sampler sampler;
  for (const int64_t rows : {1, 64, 256}) {
    const DeviceMemory logits(rows * kVocab * 4);
    for (const int kind : {0, 1, 2, 3, 4}) {
      SamplingParams params;
      params.temperature = kind == 0 ? 0.0f : 0.8f;
      if (kind >= 2) params.top_k = kind == 2 ? 50 : 0;
      if (kind >= 2) params.top_p = 0.95f;
      if (kind == 4) params.repetition_penalty = 1.1f;
      const float spread = kind == 3 ? 0.1f : 4.0f;
      const char* names[] = {"greedy", "temperature", "top-k 50, top-p", "top-p, flat row",
                             "top-p, penalties"};
      std::vector<int32_t> history(500, 17);
      std::vector<ScheduledSequence> sequences(rows);
      std::vector<SampleRow> sample_rows(rows);
      for (int64_t i = 0; i < rows; ++i) {
        sequences[i].slot = static_cast<int32_t>(i);
        sequences[i].token_ids = history;
        sequences[i].num_prompt_tokens = 500;
        sequences[i].sampling = &params;
        sequences[i].seed = i;
        sample_rows[i] = {&sequences[i], static_cast<int32_t>(i), -1};
      }
      StepResult result;
      result.token_ids.assign(rows, -1);
      result.is_invalid.assign(rows, 0);
      std::vector<double> times;
      for (int i = 0; i < 9; ++i) {
        fill_floats<<<1024, 256>>>(logits.as<float>(), rows * kVocab, spread);
        check_cuda(cudaDeviceSynchronize());
        timespec begin{}, end{};
        clock_gettime(CLOCK_MONOTONIC, &begin);
        sampler.begin_step();
        sampler.sample(device.context, view(logits, rows, kVocab, DType::kFloat32), sample_rows,
                       result);
        sampler.end_step(device.context);
        sampler.wait_step();
        clock_gettime(CLOCK_MONOTONIC, &end);
        times.push_back((end.tv_sec - begin.tv_sec) * 1e6 + (end.tv_nsec - begin.tv_nsec) * 1e-3);
      }
      print_row(names[kind], std::to_string(rows) + " rows", median(times),
                {4.0 * static_cast<double>(rows * kVocab), 0});
    }
  }
}

}  // namespace

}  // namespace octavo::cuda::bench

int main(int argc, char** argv) {
  using namespace octavo::cuda::bench;
  const char* filter = argc > 1 ? argv[1] : "";
  const struct {
    const char* name;
    void (*run)(const Device&);
  } sections[] = {{"copy", bench_copy},
                  {"elementwise", bench_elementwise},
                  {"decode", bench_decode_attention},
                  {"prefill", bench_prefill_attention},
                  {"sampling", bench_sampling},
                  {"stream", bench_stream},
                  {"codes", bench_codes},
                  {"experts", bench_experts},
                  {"gemm", bench_gemm},
                  {"tuned", bench_tuned_gemm}};
  const Device device;
  for (const auto& section : sections) {
    if (std::strstr(section.name, filter) == nullptr) continue;
    try {
      section.run(device);
    } catch (const std::exception& error) {
      std::printf("%s: %s\n", section.name, error.what());
    }
  }
  return 0;
}
