// The backend interface in plain float32 loops: the twin that models and runners are tested with.
// It counts allocations and remembers which rows an operation saw.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "base/dequantize.h"

namespace octavo::testing {

struct HostBuffer final : DeviceBuffer {
  explicit HostBuffer(int64_t size_bytes) : bytes(size_bytes) {}
  void* data() const override { return const_cast<std::byte*>(bytes.data()); }
  int64_t size_bytes() const override { return std::ssize(bytes); }
  std::vector<std::byte> bytes;
};

struct ReferenceLinear final : LinearWeight {
  ReferenceLinear(int64_t out, int64_t in, bool has_bias)
      : out(out), in(in), values(out * in), bias(has_bias ? out : 0) {}
  int64_t out_features() const override { return out; }
  int64_t in_features() const override { return in; }
  int64_t size_bytes() const override { return (out * in + std::ssize(bias)) * 4; }
  int64_t out, in;
  std::vector<float> values;
  std::vector<float> bias;
};

struct ReferenceLoraBank final : LoraBank {
  struct Pair {
    float scale = 0.0f;
    int64_t rank = 0;
    std::vector<float> a, b;
  };
  ReferenceLoraBank(int64_t in, std::span<const LoraPart> parts, const LoraLimits& limits)
      : in(in), parts(parts.begin(), parts.end()), pairs(limits.num_slots * parts.size()) {}
  int64_t size_bytes() const override { return 0; }
  Pair& pair(int32_t slot, int64_t part) { return pairs[slot * parts.size() + part]; }
  int64_t in;
  std::vector<LoraPart> parts;
  std::vector<Pair> pairs;
};

struct ReferenceCache final : KVCache {
  explicit ReferenceCache(const KVCacheSpec& s)
      : layout(s), values(s.num_blocks * s.block_bytes() / 4) {}
  const KVCacheSpec& spec() const override { return layout; }
  float* at(int64_t layer, int64_t is_value, int64_t slot, int64_t head) {
    const int64_t slots = layout.num_blocks * layout.block_size;
    return values.data() +
           (((layer * 2 + is_value) * slots + slot) * layout.num_kv_heads + head) * layout.head_dim;
  }
  KVCacheSpec layout;
  std::vector<float> values;
};

class ReferenceBackend : public Backend {
 public:
  int64_t free_bytes = int64_t{1} << 40;
  int64_t total_bytes = int64_t{1} << 40;
  int num_allocations = 0;
  std::vector<int64_t> linear_rows;  // rows of each linear() since it was cleared
  std::vector<int64_t> sample_rows;  // rows of each sample()

  DeviceInfo device_info() const override { return {"reference", total_bytes, free_bytes}; }
  DType activation_dtype() const override { return DType::kFloat32; }
  DType default_kv_dtype() const override { return DType::kFloat32; }

  std::unique_ptr<DeviceBuffer> allocate(int64_t size_bytes) override {
    ++num_allocations;
    return std::make_unique<HostBuffer>(size_bytes);
  }
  void copy_to_device(void* device, const void* host, int64_t size_bytes) override {
    std::memcpy(device, host, size_bytes);
  }
  void copy_to_host(void* host, const void* device, int64_t size_bytes) override {
    std::memcpy(host, device, size_bytes);
  }
  void synchronize() override {}

  std::unique_ptr<LinearWeight> create_linear(int64_t out_features, int64_t in_features,
                                              bool has_bias) override {
    return std::make_unique<ReferenceLinear>(out_features, in_features, has_bias);
  }
  void load_rows(LinearWeight& weight, int64_t row_begin, const WeightView& view) override {
    auto& linear = static_cast<ReferenceLinear&>(weight);
    dequantize(view.dtype, view.data, view.rows * view.cols,
               linear.values.data() + row_begin * linear.in);
  }
  void load_bias(LinearWeight& weight, int64_t row_begin, const WeightView& view) override {
    auto& linear = static_cast<ReferenceLinear&>(weight);
    dequantize(view.dtype, view.data, view.cols, linear.bias.data() + row_begin);
  }
  int64_t linear_bytes(int64_t out_features, int64_t in_features, DType source) const override {
    return dtype_bytes(source, out_features * in_features);
  }
  void load_vector(float* out, const WeightView& view) override {
    dequantize(view.dtype, view.data, view.cols, out);
  }
  std::unique_ptr<KVCache> create_kv_cache(const KVCacheSpec& spec) override {
    ++num_allocations;
    return std::make_unique<ReferenceCache>(spec);
  }

  void embed(const LinearWeight& table, const int32_t* token_ids, TensorView out) override {
    const auto& linear = static_cast<const ReferenceLinear&>(table);
    for (int64_t t = 0; t < out.rows(); ++t) {
      const float* row = linear.values.data() + token_ids[t] * linear.in;
      std::copy(row, row + linear.in, row_of(out, t));
    }
  }
  void rms_norm(TensorView x, const float* weight, float eps, TensorView out) override {
    for (int64_t t = 0; t < x.rows(); ++t) {
      double squares = 0.0;
      for (int64_t i = 0; i < x.cols(); ++i) squares += double{row_of(x, t)[i]} * row_of(x, t)[i];
      const double scale = 1.0 / std::sqrt(squares / static_cast<double>(x.cols()) + eps);
      for (int64_t i = 0; i < x.cols(); ++i) {
        row_of(out, t)[i] = static_cast<float>(row_of(x, t)[i] * scale) * weight[i];
      }
    }
  }
  void add_rms_norm(TensorView residual, TensorView delta, const float* weight, float eps,
                    TensorView out) override {
    add(residual, delta);
    rms_norm(residual, weight, eps, out);
  }
  void add(TensorView residual, TensorView delta) override {
    for (int64_t t = 0; t < residual.rows(); ++t) {
      for (int64_t i = 0; i < residual.cols(); ++i) row_of(residual, t)[i] += row_of(delta, t)[i];
    }
  }
  void linear(const LinearWeight& weight, TensorView x, TensorView out) override {
    const auto& linear = static_cast<const ReferenceLinear&>(weight);
    linear_rows.push_back(x.rows());
    for (int64_t t = 0; t < x.rows(); ++t) {
      for (int64_t o = 0; o < linear.out; ++o) {
        double sum = linear.bias.empty() ? 0.0 : linear.bias[o];
        for (int64_t i = 0; i < linear.in; ++i) {
          sum += double{row_of(x, t)[i]} * linear.values[o * linear.in + i];
        }
        row_of(out, t)[o] = static_cast<float>(sum);
      }
    }
  }
  std::unique_ptr<LoraBank> create_lora_bank(int64_t in_features, std::span<const LoraPart> parts,
                                             const LoraLimits& limits) override {
    return std::make_unique<ReferenceLoraBank>(in_features, parts, limits);
  }
  void load_lora(LoraBank& bank, int32_t slot, int64_t part, const LoraView& view) override {
    ReferenceLoraBank::Pair& pair = static_cast<ReferenceLoraBank&>(bank).pair(slot, part);
    pair.scale = view.scale;
    pair.rank = view.a.rows;
    pair.a.resize(view.a.rows * view.a.cols);
    pair.b.resize(view.b.rows * view.b.cols);
    dequantize(view.a.dtype, view.a.data, std::ssize(pair.a), pair.a.data());
    dequantize(view.b.dtype, view.b.data, std::ssize(pair.b), pair.b.data());
  }
  void clear_lora(LoraBank& bank, int32_t slot) override {
    auto& reference = static_cast<ReferenceLoraBank&>(bank);
    for (size_t part = 0; part < reference.parts.size(); ++part) reference.pair(slot, part) = {};
  }
  // The plan is the slot of each row.
  void plan_lora(const int32_t* slots, const int32_t* rows, const LoraPlan& plan) override {
    for (int64_t i = 0; i < plan.num_rows; ++i) {
      plan.memory[i] = slots[rows == nullptr ? i : rows[i]];
    }
  }
  void add_lora(const LoraBank& bank, const LoraPlan& plan, TensorView x, TensorView out) override {
    auto& reference = const_cast<ReferenceLoraBank&>(static_cast<const ReferenceLoraBank&>(bank));
    for (int64_t t = 0; t < plan.num_rows; ++t) {
      if (plan.memory[t] < 0) continue;
      for (size_t p = 0; p < reference.parts.size(); ++p) {
        add_pair(reference.pair(plan.memory[t], p), row_of(x, t), x.cols(),
                 row_of(out, t) + reference.parts[p].row_begin, reference.parts[p].num_rows);
      }
    }
  }
  void rope_and_cache(TensorView qkv, const RopeTable& rope, const ForwardInputs& inputs,
                      const AttentionParams& params, KVCache& cache) override {
    auto& store = static_cast<ReferenceCache&>(cache);
    const int64_t rotated_heads = params.num_q_heads + params.num_kv_heads;
    for (int64_t t = 0; t < qkv.rows(); ++t) {
      float* row = row_of(qkv, t);
      for (int64_t h = 0; h < rotated_heads; ++h) {
        rotate(row + h * params.head_dim, rope, inputs.positions[t]);
      }
      for (int64_t h = 0; h < params.num_kv_heads; ++h) {
        const float* k = row + (params.num_q_heads + h) * params.head_dim;
        const float* v = k + params.num_kv_heads * params.head_dim;
        const int64_t slot = inputs.slot_mapping[t];
        if (slot < 0) continue;
        std::copy(k, k + params.head_dim, store.at(params.layer, 0, slot, h));
        std::copy(v, v + params.head_dim, store.at(params.layer, 1, slot, h));
      }
    }
  }
  void attention(TensorView qkv, const ForwardInputs& inputs, const AttentionParams& params,
                 const KVCache& cache, TensorView out) override {
    for (int64_t s = 0; s < inputs.num_seqs; ++s) {
      for (int64_t t = inputs.query_start_loc[s]; t < inputs.query_start_loc[s + 1]; ++t) {
        for (int64_t h = 0; h < params.num_q_heads; ++h) {
          attend(row_of(qkv, t) + h * params.head_dim, s, t, h, inputs, params,
                 const_cast<KVCache&>(cache), row_of(out, t) + h * params.head_dim);
        }
      }
    }
  }
  void silu_mul(TensorView gate_up, TensorView out) override {
    gated_mul(gate_up, out, [](double x) { return x / (1.0 + std::exp(-x)); });
  }
  void gelu_tanh_mul(TensorView gate_up, TensorView out) override {
    gated_mul(gate_up, out, [](double x) {
      return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    });
  }
  void scale(TensorView x, float factor) override {
    for (int64_t i = 0; i < x.num_elements(); ++i) x.as<float>()[i] *= factor;
  }
  void soft_cap(TensorView x, float cap) override {
    for (int64_t i = 0; i < x.num_elements(); ++i) {
      x.as<float>()[i] = cap * std::tanh(x.as<float>()[i] / cap);
    }
  }
  void qk_norm(TensorView qkv, const QkNorm& norm, const AttentionParams& params) override {
    const int64_t q_size = params.num_q_heads * params.head_dim;
    const int64_t k_size = params.num_kv_heads * params.head_dim;
    for (int64_t t = 0; t < qkv.rows(); ++t) {
      for (int64_t i = 0; i < q_size; i += norm.q_run) {
        const TensorView run =
            TensorView::matrix(row_of(qkv, t) + i, DType::kFloat32, 1, norm.q_run);
        rms_norm(run, norm.q_weight, norm.eps, run);
      }
      for (int64_t i = 0; i < k_size; i += norm.k_run) {
        const TensorView run =
            TensorView::matrix(row_of(qkv, t) + q_size + i, DType::kFloat32, 1, norm.k_run);
        rms_norm(run, norm.k_weight, norm.eps, run);
      }
    }
  }
  // Token by token, expert by expert.
  void experts(TensorView x, TensorView router_logits, const ExpertBank& bank,
               const ExpertScratch& /*scratch*/, TensorView out) override {
    for (int64_t t = 0; t < x.rows(); ++t) {
      const float* logits = row_of(router_logits, t);
      std::vector<int64_t> order(bank.num_experts);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(),
                       [&](int64_t a, int64_t b) { return logits[a] > logits[b]; });
      const int64_t count = bank.renormalize ? bank.experts_per_token : bank.num_experts;
      double total = 0.0;
      for (int64_t i = 0; i < count; ++i) total += std::exp(double{logits[order[i]]});
      std::fill_n(row_of(out, t), out.cols(), 0.0f);
      for (int64_t i = 0; i < bank.experts_per_token; ++i) {
        const double weight = std::exp(double{logits[order[i]]}) / total;
        const std::vector<float> y = expert_output(row_of(x, t), bank, order[i]);
        for (int64_t c = 0; c < out.cols(); ++c) {
          row_of(out, t)[c] += static_cast<float>(weight * y[c]);
        }
      }
    }
  }
  void gather_rows(TensorView x, const int32_t* indices, TensorView out) override {
    for (int64_t i = 0; i < out.rows(); ++i) {
      std::memcpy(out.row_range(i, 1).data, x.row_range(indices[i], 1).data,
                  dtype_bytes(x.dtype, x.cols()));
    }
  }
  // Greedy; log-probabilities of the chosen token, then of the k best.
  void sample(TensorView logits, std::span<const SampleRow> rows, StepResult& result) override {
    sample_rows.push_back(logits.rows());
    for (size_t i = 0; i < rows.size(); ++i) {
      const float* row = row_of(logits, static_cast<int64_t>(i));
      const std::span<const float> values(row, logits.cols());
      const bool is_prompt = rows[i].target_id >= 0;
      const SamplingParams& sampling = *rows[i].sequence->sampling;
      int32_t id = rows[i].target_id;
      if (!is_prompt) {
        id = static_cast<int32_t>(std::max_element(values.begin(), values.end()) - values.begin());
        result.token_ids[rows[i].batch_row] = id;
        result.is_invalid[rows[i].batch_row] = std::isnan(values[0]) ? 1 : 0;
      }
      const int32_t k = is_prompt ? sampling.prompt_logprobs : sampling.logprobs;
      append_entries(values, id, k, is_prompt ? result.prompt_logprobs : result.logprobs);
    }
  }

 protected:
  static float* row_of(const TensorView& view, int64_t row) {
    return view.as<float>() + row * view.row_stride;
  }

 private:
  static void add_pair(const ReferenceLoraBank::Pair& pair, const float* x, int64_t in, float* out,
                       int64_t out_features) {
    for (int64_t r = 0; r < pair.rank; ++r) {
      double product = 0.0;
      for (int64_t i = 0; i < in; ++i) product += double{x[i]} * pair.a[r * in + i];
      for (int64_t o = 0; o < out_features; ++o) {
        out[o] += static_cast<float>(pair.scale * product * pair.b[o * pair.rank + r]);
      }
    }
  }

  template <typename Function>
  static void gated_mul(TensorView gate_up, TensorView out, const Function& activation) {
    for (int64_t t = 0; t < out.rows(); ++t) {
      for (int64_t i = 0; i < out.cols(); ++i) {
        const float* gate = row_of(gate_up, t);
        row_of(out, t)[i] = static_cast<float>(activation(gate[i]) * gate[out.cols() + i]);
      }
    }
  }

  // Rows [begin, begin + rows) of a weight times x.
  static std::vector<float> multiply(const LinearWeight& weight, int64_t begin, int64_t rows,
                                     const float* x) {
    const auto& linear = static_cast<const ReferenceLinear&>(weight);
    std::vector<float> y(rows);
    for (int64_t r = 0; r < rows; ++r) {
      double sum = 0.0;
      for (int64_t i = 0; i < linear.in; ++i) {
        sum += double{x[i]} * linear.values[(begin + r) * linear.in + i];
      }
      y[r] = static_cast<float>(sum);
    }
    return y;
  }

  static std::vector<float> expert_output(const float* x, const ExpertBank& bank, int64_t expert) {
    const int64_t inner = bank.down.in_features();
    const int64_t hidden = bank.gate_up.in_features();
    std::vector<float> gate_up = multiply(bank.gate_up, expert * 2 * inner, 2 * inner, x);
    for (int64_t i = 0; i < inner; ++i) {
      gate_up[i] *= gate_up[inner + i] / (1.0f + std::exp(-gate_up[i]));
    }
    return multiply(bank.down, expert * hidden, hidden, gate_up.data());
  }

  static void rotate(float* head, const RopeTable& rope, int32_t position) {
    const int64_t half = rope.rotary_dim / 2;
    for (int64_t i = 0; i < half; ++i) {
      float& a = head[rope.interleaved ? 2 * i : i];
      float& b = head[rope.interleaved ? 2 * i + 1 : i + half];
      const float cos = rope.cos[position * half + i];
      const float sin = rope.sin[position * half + i];
      const float rotated = a * cos - b * sin;
      b = b * cos + a * sin;
      a = rotated;
    }
  }

  static void attend(const float* q, int64_t s, int64_t t, int64_t h, const ForwardInputs& inputs,
                     const AttentionParams& params, KVCache& cache, float* out) {
    auto& store = static_cast<ReferenceCache&>(cache);
    const int64_t block_size = store.layout.block_size;
    const int64_t kv_head = h / (params.num_q_heads / params.num_kv_heads);
    const int32_t* table = inputs.block_tables + s * inputs.block_table_stride;
    std::vector<double> scores;
    for (int64_t p = 0; p <= inputs.positions[t]; ++p) {
      const int64_t slot = table[p / block_size] * block_size + p % block_size;
      const float* k = store.at(params.layer, 0, slot, kv_head);
      double dot = 0.0;
      for (int64_t d = 0; d < params.head_dim; ++d) dot += double{q[d]} * k[d];
      scores.push_back(dot * params.scale);
    }
    const double most = *std::max_element(scores.begin(), scores.end());
    double total = 0.0;
    for (double& score : scores) total += score = std::exp(score - most);
    for (int64_t d = 0; d < params.head_dim; ++d) {
      double sum = 0.0;
      for (int64_t p = 0; p < std::ssize(scores); ++p) {
        const int64_t slot = table[p / block_size] * block_size + p % block_size;
        sum += scores[p] / total * store.at(params.layer, 1, slot, kv_head)[d];
      }
      out[d] = static_cast<float>(sum);
    }
  }

  static void append_entries(std::span<const float> logits, int32_t id, int32_t k,
                             std::vector<LogprobEntry>& out) {
    if (k < 0) return;
    double total = 0.0;
    for (float logit : logits) total += std::exp(double{logit});
    std::vector<int32_t> order(logits.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
    const auto entry = [&](int32_t token) {
      const auto rank = std::find(order.begin(), order.end(), token) - order.begin() + 1;
      return LogprobEntry{token, static_cast<float>(logits[token] - std::log(total)),
                          static_cast<int32_t>(rank)};
    };
    out.push_back(entry(id));
    for (int32_t i = 0; i < k; ++i) out.push_back(entry(order[i]));
  }
};

}  // namespace octavo::testing
