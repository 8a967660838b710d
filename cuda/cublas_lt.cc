#include "cuda/cublas_lt.h"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>

#include "base/errors.h"
#include "cuda/common/stream.h"
#include "cuda/cublas_lt_library.h"

namespace octavo::cuda {
namespace {

constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;  // what NVIDIA advises for Hopper
constexpr int64_t kInvariantRows = 512;
constexpr int kMeasuredCandidates = 12;
// Sizes of steps that mix prompts and decodes. With the library's first choice a step of 448 rows
// of an 8B model takes 14.9 ms, with the best of a few 11.9
// (bench/results/2026-11-29-h200-mixed.md): so some are timed here in every warm-up. Another one is
// taken only where it is clearly faster, or a restart would change results for nothing.
constexpr int64_t kFirstSurveyed = 320;
constexpr int64_t kLastSurveyed = 1024;
constexpr int kSurveyedCandidates = 3;
constexpr float kClearlyFaster = 0.95f;
constexpr int64_t kPieceRows = 4096;  // of a long x: it stays in the L2 cache

cudaDataType cuda_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return CUDA_R_32F;
    case DType::kFloat16:
      return CUDA_R_16F;
    case DType::kBFloat16:
      return CUDA_R_16BF;
    case DType::kFloat8E4M3:
      return CUDA_R_8F_E4M3;
    default:
      break;
  }
  check(false, "gemm: element type");
  return CUDA_R_32F;
}

// Sizes that algorithms are chosen for, ascending: so few that all can be prepared, and the sizes
// of decode steps among them. Smaller ones than kFirstPlanned are for the streaming kernel; where
// it cannot take them they are planned as they come.
constexpr int64_t kFirstPlanned = 96;

int64_t plan_step(int64_t rows) {
  return rows < 256 ? 32 : rows < 1024 ? 64 : rows < 2048 ? 128 : 256;
}

// The size that the algorithm for so many rows is chosen for: one for all when a row's result must
// not depend on the others.
int64_t planned_rows(const DeviceContext& context, int64_t rows) {
  if (context.batch_invariant) return kInvariantRows;
  if (rows <= kFirstPlanned - 32) return rows;
  const int64_t step = plan_step(rows - 1);
  return (rows + step - 1) / step * step;
}

TensorView rows_of(TensorView view, int64_t begin, int64_t count) {
  TensorView rows = view.first_rows(count);
  rows.data = view.as<std::byte>() + dtype_bytes(view.dtype, begin * view.row_stride);
  return rows;
}

}  // namespace

// Row-major out = x W^T is column-major out^T [N, M] = W^T' x^T with W' [K, N] and x^T [K, M].
struct Gemm::Product {
  explicit Product(const CublasLtLibrary& library) : lt(library) {}
  ~Product() {
    if (desc != nullptr) lt.destroy_desc(desc);
    for (const LtLayout layout : {weight, x, out}) {
      if (layout != nullptr) lt.destroy_layout(layout);
    }
  }

  void set_rows(int64_t rows) {
    if (rows == current_rows) return;
    const auto columns = static_cast<uint64_t>(rows);
    check_lt(lt.set_layout(x, kLtColumns, &columns, sizeof(columns)), "cublasLt layout");
    check_lt(lt.set_layout(out, kLtColumns, &columns, sizeof(columns)), "cublasLt layout");
    current_rows = rows;
  }

  const CublasLtLibrary& lt;
  LtMatmulDesc desc = nullptr;
  LtLayout weight = nullptr;
  LtLayout x = nullptr;
  LtLayout out = nullptr;
  int64_t current_rows = 0;
  LtAlgorithm algorithm{};
};

struct Gemm::Call {
  const LinearOperand& weight;
  TensorView x;
  TensorView out;
  const float* x_scales;

  Call rows(int64_t begin, int64_t count) const {
    return {weight, rows_of(x, begin, count), rows_of(out, begin, count),
            x_scales == nullptr ? nullptr : x_scales + begin};
  }
};

namespace {

// The first `wanted` algorithms that the library thinks fit, the best first.
std::vector<LtAlgorithm> find_candidates(const DeviceContext& context, const CublasLtLibrary& lt,
                                         LtMatmulDesc desc, std::array<LtLayout, 3> layouts,
                                         int wanted) {
  LtPreference preference = nullptr;
  check_lt(lt.create_preference(&preference), "cublasLt preference");
  const size_t bytes = kWorkspaceBytes;
  lt.set_preference(preference, kLtMaxWorkspaceBytes, &bytes, sizeof(bytes));
  if (context.batch_invariant) {
    const uint32_t no_split = 0;
    lt.set_preference(preference, kLtReductionSchemeMask, &no_split, sizeof(no_split));
  }
  std::vector<LtHeuristicResult> results(wanted);
  int found = 0;
  const auto [weight, x, out] = layouts;
  const int status = lt.find_algorithms(lt.handle(), desc, weight, x, out, out, preference, wanted,
                                        results.data(), &found);
  lt.destroy_preference(preference);
  check_lt(status, "cublasLtMatmulAlgoGetHeuristic");
  std::vector<LtAlgorithm> candidates;
  for (int i = 0; i < found; ++i) {
    if (results[i].status == 0) candidates.push_back(results[i].algorithm);
  }
  if (candidates.empty()) {
    throw DeviceError("cuBLASLt has no algorithm for a matrix product", false);
  }
  return candidates;
}

}  // namespace

Gemm::Gemm(const DeviceContext& context, const GemmOptions& options)
    : library_(std::make_unique<CublasLtLibrary>()),
      workspace_(kWorkspaceBytes),
      tuning_(options.tuning_path),
      measures_(options.measures && !context.batch_invariant) {
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, context.device));
  key_prefix_ = std::string(properties.name) + "; cuBLASLt " + std::to_string(library_->version());
  if (measures_) flush_ = DeviceMemory(2 * int64_t{properties.l2CacheSize});
}

Gemm::~Gemm() = default;

Gemm::Shape& Gemm::find_shape(const Call& call) {
  const TensorView& weight = call.weight.matrix;
  return shapes_[{weight.rows(), weight.cols(), call.x.row_stride, call.out.row_stride,
                  call.x.dtype, call.out.dtype, call.weight.bias != nullptr}];
}

Gemm::Product& Gemm::find_product(const DeviceContext& context, const Call& call) {
  const int64_t rows = planned_rows(context, call.x.rows());
  std::unique_ptr<Product>& slot = find_shape(call).products[rows];
  if (slot == nullptr) {
    std::unique_ptr<Product> product = make_product(call, rows);
    choose_algorithm(context, call, *product, rows);
    slot = std::move(product);  // only now: a product without an algorithm must not be found
  }
  return *slot;
}

std::unique_ptr<Gemm::Product> Gemm::make_product(const Call& call, int64_t rows) const {
  const TensorView& weight = call.weight.matrix;
  const CublasLtLibrary& lt = *library_;
  auto product = std::make_unique<Product>(lt);
  check_lt(lt.create_desc(&product->desc, kLtCompute32F, CUDA_R_32F), "cublasLt descriptor");
  lt.set_desc(product->desc, kLtTransA, &kLtTranspose, sizeof(kLtTranspose));
  if (call.weight.bias != nullptr) {
    lt.set_desc(product->desc, kLtEpilogue, &kLtEpilogueBias, sizeof(kLtEpilogueBias));
  }
  if (call.weight.scales != nullptr) {
    lt.set_desc(product->desc, kLtScaleModeA, &kLtScalePerRow, sizeof(kLtScalePerRow));
    lt.set_desc(product->desc, kLtScaleModeB, &kLtScalePerRow, sizeof(kLtScalePerRow));
  }
  set_pointers(call, *product);
  const cudaDataType type = cuda_type(call.x.dtype);
  check_lt(
      lt.create_layout(&product->weight, type, weight.cols(), weight.rows(), weight.row_stride),
      "cublasLt layout");
  check_lt(lt.create_layout(&product->x, type, call.x.cols(), rows, call.x.row_stride),
           "cublasLt layout");
  check_lt(lt.create_layout(&product->out, cuda_type(call.out.dtype), call.out.cols(), rows,
                            call.out.row_stride),
           "cublasLt layout");
  product->current_rows = rows;
  return product;
}

// What a measured choice holds for. No stream formats it: where two copies of the C++ library are
// in one process, a stream may meet the other one's locale.
std::string Gemm::tuning_key(const Call& call, int64_t rows) const {
  const auto side = [](const TensorView& view) {
    return std::to_string(view.cols()) + " (" + std::to_string(view.row_stride) + ")";
  };
  return key_prefix_ + "; " + std::string(dtype_info(call.x.dtype).name) + " " +
         std::string(dtype_info(call.out.dtype).name) +
         (call.weight.bias == nullptr ? "" : " bias") + "; " + std::to_string(rows) + " x " +
         side(call.x) + " -> " + side(call.out);
}

void Gemm::choose_algorithm(const DeviceContext& context, const Call& call, Product& product,
                            int64_t rows) {
  const std::string key = context.batch_invariant ? std::string() : tuning_key(call, rows);
  if (const auto known = tuning_.find(key); known.has_value() && !measures_) {
    product.algorithm = std::bit_cast<LtAlgorithm>(*known);
    if (is_valid(product)) return;
  }
  const bool surveys = !context.batch_invariant && kFirstSurveyed <= rows && rows <= kLastSurveyed;
  const auto find = [&](int wanted) {
    return find_candidates(context, *library_, product.desc,
                           {product.weight, product.x, product.out}, wanted);
  };
  auto candidates = find(measures_ ? kMeasuredCandidates : surveys ? kSurveyedCandidates : 1);
  if (surveys) {  // and the first choice for the next size
    product.set_rows(rows + plan_step(rows));
    candidates.push_back(find(1).front());
    product.set_rows(rows);
  }
  product.algorithm = candidates.front();
  if (candidates.size() > 1) measure(context, call, product, candidates);
  if (measures_) tuning_.put(key, std::bit_cast<GemmTuning::Algorithm>(product.algorithm));
}

// Whether the product's algorithm can run it.
bool Gemm::is_valid(const Product& product) const {
  LtHeuristicResult result{};
  const int status =
      library_->check_algorithm(library_->handle(), product.desc, product.weight, product.x,
                                product.out, product.out, &product.algorithm, &result);
  return status == 0 && result.workspace_bytes <= kWorkspaceBytes;
}

// Takes the candidate with the least median time. With measures_ each run is behind a write that
// drives the operands from the L2 cache: a layer's weights come from memory.
void Gemm::measure(const DeviceContext& context, const Call& call, Product& product,
                   const std::vector<LtAlgorithm>& candidates) {
  const float needed = measures_ ? 1.0f : kClearlyFaster;  // of the first one's time
  Event begin(cudaEventDefault);
  Event end(cudaEventDefault);
  product.set_rows(call.x.rows());
  LtAlgorithm best = candidates.front();
  float least_ms = std::numeric_limits<float>::infinity();
  for (const LtAlgorithm& candidate : candidates) {
    product.algorithm = candidate;
    if (!is_valid(product)) continue;
    std::vector<float> times(measures_ ? 5 : 3);
    for (float& ms : times) {
      if (measures_) {
        check_cuda(cudaMemsetAsync(flush_.data(), 0, flush_.size_bytes(), context.stream));
      }
      begin.record(context.stream);
      launch(context, call, product);
      end.record(context.stream);
      end.synchronize();
      check_cuda(cudaEventElapsedTime(&ms, begin.get(), end.get()));
    }
    std::ranges::sort(times);
    const float ms = times[times.size() / 2];
    const bool is_first = &candidate == &candidates.front();
    if (is_first || ms < least_ms) {
      least_ms = is_first ? ms * needed : ms;
      best = candidate;
    }
  }
  product.algorithm = best;
}

void Gemm::set_pointers(const Call& call, Product& product) const {
  const auto set = [&](int attribute, const auto& pointer) {
    if (pointer != nullptr) library_->set_desc(product.desc, attribute, &pointer, sizeof(pointer));
  };
  set(kLtBiasPointer, call.weight.bias);
  set(kLtScaleA, call.weight.scales);
  set(kLtScaleB, call.x_scales);
}

void Gemm::launch(const DeviceContext& context, const Call& call, const Product& product) {
  const CublasLtLibrary& lt = *library_;
  const float one = 1.0f;
  const float zero = 0.0f;
  check_lt(lt.matmul(lt.handle(), product.desc, &one, call.weight.matrix.data, product.weight,
                     call.x.data, product.x, &zero, call.out.data, product.out, call.out.data,
                     product.out, &product.algorithm, workspace_.data(), kWorkspaceBytes,
                     context.stream),
           "cublasLtMatmul");
}

void Gemm::prepare(const DeviceContext& context, const Call& call) {
  if (context.batch_invariant) return;
  int64_t& prepared = find_shape(call).prepared_rows;
  const int64_t most = std::min(kPieceRows, call.x.rows());
  if (most <= prepared) return;
  for (int64_t rows = kFirstPlanned; rows <= most; rows += plan_step(rows)) {
    if (rows > prepared) run_piece(context, call.rows(0, rows));
  }
  prepared = most;
  if (measures_ && !tuning_.path().empty() && !tuning_.save()) {
    throw ConfigError("the tuning cache cannot be written: " + tuning_.path());
  }
}

void Gemm::run_piece(const DeviceContext& context, const Call& call) {
  Product& product = find_product(context, call);
  product.set_rows(call.x.rows());
  set_pointers(call, product);
  launch(context, call, product);
}

void Gemm::run(const DeviceContext& context, const LinearOperand& weight, TensorView x,
               TensorView out, const float* x_scales) {
  check(weight.matrix.dtype == x.dtype && weight.matrix.cols() == x.cols() &&
            weight.matrix.rows() == out.cols() && x.rows() == out.rows() &&
            (weight.scales != nullptr) == (x_scales != nullptr),
        "gemm: shape");
  const Call call{weight, x, out, x_scales};
  prepare(context, call);
  for (int64_t begin = 0; begin < x.rows(); begin += kPieceRows) {
    run_piece(context, call.rows(begin, std::min(kPieceRows, x.rows() - begin)));
  }
}

}  // namespace octavo::cuda
