#include "cuda/cublas_lt.h"

#include <algorithm>

#include "base/errors.h"
#include "cuda/cublas_lt_library.h"

namespace octavo::cuda {
namespace {

constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;  // what NVIDIA advises for Hopper
constexpr int64_t kInvariantRows = 512;
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

// The rows that the algorithm is chosen for: exact where decode steps lie, coarser above, and one
// choice for all when a row's result must not depend on the others.
int64_t planned_rows(const DeviceContext& context, int64_t rows) {
  constexpr int64_t kExactRows = 512;
  constexpr int64_t kStep = 256;
  if (context.batch_invariant) return kInvariantRows;
  return rows <= kExactRows ? rows : (rows + kStep - 1) / kStep * kStep;
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

namespace {

LtAlgorithm choose_algorithm(const DeviceContext& context, const CublasLtLibrary& lt,
                             LtMatmulDesc desc, LtLayout weight, LtLayout x, LtLayout out) {
  LtPreference preference = nullptr;
  check_lt(lt.create_preference(&preference), "cublasLt preference");
  const size_t bytes = kWorkspaceBytes;
  lt.set_preference(preference, kLtMaxWorkspaceBytes, &bytes, sizeof(bytes));
  if (context.batch_invariant) {
    const uint32_t no_split = 0;
    lt.set_preference(preference, kLtReductionSchemeMask, &no_split, sizeof(no_split));
  }
  LtHeuristicResult result{};
  int found = 0;
  const int status =
      lt.find_algorithms(lt.handle(), desc, weight, x, out, out, preference, 1, &result, &found);
  lt.destroy_preference(preference);
  check_lt(status, "cublasLtMatmulAlgoGetHeuristic");
  if (found == 0) throw DeviceError("cuBLASLt has no algorithm for a matrix product", false);
  return result.algorithm;
}

}  // namespace

Gemm::Gemm(const DeviceContext&)
    : library_(std::make_unique<CublasLtLibrary>()), workspace_(kWorkspaceBytes) {}

Gemm::~Gemm() = default;

Gemm::Product& Gemm::find_product(const DeviceContext& context, const LinearOperand& operand,
                                  TensorView x, TensorView out) {
  const TensorView& weight = operand.matrix;
  const void* bias = operand.bias;
  const int64_t rows = planned_rows(context, x.rows());
  const Key key{rows,           weight.rows(), weight.cols(), x.row_stride,
                out.row_stride, x.dtype,       out.dtype,     bias != nullptr};
  std::unique_ptr<Product>& slot = products_[key];
  if (slot != nullptr) return *slot;

  const CublasLtLibrary& lt = *library_;
  auto product = std::make_unique<Product>(lt);
  check_lt(lt.create_desc(&product->desc, kLtCompute32F, CUDA_R_32F), "cublasLt descriptor");
  lt.set_desc(product->desc, kLtTransA, &kLtTranspose, sizeof(kLtTranspose));
  if (bias != nullptr) {
    lt.set_desc(product->desc, kLtEpilogue, &kLtEpilogueBias, sizeof(kLtEpilogueBias));
    lt.set_desc(product->desc, kLtBiasPointer, &bias, sizeof(bias));
  }
  if (operand.scales != nullptr) {
    lt.set_desc(product->desc, kLtScaleModeA, &kLtScalePerRow, sizeof(kLtScalePerRow));
    lt.set_desc(product->desc, kLtScaleModeB, &kLtScalePerRow, sizeof(kLtScalePerRow));
    lt.set_desc(product->desc, kLtScaleA, &operand.scales, sizeof(operand.scales));
    lt.set_desc(product->desc, kLtScaleB, &operand.scales, sizeof(operand.scales));
  }
  const cudaDataType type = cuda_type(x.dtype);
  check_lt(
      lt.create_layout(&product->weight, type, weight.cols(), weight.rows(), weight.row_stride),
      "cublasLt layout");
  check_lt(lt.create_layout(&product->x, type, x.cols(), rows, x.row_stride), "cublasLt layout");
  check_lt(lt.create_layout(&product->out, cuda_type(out.dtype), out.cols(), rows, out.row_stride),
           "cublasLt layout");
  product->current_rows = rows;
  product->algorithm =
      choose_algorithm(context, lt, product->desc, product->weight, product->x, product->out);
  slot = std::move(product);
  return *slot;
}

void Gemm::run_piece(const DeviceContext& context, const LinearOperand& weight, TensorView x,
                     TensorView out, const float* x_scales) {
  Product& product = find_product(context, weight, x, out);
  product.set_rows(x.rows());
  const CublasLtLibrary& lt = *library_;
  const void* bias = weight.bias;
  if (bias != nullptr) lt.set_desc(product.desc, kLtBiasPointer, &bias, sizeof(bias));
  if (weight.scales != nullptr) {
    lt.set_desc(product.desc, kLtScaleA, &weight.scales, sizeof(weight.scales));
    lt.set_desc(product.desc, kLtScaleB, &x_scales, sizeof(x_scales));
  }
  const float one = 1.0f;
  const float zero = 0.0f;
  check_lt(lt.matmul(lt.handle(), product.desc, &one, weight.matrix.data, product.weight, x.data,
                     product.x, &zero, out.data, product.out, out.data, product.out,
                     &product.algorithm, workspace_.data(), kWorkspaceBytes, context.stream),
           "cublasLtMatmul");
}

void Gemm::run(const DeviceContext& context, const LinearOperand& weight, TensorView x,
               TensorView out, const float* x_scales) {
  check(weight.matrix.dtype == x.dtype && weight.matrix.cols() == x.cols() &&
            weight.matrix.rows() == out.cols() && x.rows() == out.rows() &&
            (weight.scales != nullptr) == (x_scales != nullptr),
        "gemm: shape");
  for (int64_t begin = 0; begin < x.rows(); begin += kPieceRows) {
    const int64_t rows = std::min(kPieceRows, x.rows() - begin);
    run_piece(context, weight, rows_of(x, begin, rows), rows_of(out, begin, rows),
              x_scales == nullptr ? nullptr : x_scales + begin);
  }
}

}  // namespace octavo::cuda
