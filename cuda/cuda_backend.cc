#include "backend/cuda_backend.h"

#include <algorithm>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/errors.h"
#include "cuda/attention.h"
#include "cuda/coded_gemm.h"
#include "cuda/coded_stream.h"
#include "cuda/coded_units.h"
#include "cuda/common/device_context.h"
#include "cuda/common/memory.h"
#include "cuda/common/stream.h"
#include "cuda/cublas_lt.h"
#include "cuda/embedding.h"
#include "cuda/experts.h"
#include "cuda/float8_rows.h"
#include "cuda/gather_rows.h"
#include "cuda/gelu_tanh_mul.h"
#include "cuda/grouped_stream.h"
#include "cuda/kv_cache.h"
#include "cuda/lora.h"
#include "cuda/qk_norm.h"
#include "cuda/quantize.h"
#include "cuda/rms_norm.h"
#include "cuda/rope_cache.h"
#include "cuda/sampler.h"
#include "cuda/scale.h"
#include "cuda/silu_mul.h"
#include "cuda/staging.h"
#include "cuda/stream_linear.h"
#include "cuda/unpack_inputs.h"
#include "cuda/weights.h"

namespace octavo::cuda {
namespace {

DeviceContext make_context(int device, const Stream& stream, const BackendOptions& options) {
  DeviceContext context = describe_device(device);
  if (!context.is_supported()) {
    throw ConfigError("this build has no CUDA kernels for this GPU (OCTAVO_CUDA_ARCHITECTURES)");
  }
  context.stream = stream.get();
  context.batch_invariant = options.batch_invariant;
  context.is_hopper = context.is_hopper && !options.portable_kernels;
  if (options.quantization == "fp8" && !context.is_hopper) {
    throw ConfigError("fp8 weights need a Hopper GPU");
  }
  return context;
}

class CudaDeviceBuffer : public DeviceBuffer {
 public:
  explicit CudaDeviceBuffer(int64_t size_bytes) : memory_(size_bytes) {}
  void* data() const override { return memory_.data(); }
  int64_t size_bytes() const override { return memory_.size_bytes(); }

 private:
  DeviceMemory memory_;
};

// Everything on one stream of one device. Methods that start a step's work make the device current,
// since the engine's thread is not the one that made the backend.
class CudaBackend : public Backend {
 public:
  explicit CudaBackend(const BackendOptions& options)
      : activation_dtype_(options.weight_dtype),
        has_fp8_(options.quantization == "fp8"),
        keeps_codes_(options.keep_quantized),
        enforce_eager_(options.enforce_eager),
        device_(select_device(options.device)),
        context_(make_context(device_, stream_, options)),
        uploader_(device_),
        gemm_(context_, {options.gemm_tuning_cache, options.tune_gemm}),
        stream_linear_(context_),
        coded_stream_(context_),
        grouped_stream_(context_),
        attention_(context_) {
    if (activation_dtype_ != DType::kBFloat16 && activation_dtype_ != DType::kFloat16) {
      throw ConfigError("the CUDA backend computes in bfloat16 or float16");
    }
    if (!options.quantization.empty() && !has_fp8_) {
      throw ConfigError("the CUDA backend quantises to fp8, not to " + options.quantization);
    }
    cudaDeviceProp properties{};
    check_cuda(cudaGetDeviceProperties(&properties, device_));
    name_ = properties.name;
  }

  DeviceInfo device_info() const override {
    check_cuda(cudaSetDevice(device_));
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    check_cuda(cudaMemGetInfo(&free_bytes, &total_bytes));
    return {name_, static_cast<int64_t>(total_bytes), static_cast<int64_t>(free_bytes)};
  }
  DType activation_dtype() const override { return activation_dtype_; }
  DType residual_dtype() const override { return DType::kFloat32; }
  DType default_kv_dtype() const override { return activation_dtype_; }

  std::unique_ptr<DeviceBuffer> allocate(int64_t size_bytes) override {
    check_cuda(cudaSetDevice(device_));
    return std::make_unique<CudaDeviceBuffer>(size_bytes);
  }
  void copy_to_device(void* device, const void* host, int64_t size_bytes) override {
    check_cuda(cudaSetDevice(device_));
    if (size_bytes <= kMaxStagedBytes) {
      staging_.copy(device, host, size_bytes, context_.stream);
      return;
    }
    check_cuda(cudaMemcpyAsync(device, host, size_bytes, cudaMemcpyHostToDevice, context_.stream));
    stream_.synchronize();
  }
  void copy_to_host(void* host, const void* device, int64_t size_bytes) override {
    check_cuda(cudaSetDevice(device_));
    check_cuda(cudaMemcpyAsync(host, device, size_bytes, cudaMemcpyDeviceToHost, context_.stream));
    stream_.synchronize();
  }
  void synchronize() override { stream_.synchronize(); }

  std::unique_ptr<LinearWeight> create_linear(int64_t out_features, int64_t in_features,
                                              bool has_bias) override {
    check_cuda(cudaSetDevice(device_));
    return std::make_unique<CudaLinearWeight>(activation_dtype_, out_features, in_features,
                                              has_bias, activation_dtype_);
  }
  std::unique_ptr<LinearWeight> create_projection(int64_t out_features, int64_t in_features,
                                                  bool has_bias, DType source) override {
    check_cuda(cudaSetDevice(device_));
    return std::make_unique<CudaLinearWeight>(activation_dtype_, out_features, in_features,
                                              has_bias,
                                              coding_for(out_features, in_features, source));
  }
  std::unique_ptr<LinearWeight> create_experts(int64_t out_features, int64_t in_features,
                                               int64_t tensor_rows, DType source) override {
    check_cuda(cudaSetDevice(device_));
    return std::make_unique<CudaLinearWeight>(activation_dtype_, out_features, in_features, false,
                                              experts_coding(tensor_rows, in_features, source));
  }
  void load_rows(LinearWeight& weight, int64_t row_begin, const WeightView& view) override {
    const CudaLinearWeight& target = as_cuda(weight);
    check(view.cols == target.in_features(), "load_rows: columns");
    const bool spreads_rows =
        target.coding() == DType::kFloat8Blocks && view.dtype == DType::kFloat8Rows;
    if (spreads_rows || (target.coding() == view.dtype && is_coded(view.dtype))) {
      return load_codes(target, row_begin, view);
    }
    if (target.coding() == DType::kFloat8Rows) return load_fp8(target, row_begin, view);
    uploader_.upload(target.rows_at(row_begin, view.rows), target.dtype(), view);
  }
  void load_bias(LinearWeight& weight, int64_t row_begin, const WeightView& view) override {
    const CudaLinearWeight& target = as_cuda(weight);
    uploader_.upload(target.bias_at(row_begin, view.rows * view.cols), target.dtype(), view);
  }
  int64_t linear_bytes(int64_t out_features, int64_t in_features, DType) const override {
    return dtype_bytes(activation_dtype_, out_features * in_features);
  }
  int64_t projection_bytes(int64_t out_features, int64_t in_features, DType source) const override {
    return CudaLinearWeight::coded_bytes(coding_for(out_features, in_features, source),
                                         out_features, in_features);
  }
  int64_t experts_bytes(int64_t tensor_rows, int64_t in_features, DType source) const override {
    return CudaLinearWeight::coded_bytes(experts_coding(tensor_rows, in_features, source),
                                         tensor_rows, in_features);
  }
  void load_vector(float* out, const WeightView& view) override {
    uploader_.upload(out, DType::kFloat32, view);
  }
  std::unique_ptr<LoraBank> create_lora_bank(int64_t in_features, std::span<const LoraPart> parts,
                                             const LoraLimits& limits) override {
    check_cuda(cudaSetDevice(device_));
    return std::make_unique<CudaLoraBank>(activation_dtype_, in_features, parts, limits);
  }
  int64_t lora_bank_bytes(int64_t in_features, std::span<const LoraPart> parts,
                          const LoraLimits& limits) const override {
    return CudaLoraBank::planned_bytes(activation_dtype_, in_features, parts, limits);
  }
  void load_lora(LoraBank& bank, int32_t slot, int64_t part, const LoraView& view) override {
    static_cast<CudaLoraBank&>(bank).load(uploader_, slot, part, view);
  }
  void clear_lora(LoraBank& bank, int32_t slot) override {
    static_cast<CudaLoraBank&>(bank).clear(uploader_, slot);
  }
  std::unique_ptr<KVCache> create_kv_cache(const KVCacheSpec& spec) override {
    check_cuda(cudaSetDevice(device_));
    return std::make_unique<CudaKVCache>(context_, spec);
  }

  void embed(const LinearWeight& table, const int32_t* token_ids, TensorView out) override {
    cuda::embed(context_, as_cuda(table).matrix(), token_ids, out);
  }
  void rms_norm(TensorView x, const float* weight, float eps, TensorView out) override {
    cuda::rms_norm(context_, x, weight, eps, out);
  }
  void add_rms_norm(TensorView residual, TensorView delta, const float* weight, float eps,
                    TensorView out) override {
    cuda::add_rms_norm(context_, residual, delta, weight, eps, out);
  }
  void add(TensorView residual, TensorView delta) override { cuda::add(context_, residual, delta); }
  void linear(const LinearWeight& weight, TensorView x, TensorView out) override {
    const LinearOperand w = as_cuda(weight).operand();
    if (has_units(w.matrix.dtype)) return linear_of_codes(w, x, out);
    if (streams(x) && out.cols() % 2 == 0) {
      stream_linear_.run(context_, w, x, out);
    } else if (w.scales != nullptr) {
      const QuantizedRows rows = quantize(x);
      gemm_.run(context_, w, rows.matrix, out, rows.scales);
    } else {
      gemm_.run(context_, w, x, out);
    }
  }
  void gated_linear(const LinearWeight& weight, TensorView x, TensorView gate_up,
                    TensorView out) override {
    const LinearOperand w = as_cuda(weight).operand();
    if (has_units(w.matrix.dtype)) {
      if (!streams_codes(x) || out.cols() % kUnitRows != 0) {
        return Backend::gated_linear(weight, x, gate_up, out);
      }
      return coded_stream_.run_gated(context_, w, x, out);
    }
    if (!streams(x) || out.cols() % 8 != 0) {
      return Backend::gated_linear(weight, x, gate_up, out);
    }
    stream_linear_.run_gated(context_, w, x, out);
  }
  void plan_lora(const int32_t* slots, const int32_t* rows, const LoraPlan& plan) override {
    LoraLinear::plan(context_, slots, rows, plan);
  }
  void add_lora(const LoraBank& bank, const LoraPlan& plan, TensorView x, TensorView out) override {
    lora_linear_.shrink(context_, as_cuda(bank), plan, x);
    lora_linear_.expand(context_, as_cuda(bank), plan, out);
  }
  // The weights of the linear layer are fetched while the first product is computed.
  void lora_linear(const LinearWeight& weight, const LoraBank& bank, const LoraPlan& plan,
                   TensorView x, TensorView out) override {
    lora_linear_.shrink(context_, as_cuda(bank), plan, x);
    linear(weight, x, out);
    lora_linear_.expand(context_, as_cuda(bank), plan, out);
  }
  void rope_and_cache(TensorView qkv, const RopeTable& rope, const ForwardInputs& inputs,
                      const AttentionParams& params, KVCache& cache) override {
    cuda::rope_and_cache(context_, qkv, rope, inputs, params, as_cuda(cache).layer(params.layer));
  }
  void attention(TensorView qkv, const ForwardInputs& inputs, const AttentionParams& params,
                 const KVCache& cache, TensorView out) override {
    attention_.run(context_, qkv, inputs, params, as_cuda(cache), out);
  }
  void silu_mul(TensorView gate_up, TensorView out) override {
    cuda::silu_mul(context_, gate_up, out);
  }
  void gelu_tanh_mul(TensorView gate_up, TensorView out) override {
    cuda::gelu_tanh_mul(context_, gate_up, out);
  }
  void scale(TensorView x, float factor) override { cuda::scale(context_, x, factor); }
  void soft_cap(TensorView x, float cap) override { cuda::soft_cap(context_, x, cap); }
  void qk_norm(TensorView qkv, const QkNorm& norm, const AttentionParams& params) override {
    cuda::qk_norm(context_, qkv, norm, params);
  }
  void experts(TensorView x, TensorView router_logits, const ExpertBank& bank,
               const ExpertScratch& scratch, TensorView out) override {
    const ExpertPlan plan =
        expert_plan(scratch.plan, x.rows(), bank.num_experts, bank.experts_per_token);
    const TensorView gate_up = scratch.gate_up.first_rows(plan.num_pairs);
    const TensorView gated = scratch.gated.first_rows(plan.num_pairs);
    const TensorView rows = scratch.out.first_rows(plan.num_pairs);
    const TensorView first = as_cuda(bank.gate_up).matrix(), second = as_cuda(bank.down).matrix();
    route_experts(context_, router_logits, bank.renormalize, plan);
    const bool is_gated = streams_experts(plan, first, x, gated.cols());
    if (is_gated) {
      grouped_stream_.run_gated(context_, first, x, plan, gated);
    } else {
      grouped_linear(context_, first, x, true, plan, gate_up);
      cuda::silu_mul(context_, gate_up, gated);
    }
    if (streams_experts(plan, second, gated, rows.cols())) {
      grouped_stream_.run(context_, second, gated, plan, rows, is_gated);
    } else {
      grouped_linear(context_, second, gated, false, plan, rows);
    }
    combine_experts(context_, rows, plan, out);
  }
  void gather_rows(TensorView x, const int32_t* indices, TensorView out) override {
    cuda::gather_rows(context_, x, indices, out);
  }
  int32_t max_steps_in_flight() const override { return Sampler::kMaxStepsInFlight; }
  int64_t row_multiple() const override { return 128; }  // of most of cuBLASLt's tiles
  void begin_step() override {
    check_cuda(cudaSetDevice(device_));
    sampler_.begin_step();
  }
  void end_step() override { sampler_.end_step(context_); }
  void wait_step() override { sampler_.wait_step(); }
  void unpack_inputs(const PackedInputs& packed, const ForwardArrays& arrays) override {
    cuda::unpack_inputs(context_, packed, sampler_.drawn_ids(), arrays);
  }
  void sample(TensorView logits, std::span<const SampleRow> rows, StepResult& result) override {
    check_cuda(cudaSetDevice(device_));
    sampler_.sample(context_, logits, rows, result);
  }

  bool supports_graphs() const override { return !enforce_eager_; }
  int32_t capture_graph(const std::function<void()>& work) override {
    check_cuda(cudaSetDevice(device_));
    Graph::begin_capture(context_.stream);
    try {
      work();
    } catch (...) {
      Graph::abandon_capture(context_.stream);
      throw;
    }
    graphs_.emplace_back(context_.stream);
    return static_cast<int32_t>(graphs_.size()) - 1;
  }
  void launch_graph(int32_t id) override { graphs_.at(id).launch(context_.stream); }
  void clear_graphs() override { graphs_.clear(); }

 private:
  static constexpr int64_t kMaxStagedBytes = int64_t{16} << 20;

  bool streams(TensorView x) const {
    return context_.is_hopper && !context_.batch_invariant && StreamLinear::accepts(x);
  }

  // Of coded weights there is no other way.
  bool streams_experts(const ExpertPlan& plan, TensorView weight, TensorView x,
                       int64_t out_features) const {
    if (has_units(weight.dtype)) return true;
    return context_.is_hopper && !context_.batch_invariant &&
           plan.num_pairs <= GroupedStream::kMaxRows * plan.num_experts &&
           GroupedStream::accepts(plan, weight, x, out_features);
  }

  bool streams_codes(TensorView x) const {
    return !context_.batch_invariant && CodedStream::accepts(x);
  }

  // What a projection's weights are kept in.
  DType coding_for(int64_t out_features, int64_t in_features, DType source) const {
    const bool fits = in_features % 16 == 0 && out_features % 16 == 0;
    if (fits && keeps_codes_ && context_.is_hopper && is_coded(source)) return source;
    return fits && has_fp8_ ? DType::kFloat8Rows : activation_dtype_;
  }

  // The same of experts: a scale a row is kept as one for 128 columns. Both products have the same
  // multiples, so that both keep codes or neither. They depend on the batch.
  DType experts_coding(int64_t tensor_rows, int64_t in_features, DType source) const {
    const bool fits = tensor_rows % kUnitDepth == 0 && in_features % kUnitDepth == 0;
    if (!fits || !keeps_codes_ || !context_.is_hopper || context_.batch_invariant ||
        !is_coded(source)) {
      return activation_dtype_;
    }
    return source == DType::kFloat8Rows ? DType::kFloat8Blocks : source;
  }

  static bool is_coded(DType dtype) { return is_int4(dtype) || is_scaled_float8(dtype); }

  void load_codes(const CudaLinearWeight& target, int64_t row_begin, const WeightView& view) {
    check_cuda(cudaSetDevice(device_));
    const DeviceMemory staged(dtype_bytes(view.dtype, view.rows * view.cols));
    uploader_.upload(staged.data(), view.dtype, view);
    const TensorView rows = TensorView::matrix(staged.data(), view.dtype, view.rows, view.cols);
    if (has_units(target.coding())) {
      pack_units(context_, rows, target.matrix(), row_begin);
    } else {
      pack_float8_rows(context_, rows, row_begin, target.matrix(), target.scales());
    }
    stream_.synchronize();
  }

  // For some steps more than one, reading codes again costs less than decoding them.
  void linear_of_codes(const LinearOperand& weight, TensorView x, TensorView out) {
    constexpr int64_t kPasses = 3;
    const int64_t rows_at_once = CodedStream::kMaxRows;
    const TensorView first = x.first_rows(std::min(x.rows(), rows_at_once));
    if (x.rows() > kPasses * rows_at_once || !streams_codes(first)) {
      return coded_gemm_.run(context_, gemm_, weight, x, out);
    }
    for (int64_t begin = 0; begin < x.rows(); begin += rows_at_once) {
      const int64_t rows = std::min(rows_at_once, x.rows() - begin);
      coded_stream_.run(context_, weight, x.row_range(begin, rows), out.row_range(begin, rows));
    }
  }

  void load_fp8(const CudaLinearWeight& target, int64_t row_begin, const WeightView& view) {
    check_cuda(cudaSetDevice(device_));
    const DeviceMemory staged(dtype_bytes(activation_dtype_, view.rows * view.cols));
    uploader_.upload(staged.data(), activation_dtype_, view);
    quantize_rows(context_,
                  TensorView::matrix(staged.data(), activation_dtype_, view.rows, view.cols),
                  target.rows(row_begin, view.rows), target.scales() + row_begin);
    stream_.synchronize();
  }

  // Activations as fp8. Memory that a captured graph may use is kept when more is needed.
  struct QuantizedRows {
    TensorView matrix;
    float* scales;
  };
  QuantizedRows quantize(TensorView x) {
    const int64_t scale_bytes = (x.rows() * 4 + 255) / 256 * 256;
    const int64_t size_bytes = scale_bytes + x.rows() * x.cols();
    if (quantized_.empty() || quantized_.back().size_bytes() < size_bytes) {
      quantized_.emplace_back(size_bytes);
    }
    const DeviceMemory& memory = quantized_.back();
    const QuantizedRows rows{
        TensorView::matrix(memory.as() + scale_bytes, DType::kFloat8E4M3, x.rows(), x.cols()),
        memory.as<float>()};
    quantize_rows(context_, x, rows.matrix, rows.scales);
    return rows;
  }

  // Weights and caches given to this backend are its own.
  static const CudaLinearWeight& as_cuda(const LinearWeight& weight) {
    return static_cast<const CudaLinearWeight&>(weight);
  }
  static const LoraOperand& as_cuda(const LoraBank& bank) {
    return static_cast<const CudaLoraBank&>(bank).operand();
  }
  static const CudaKVCache& as_cuda(const KVCache& cache) {
    return static_cast<const CudaKVCache&>(cache);
  }

  const DType activation_dtype_;
  const bool has_fp8_;
  const bool keeps_codes_;
  const bool enforce_eager_;
  const int device_;
  Stream stream_;
  const DeviceContext context_;
  std::string name_;
  StagingRing staging_;
  WeightUploader uploader_;
  Gemm gemm_;
  CodedGemm coded_gemm_;
  StreamLinear stream_linear_;
  CodedStream coded_stream_;
  GroupedStream grouped_stream_;
  LoraLinear lora_linear_;
  std::vector<DeviceMemory> quantized_;
  Attention attention_;
  Sampler sampler_;
  std::vector<Graph> graphs_;
};

}  // namespace
}  // namespace octavo::cuda

namespace octavo {

std::unique_ptr<Backend> create_cuda_backend(const BackendOptions& options) {
  return std::make_unique<cuda::CudaBackend>(options);
}

int num_cuda_devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();  // an absent driver is an answer, not an error to be met again later
  return 0;
}

}  // namespace octavo
