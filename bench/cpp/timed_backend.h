// Forwards every method to another backend and adds up what each operation takes. For backends that
// have computed when they return. The bookkeeping, 0.1 to 1 us a call, is outside the times.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include "backend/backend.h"

namespace octavo::bench {

// What an operation computes and reads, where that is known; a multiplication and an addition are
// two operations.
struct Work {
  double ops = 0.0;
  double bytes = 0.0;
};

// All calls of one method, with weights of one shape where it has a weight.
struct OperationTime {
  std::string_view name;
  int64_t out_features = 0;
  int64_t in_features = 0;
  int64_t num_calls = 0;
  double microseconds = 0.0;
  Work work;
};

// tests/bench/test_timed_backend.py sees to it that no virtual method is left out.
class TimedBackend final : public Backend {
 public:
  explicit TimedBackend(Backend& inner) : inner_(inner) {}

  // What was called since the last clear(), in the order of the first calls.
  const std::deque<OperationTime>& times() const { return times_; }
  void clear() { times_.clear(); }
  // The cache that was made last.
  KVCache& cache() const { return *cache_; }

  DeviceInfo device_info() const override { return inner_.device_info(); }
  DType activation_dtype() const override { return inner_.activation_dtype(); }
  DType residual_dtype() const override { return inner_.residual_dtype(); }
  DType default_kv_dtype() const override { return inner_.default_kv_dtype(); }

  std::unique_ptr<DeviceBuffer> allocate(int64_t size_bytes) override {
    return inner_.allocate(size_bytes);
  }
  void copy_to_device(void* device, const void* host, int64_t size_bytes) override {
    const Timer timer = time("copy_to_device");
    inner_.copy_to_device(device, host, size_bytes);
  }
  void copy_to_host(void* host, const void* device, int64_t size_bytes) override {
    const Timer timer = time("copy_to_host");
    inner_.copy_to_host(host, device, size_bytes);
  }
  void synchronize() override { inner_.synchronize(); }

  std::unique_ptr<LinearWeight> create_linear(int64_t out, int64_t in, bool has_bias) override {
    return inner_.create_linear(out, in, has_bias);
  }
  std::unique_ptr<LinearWeight> create_projection(int64_t out, int64_t in, bool has_bias,
                                                  DType source) override {
    return inner_.create_projection(out, in, has_bias, source);
  }
  std::unique_ptr<LinearWeight> create_experts(int64_t out, int64_t in, int64_t tensor_rows,
                                               DType source) override {
    return inner_.create_experts(out, in, tensor_rows, source);
  }
  void load_rows(LinearWeight& weight, int64_t row_begin, const WeightView& view) override {
    inner_.load_rows(weight, row_begin, view);
  }
  void load_bias(LinearWeight& weight, int64_t row_begin, const WeightView& view) override {
    inner_.load_bias(weight, row_begin, view);
  }
  int64_t linear_bytes(int64_t out, int64_t in, DType source) const override {
    return inner_.linear_bytes(out, in, source);
  }
  int64_t projection_bytes(int64_t out, int64_t in, DType source) const override {
    return inner_.projection_bytes(out, in, source);
  }
  int64_t experts_bytes(int64_t tensor_rows, int64_t in, DType source) const override {
    return inner_.experts_bytes(tensor_rows, in, source);
  }
  void load_vector(float* out, const WeightView& view) override { inner_.load_vector(out, view); }

  std::unique_ptr<LoraBank> create_lora_bank(int64_t in, std::span<const LoraPart> parts,
                                             const LoraLimits& limits) override {
    return inner_.create_lora_bank(in, parts, limits);
  }
  int64_t lora_bank_bytes(int64_t in, std::span<const LoraPart> parts,
                          const LoraLimits& limits) const override {
    return inner_.lora_bank_bytes(in, parts, limits);
  }
  void load_lora(LoraBank& bank, int32_t slot, int64_t part, const LoraView& view) override {
    inner_.load_lora(bank, slot, part, view);
  }
  void clear_lora(LoraBank& bank, int32_t slot) override { inner_.clear_lora(bank, slot); }

  std::unique_ptr<KVCache> create_kv_cache(const KVCacheSpec& spec) override {
    auto cache = inner_.create_kv_cache(spec);
    cache_ = cache.get();
    return cache;
  }

  void embed(const LinearWeight& table, const int32_t* token_ids, TensorView out) override {
    const Timer timer = time("embed");
    inner_.embed(table, token_ids, out);
  }
  void rms_norm(TensorView x, const float* weight, float eps, TensorView out) override {
    const Timer timer = time("rms_norm");
    inner_.rms_norm(x, weight, eps, out);
  }
  void add_rms_norm(TensorView residual, TensorView delta, const float* weight, float eps,
                    TensorView out) override {
    const Timer timer = time("add_rms_norm");
    inner_.add_rms_norm(residual, delta, weight, eps, out);
  }
  void add(TensorView residual, TensorView delta) override {
    const Timer timer = time("add");
    inner_.add(residual, delta);
  }
  void linear(const LinearWeight& weight, TensorView x, TensorView out) override {
    const Timer timer = time("linear", product(weight, x), &weight);
    inner_.linear(weight, x, out);
  }
  void gated_linear(const LinearWeight& weight, TensorView x, TensorView gate_up,
                    TensorView out) override {
    const Timer timer = time("gated_linear", product(weight, x), &weight);
    inner_.gated_linear(weight, x, gate_up, out);
  }
  void gated_mlp(const GatedMlp& mlp, TensorView x, const GatedMlpScratch& scratch,
                 TensorView out) override {
    const Work gate_up = product(mlp.gate_up, x), down = product(mlp.down, x);
    const Timer timer = time("gated_mlp", {gate_up.ops + down.ops, gate_up.bytes + down.bytes});
    inner_.gated_mlp(mlp, x, scratch, out);
  }
  void plan_lora(const int32_t* slots, const int32_t* rows, const LoraPlan& plan) override {
    const Timer timer = time("plan_lora");
    inner_.plan_lora(slots, rows, plan);
  }
  void add_lora(const LoraBank& bank, const LoraPlan& plan, TensorView x, TensorView out) override {
    const Timer timer = time("add_lora");
    inner_.add_lora(bank, plan, x, out);
  }
  void lora_linear(const LinearWeight& weight, const LoraBank& bank, const LoraPlan& plan,
                   TensorView x, TensorView out) override {
    const Timer timer = time("lora_linear", {}, &weight);
    inner_.lora_linear(weight, bank, plan, x, out);
  }
  void rope_and_cache(TensorView qkv, const RopeTable& rope, const ForwardInputs& inputs,
                      const AttentionParams& params, KVCache& cache) override {
    const Timer timer = time("rope_and_cache");
    inner_.rope_and_cache(qkv, rope, inputs, params, cache);
  }
  void attention(TensorView qkv, const ForwardInputs& inputs, const AttentionParams& params,
                 const KVCache& cache, TensorView out) override {
    const Timer timer = time("attention", visible(inputs, params, cache.spec().dtype));
    inner_.attention(qkv, inputs, params, cache, out);
  }
  void silu_mul(TensorView gate_up, TensorView out) override {
    const Timer timer = time("silu_mul");
    inner_.silu_mul(gate_up, out);
  }
  void gelu_tanh_mul(TensorView gate_up, TensorView out) override {
    const Timer timer = time("gelu_tanh_mul");
    inner_.gelu_tanh_mul(gate_up, out);
  }
  void scale(TensorView x, float factor) override {
    const Timer timer = time("scale");
    inner_.scale(x, factor);
  }
  void soft_cap(TensorView x, float cap) override {
    const Timer timer = time("soft_cap");
    inner_.soft_cap(x, cap);
  }
  void qk_norm(TensorView qkv, const QkNorm& norm, const AttentionParams& params) override {
    const Timer timer = time("qk_norm");
    inner_.qk_norm(qkv, norm, params);
  }
  void experts(TensorView x, TensorView router_logits, const ExpertBank& bank,
               const ExpertScratch& scratch, TensorView out) override {
    const Timer timer = time("experts");
    inner_.experts(x, router_logits, bank, scratch, out);
  }
  void gather_rows(TensorView x, const int32_t* indices, TensorView out) override {
    const Timer timer = time("gather_rows");
    inner_.gather_rows(x, indices, out);
  }

  int32_t max_steps_in_flight() const override { return inner_.max_steps_in_flight(); }
  int64_t row_multiple() const override { return inner_.row_multiple(); }
  void begin_step() override { inner_.begin_step(); }
  void end_step() override { inner_.end_step(); }
  void wait_step() override { inner_.wait_step(); }

  void unpack_inputs(const PackedInputs& packed, const ForwardArrays& arrays) override {
    const Timer timer = time("unpack_inputs");
    inner_.unpack_inputs(packed, arrays);
  }
  void sample(TensorView logits, std::span<const SampleRow> rows, StepResult& result) override {
    const auto bytes = static_cast<double>(dtype_bytes(logits.dtype, logits.num_elements()));
    const Timer timer = time("sample", {0.0, bytes});
    inner_.sample(logits, rows, result);
  }

  bool supports_graphs() const override { return inner_.supports_graphs(); }
  int32_t capture_graph(const std::function<void()>& work) override {
    return inner_.capture_graph(work);
  }
  void launch_graph(int32_t id) override {
    const Timer timer = time("launch_graph");
    inner_.launch_graph(id);
  }
  void clear_graphs() override { inner_.clear_graphs(); }

 private:
  using Clock = std::chrono::steady_clock;

  // Adds the time from its making to the end of its scope.
  class [[nodiscard]] Timer {
   public:
    explicit Timer(OperationTime& to) : to_(to), start_(Clock::now()) {}
    Timer(const Timer&) = delete;
    Timer& operator=(const Timer&) = delete;
    ~Timer() {
      to_.microseconds += std::chrono::duration<double, std::micro>(Clock::now() - start_).count();
    }

   private:
    OperationTime& to_;
    const Clock::time_point start_;
  };

  Timer time(std::string_view name, Work work = {}, const LinearWeight* weight = nullptr) {
    const int64_t out = weight == nullptr ? 0 : weight->out_features();
    const int64_t in = weight == nullptr ? 0 : weight->in_features();
    auto at = times_.begin();
    while (at != times_.end() &&
           (at->name != name || at->out_features != out || at->in_features != in)) {
      ++at;
    }
    OperationTime& found = at == times_.end() ? times_.emplace_back(name, out, in) : *at;
    ++found.num_calls;
    found.work.ops += work.ops;
    found.work.bytes += work.bytes;
    return Timer(found);
  }

  static Work product(const LinearWeight& weight, TensorView x) {
    const auto elements = static_cast<double>(weight.out_features() * weight.in_features());
    return {2.0 * elements * static_cast<double>(x.rows()),
            static_cast<double>(weight.size_bytes())};
  }

  // Scores and sums of the keys that each query sees; keys and values of each sequence once.
  static Work visible(const ForwardInputs& inputs, const AttentionParams& params, DType dtype) {
    if (params.sliding_window > 0) return {};
    int64_t pairs = 0, keys = 0;
    for (int64_t s = 0; s < inputs.num_seqs; ++s) {
      const int64_t end = inputs.host_seq_lens[s];
      const int64_t queries = inputs.host_query_start_loc[s + 1] - inputs.host_query_start_loc[s];
      pairs += queries * end - queries * (queries - 1) / 2;
      keys += end;
    }
    return {
        4.0 * static_cast<double>(pairs * params.num_q_heads * params.head_dim),
        static_cast<double>(dtype_bytes(dtype, 2 * keys * params.num_kv_heads * params.head_dim))};
  }

  Backend& inner_;
  std::deque<OperationTime> times_;
  KVCache* cache_ = nullptr;
};

}  // namespace octavo::bench
