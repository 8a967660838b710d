// The CPU implementation of the device operations. Activations are float32.
#pragma once

#include <memory>

#include "backend/backend.h"
#include "cpu/cpu_features.h"
#include "cpu/experts.h"
#include "cpu/fused_mlp.h"
#include "cpu/kernels.h"
#include "cpu/linear.h"
#include "cpu/lora.h"
#include "cpu/packed_weight.h"
#include "cpu/paged_attention.h"
#include "cpu/sampler.h"
#include "cpu/thread_pool.h"
#include "cpu/weight_arena.h"

namespace octavo::cpu {

// Numerics: norms, activation functions, rotary embedding, softmax and every sum are float32. A
// GEMM multiplies weights as they are stored by activations in float32, except that activations are
// first rounded to bfloat16 against bfloat16 weights on AVX-512 and AMX, and to int8 with a scale
// for each 32 of them against weights that stay quantised; on AMX steps of 16 rows and more round
// both to bfloat16 instead (Kernels::min_widen_rows), with BackendOptions::batch_invariant all do.
// Keys and values are rounded to the
// cache's type when written and widened when read; on AMX the queries and the probabilities that
// meet a bfloat16 cache are rounded to bfloat16 too. But for that number of rows results are
// bitwise independent of the batch, and they are of the number of threads.
class CpuBackend final : public Backend {
 public:
  // Throws ConfigError.
  explicit CpuBackend(const BackendOptions& options);

  DeviceInfo device_info() const override;
  DType activation_dtype() const override { return DType::kFloat32; }
  DType default_kv_dtype() const override { return policy_.weight_dtype; }

  std::unique_ptr<DeviceBuffer> allocate(int64_t size_bytes) override;
  void copy_to_device(void* device, const void* host, int64_t size_bytes) override;
  void copy_to_host(void* host, const void* device, int64_t size_bytes) override;
  void synchronize() override {}

  std::unique_ptr<LinearWeight> create_linear(int64_t out_features, int64_t in_features,
                                              bool has_bias) override;
  void load_rows(LinearWeight& weight, int64_t row_begin, const WeightView& view) override;
  void load_bias(LinearWeight& weight, int64_t row_begin, const WeightView& view) override;
  int64_t linear_bytes(int64_t out_features, int64_t in_features,
                       DType source_dtype) const override;
  void load_vector(float* out, const WeightView& view) override;
  std::unique_ptr<LoraBank> create_lora_bank(int64_t in_features, std::span<const LoraPart> parts,
                                             const LoraLimits& limits) override;
  int64_t lora_bank_bytes(int64_t in_features, std::span<const LoraPart> parts,
                          const LoraLimits& limits) const override;
  void load_lora(LoraBank& bank, int32_t slot, int64_t part, const LoraView& view) override;
  void clear_lora(LoraBank& bank, int32_t slot) override;
  std::unique_ptr<KVCache> create_kv_cache(const KVCacheSpec& spec) override;

  void embed(const LinearWeight& table, const int32_t* token_ids, TensorView out) override;
  void rms_norm(TensorView x, const float* weight, float eps, TensorView out) override;
  void add_rms_norm(TensorView residual, TensorView delta, const float* weight, float eps,
                    TensorView out) override;
  void add(TensorView residual, TensorView delta) override;
  void linear(const LinearWeight& weight, TensorView x, TensorView out) override;
  void gated_linear(const LinearWeight& weight, TensorView x, TensorView gate_up,
                    TensorView out) override;
  void gated_mlp(const GatedMlp& mlp, TensorView x, const GatedMlpScratch& scratch,
                 TensorView out) override;
  void plan_lora(const int32_t* slots, const int32_t* rows, const LoraPlan& plan) override;
  void add_lora(const LoraBank& bank, const LoraPlan& plan, TensorView x, TensorView out) override;
  void rope_and_cache(TensorView qkv, const RopeTable& rope, const ForwardInputs& inputs,
                      const AttentionParams& params, KVCache& cache) override;
  void attention(TensorView qkv, const ForwardInputs& inputs, const AttentionParams& params,
                 const KVCache& cache, TensorView out) override;
  void silu_mul(TensorView gate_up, TensorView out) override;
  void gelu_tanh_mul(TensorView gate_up, TensorView out) override;
  void scale(TensorView x, float factor) override;
  void soft_cap(TensorView x, float cap) override;
  void qk_norm(TensorView qkv, const QkNorm& norm, const AttentionParams& params) override;
  void experts(TensorView x, TensorView router_logits, const ExpertBank& bank,
               const ExpertScratch& scratch, TensorView out) override;
  void gather_rows(TensorView x, const int32_t* indices, TensorView out) override;
  void sample(TensorView logits, std::span<const SampleRow> rows, StepResult& result) override;

 private:
  void gated_mul(FusedMlp::Function function, TensorView gate_up, TensorView out);

  // Calls body(row) for every row, on one thread when there is little to do.
  template <typename Body>
  void for_rows(int64_t rows, int64_t row_floats, const Body& body);

  const Isa isa_;
  const WeightPolicy policy_;
  const Kernels kernels_;
  WeightArena arena_;
  ThreadPool pool_;
  Linear linear_;
  FusedMlp fused_mlp_;
  LoraLinear lora_linear_;
  Experts experts_;
  PagedAttention attention_;
  Sampler sampler_;
};

}  // namespace octavo::cpu
