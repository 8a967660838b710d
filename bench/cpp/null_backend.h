// A device that computes nothing in no time, with two steps in flight and graphs: what is left of a
// step is the engine thread's own work.
#pragma once

#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"

namespace octavo::bench {

class NullBackend final : public Backend {
 public:
  DeviceInfo device_info() const override { return {"null", int64_t{1} << 40, int64_t{1} << 40}; }
  DType activation_dtype() const override { return DType::kBFloat16; }
  DType default_kv_dtype() const override { return DType::kBFloat16; }

  std::unique_ptr<DeviceBuffer> allocate(int64_t size_bytes) override {
    return std::make_unique<Buffer>(size_bytes);
  }
  // The one thing that costs the host time on a real device too: the copy to pinned memory.
  void copy_to_device(void* device, const void* host, int64_t size_bytes) override {
    std::memcpy(device, host, size_bytes);
  }
  void copy_to_host(void*, const void*, int64_t) override {}
  void synchronize() override {}

  std::unique_ptr<LinearWeight> create_linear(int64_t out, int64_t in, bool) override {
    return std::make_unique<Weight>(out, in);
  }
  void load_rows(LinearWeight&, int64_t, const WeightView&) override {}
  void load_bias(LinearWeight&, int64_t, const WeightView&) override {}
  int64_t linear_bytes(int64_t, int64_t, DType) const override { return 0; }
  void load_vector(float*, const WeightView&) override {}
  std::unique_ptr<KVCache> create_kv_cache(const KVCacheSpec& spec) override {
    return std::make_unique<Cache>(spec);
  }

  void embed(const LinearWeight&, const int32_t*, TensorView) override {}
  void rms_norm(TensorView, const float*, float, TensorView) override {}
  void add_rms_norm(TensorView, TensorView, const float*, float, TensorView) override {}
  void add(TensorView, TensorView) override {}
  void linear(const LinearWeight&, TensorView, TensorView) override {}
  void rope_and_cache(TensorView, const RopeTable&, const ForwardInputs&, const AttentionParams&,
                      KVCache&) override {}
  void attention(TensorView, const ForwardInputs&, const AttentionParams&, const KVCache&,
                 TensorView) override {}
  void silu_mul(TensorView, TensorView) override {}
  void gelu_tanh_mul(TensorView, TensorView) override {}
  void scale(TensorView, float) override {}
  void soft_cap(TensorView, float) override {}
  void qk_norm(TensorView, const QkNorm&, const AttentionParams&) override {}
  void experts(TensorView, TensorView, const ExpertBank&, const ExpertScratch&,
               TensorView) override {}
  void gather_rows(TensorView, const int32_t*, TensorView) override {}

  int32_t max_steps_in_flight() const override { return 2; }
  void unpack_inputs(const PackedInputs&, const ForwardArrays&) override {}
  void sample(TensorView, std::span<const SampleRow> rows, StepResult& result) override {
    for (const SampleRow& row : rows) {
      result.token_ids[row.batch_row] = 1 + row.batch_row % 100;
      const int32_t num_logprobs = row.sequence->sampling->logprobs;
      if (num_logprobs >= 0) result.logprobs.resize(result.logprobs.size() + 1 + num_logprobs);
    }
  }
  bool supports_graphs() const override { return true; }
  int32_t capture_graph(const std::function<void()>& work) override {
    work();
    return 0;
  }
  void launch_graph(int32_t) override {}

 private:
  struct Buffer final : DeviceBuffer {
    explicit Buffer(int64_t size_bytes) : bytes(new std::byte[size_bytes]), size(size_bytes) {}
    void* data() const override { return bytes.get(); }
    int64_t size_bytes() const override { return size; }
    std::unique_ptr<std::byte[]> bytes;
    int64_t size;
  };
  struct Weight final : LinearWeight {
    Weight(int64_t out, int64_t in) : out(out), in(in) {}
    int64_t out_features() const override { return out; }
    int64_t in_features() const override { return in; }
    int64_t size_bytes() const override { return 0; }
    int64_t out, in;
  };
  struct Cache final : KVCache {
    explicit Cache(const KVCacheSpec& given) : layout(given) {}
    const KVCacheSpec& spec() const override { return layout; }
    KVCacheSpec layout;
  };
};

}  // namespace octavo::bench
