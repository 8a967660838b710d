#include "cpu/cpu_backend.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "backend/cpu_backend.h"
#include "base/check.h"
#include "base/dequantize.h"
#include "cpu/host_memory.h"
#include "cpu/packed_weight.h"
#include "cpu/zero_pages.h"

namespace octavo::cpu {
namespace {

class HostBuffer final : public DeviceBuffer {
 public:
  explicit HostBuffer(int64_t size_bytes) : pages_(size_bytes) {}
  void* data() const override { return pages_.data(); }
  int64_t size_bytes() const override { return pages_.size_bytes(); }

 private:
  ZeroPages pages_;
};

const PackedWeight& packed(const LinearWeight& weight) {
  return static_cast<const PackedWeight&>(weight);
}
PackedWeight& packed(LinearWeight& weight) { return static_cast<PackedWeight&>(weight); }

float* row_of(const TensorView& view, int64_t row) {
  return view.as<float>() + row * view.row_stride;
}

void check_float32(std::initializer_list<TensorView> views) {
  for (const TensorView& view : views) {
    check(view.dtype == DType::kFloat32 && view.rank == 2, "a float32 matrix is expected");
  }
}

// One way to multiply quantised panels, whatever the number of rows, where there are two.
Kernels choose_kernels(Isa isa, bool batch_invariant) {
  Kernels kernels = kernels_for(isa);
  if (batch_invariant) kernels.min_widen_rows = 0;
  return kernels;
}

}  // namespace

CpuBackend::CpuBackend(const BackendOptions& options)
    : isa_(choose_isa(options.cpu_isa)),
      policy_(weight_policy(options)),
      kernels_(choose_kernels(isa_, options.batch_invariant)),
      pool_(options.num_threads),
      linear_(kernels_, pool_),
      fused_mlp_(kernels_, pool_, linear_),
      lora_linear_(kernels_, pool_),
      experts_(kernels_, pool_),
      attention_(kernels_, pool_),
      sampler_(kernels_, pool_) {}

DeviceInfo CpuBackend::device_info() const {
  const HostMemory memory = host_memory();
  const int threads = pool_.num_threads();
  return {"cpu (" + std::string(isa_name(isa_)) + ", " + std::to_string(threads) +
              (threads == 1 ? " thread)" : " threads)"),
          memory.total_bytes, memory.free_bytes};
}

std::unique_ptr<DeviceBuffer> CpuBackend::allocate(int64_t size_bytes) {
  return std::make_unique<HostBuffer>(size_bytes);
}

void CpuBackend::copy_to_device(void* device, const void* host, int64_t size_bytes) {
  if (size_bytes > 0) std::memcpy(device, host, static_cast<size_t>(size_bytes));
}

void CpuBackend::copy_to_host(void* host, const void* device, int64_t size_bytes) {
  if (size_bytes > 0) std::memcpy(host, device, static_cast<size_t>(size_bytes));
}

std::unique_ptr<LinearWeight> CpuBackend::create_linear(int64_t out_features, int64_t in_features,
                                                        bool has_bias) {
  return std::make_unique<PackedWeight>(out_features, in_features, has_bias);
}

void CpuBackend::load_rows(LinearWeight& weight, int64_t row_begin, const WeightView& view) {
  packed(weight).load_rows({kernels_, policy_, arena_}, row_begin, view);
}

void CpuBackend::load_bias(LinearWeight& weight, int64_t row_begin, const WeightView& view) {
  packed(weight).load_bias(row_begin, view);
}

int64_t CpuBackend::linear_bytes(int64_t out_features, int64_t in_features,
                                 DType source_dtype) const {
  const int64_t num_panels = (out_features + kPanelRows - 1) / kPanelRows;
  return num_panels * panel_bytes(policy_.format_for(source_dtype, in_features), in_features);
}

void CpuBackend::load_vector(float* out, const WeightView& view) {
  dequantize(view.dtype, view.data, view.rows * view.cols, out);
}

std::unique_ptr<LoraBank> CpuBackend::create_lora_bank(int64_t in_features,
                                                       std::span<const LoraPart> parts,
                                                       const LoraLimits& limits) {
  return std::make_unique<CpuLoraBank>(policy_.plain_format(), in_features, parts, limits);
}

int64_t CpuBackend::lora_bank_bytes(int64_t in_features, std::span<const LoraPart> parts,
                                    const LoraLimits& limits) const {
  return CpuLoraBank::planned_bytes(policy_.plain_format(), in_features, parts, limits);
}

void CpuBackend::load_lora(LoraBank& bank, int32_t slot, int64_t part, const LoraView& view) {
  static_cast<CpuLoraBank&>(bank).load(kernels_, slot, part, view);
}

void CpuBackend::clear_lora(LoraBank& bank, int32_t slot) {
  static_cast<CpuLoraBank&>(bank).clear(slot);
}

std::unique_ptr<KVCache> CpuBackend::create_kv_cache(const KVCacheSpec& spec) {
  return std::make_unique<KVMemory>(spec);
}

template <typename Body>
void CpuBackend::for_rows(int64_t rows, int64_t row_floats, const Body& body) {
  // A task of this many floats takes about as long as handing it to another thread.
  constexpr int64_t kFloatsPerTask = 8192;
  pool_.for_rows(rows, std::max<int64_t>(1, kFloatsPerTask / std::max<int64_t>(1, row_floats)),
                 body);
}

void CpuBackend::embed(const LinearWeight& table, const int32_t* token_ids, TensorView out) {
  check_float32({out});
  const PackedWeight& weight = packed(table);
  for (int64_t r = 0; r < out.rows(); ++r) {
    check(token_ids[r] >= 0 && token_ids[r] < weight.out_features(), "token id outside the table");
  }
  for_rows(out.rows(), 8 * out.cols(), [&](int64_t r) {
    const PanelSegment& segment = weight.segment_of(token_ids[r]);
    const int64_t row = token_ids[r] - segment.row_begin;
    kernels_.unpack_row[static_cast<int>(segment.format)](
        segment.panel(row / kPanelRows), row % kPanelRows, weight.in_features(), row_of(out, r));
  });
}

void CpuBackend::rms_norm(TensorView x, const float* weight, float eps, TensorView out) {
  check_float32({x, out});
  for_rows(x.rows(), x.cols(), [&](int64_t r) {
    kernels_.rms_norm(row_of(x, r), weight, eps, x.cols(), row_of(out, r));
  });
}

void CpuBackend::add_rms_norm(TensorView residual, TensorView delta, const float* weight, float eps,
                              TensorView out) {
  check_float32({residual, delta, out});
  for_rows(residual.rows(), residual.cols(), [&](int64_t r) {
    kernels_.add(row_of(residual, r), row_of(delta, r), residual.cols());
    kernels_.rms_norm(row_of(residual, r), weight, eps, residual.cols(), row_of(out, r));
  });
}

void CpuBackend::add(TensorView residual, TensorView delta) {
  check_float32({residual, delta});
  for_rows(residual.rows(), residual.cols(), [&](int64_t r) {
    kernels_.add(row_of(residual, r), row_of(delta, r), residual.cols());
  });
}

void CpuBackend::linear(const LinearWeight& weight, TensorView x, TensorView out) {
  linear_.run(packed(weight), x, out);
}

void CpuBackend::gated_linear(const LinearWeight& weight, TensorView x, TensorView gate_up,
                              TensorView out) {
  if (!fused_mlp_.multiply_gate_up(packed(weight), kernels_.silu_mul, x, out)) {
    Backend::gated_linear(weight, x, gate_up, out);
  }
}

void CpuBackend::gated_mlp(const GatedMlp& mlp, TensorView x, const GatedMlpScratch& scratch,
                           TensorView out) {
  const FusedMlp::Function function =
      mlp.function == GatedFunction::kSilu ? kernels_.silu_mul : kernels_.gelu_tanh_mul;
  if (!fused_mlp_.run(packed(mlp.gate_up), function, packed(mlp.down), x, scratch.gated, out)) {
    Backend::gated_mlp(mlp, x, scratch, out);
  }
}

void CpuBackend::plan_lora(const int32_t* slots, const int32_t* rows, const LoraPlan& plan) {
  LoraLinear::plan(slots, rows, plan);
}

void CpuBackend::add_lora(const LoraBank& bank, const LoraPlan& plan, TensorView x,
                          TensorView out) {
  lora_linear_.add(static_cast<const CpuLoraBank&>(bank), plan, x, out);
}

void CpuBackend::rope_and_cache(TensorView qkv, const RopeTable& rope, const ForwardInputs& inputs,
                                const AttentionParams& params, KVCache& cache) {
  attention_.rope_and_cache(qkv, rope, inputs, params, static_cast<KVMemory&>(cache));
}

void CpuBackend::attention(TensorView qkv, const ForwardInputs& inputs,
                           const AttentionParams& params, const KVCache& cache, TensorView out) {
  attention_.run(qkv, inputs, params, static_cast<const KVMemory&>(cache), out);
}

void CpuBackend::gated_mul(FusedMlp::Function function, TensorView gate_up, TensorView out) {
  check_float32({gate_up, out});
  const int64_t size = out.cols();
  check(gate_up.cols() == 2 * size, "gate_up is not twice as wide as out");
  // The exponential makes a row of this cost as much as one several times as wide.
  for_rows(out.rows(), 4 * size, [&](int64_t r) {
    function(row_of(gate_up, r), row_of(gate_up, r) + size, size, row_of(out, r));
  });
}

void CpuBackend::silu_mul(TensorView gate_up, TensorView out) {
  gated_mul(kernels_.silu_mul, gate_up, out);
}

void CpuBackend::gelu_tanh_mul(TensorView gate_up, TensorView out) {
  gated_mul(kernels_.gelu_tanh_mul, gate_up, out);
}

void CpuBackend::scale(TensorView x, float factor) {
  check_float32({x});
  for_rows(x.rows(), x.cols(), [&](int64_t r) { kernels_.scale(row_of(x, r), factor, x.cols()); });
}

void CpuBackend::soft_cap(TensorView x, float cap) {
  check_float32({x});
  for_rows(x.rows(), 4 * x.cols(),
           [&](int64_t r) { kernels_.soft_cap(row_of(x, r), cap, x.cols()); });
}

void CpuBackend::qk_norm(TensorView qkv, const QkNorm& norm, const AttentionParams& params) {
  check_float32({qkv});
  const int64_t q_size = params.num_q_heads * params.head_dim;
  const int64_t k_size = params.num_kv_heads * params.head_dim;
  check(q_size % norm.q_run == 0 && k_size % norm.k_run == 0, "qk_norm: runs do not divide heads");
  for_rows(qkv.rows(), q_size + k_size, [&](int64_t r) {
    float* q = row_of(qkv, r);
    for (float* run = q; run < q + q_size; run += norm.q_run) {
      kernels_.rms_norm(run, norm.q_weight, norm.eps, norm.q_run, run);
    }
    float* k = q + q_size;
    for (float* run = k; run < k + k_size; run += norm.k_run) {
      kernels_.rms_norm(run, norm.k_weight, norm.eps, norm.k_run, run);
    }
  });
}

void CpuBackend::experts(TensorView x, TensorView router_logits, const ExpertBank& bank,
                         const ExpertScratch& scratch, TensorView out) {
  check_float32({x, router_logits, scratch.gate_up, scratch.gated, scratch.out, out});
  experts_.run(x, router_logits, bank, scratch, out);
}

void CpuBackend::gather_rows(TensorView x, const int32_t* indices, TensorView out) {
  check_float32({x, out});
  for_rows(out.rows(), out.cols(), [&](int64_t r) {
    std::memcpy(row_of(out, r), row_of(x, indices[r]), out.cols() * sizeof(float));
  });
}

void CpuBackend::sample(TensorView logits, std::span<const SampleRow> rows, StepResult& result) {
  sampler_.sample(logits, rows, result);
}

}  // namespace octavo::cpu

namespace octavo {

std::unique_ptr<Backend> create_cpu_backend(const BackendOptions& options) {
  return std::make_unique<cpu::CpuBackend>(options);
}

}  // namespace octavo
