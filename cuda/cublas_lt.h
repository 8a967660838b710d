// Matrix products by cuBLASLt, loaded at run time. Never linked: a process that also runs torch
// must use the library that torch uses.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "base/tensor_view.h"
#include "cuda/common/device_context.h"
#include "cuda/common/memory.h"
#include "cuda/gemm_tuning.h"
#include "cuda/linear_operand.h"

namespace octavo::cuda {

class CublasLtLibrary;
struct LtAlgorithm;

struct GemmOptions {
  std::string tuning_path;  // of measured choices, see GemmTuning; empty: none
  bool measures = false;    // measures each choice anew, and writes them there if there is a path
};

class Gemm {
 public:
  // Looks for a library that is loaded already, then in the CUDA packages beside this module, then
  // on the system. Throws ConfigError when there is none.
  explicit Gemm(const DeviceContext& context, const GemmOptions& options = {});
  ~Gemm();

  // out = x weight^T + bias. x [M, K] of the matrix's type; out [M, N] of x's type or, without
  // bias, float32; rows of x and out may be strided. With an fp8 matrix x is fp8 too, `x_scales`
  // [M] holds its scales, out is of a half type, and K and N are multiples of 16. The first calls
  // with a weight's shape take long: they prepare all calls with at most as many rows.
  // Throws ConfigError when measured choices cannot be written.
  void run(const DeviceContext& context, const LinearOperand& weight, TensorView x, TensorView out,
           const float* x_scales = nullptr);

 private:
  struct Product;
  struct Call;
  // N, K, row strides and types of x and out, bias.
  using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, DType, DType, bool>;
  struct Shape {
    int64_t prepared_rows = 0;
    std::map<int64_t, std::unique_ptr<Product>> products;  // by planned rows
  };

  // Runs each planned size up to the rows of x that no call has yet, so that none is chosen, and no
  // kernel loaded, later. Overwrites out.
  void prepare(const DeviceContext& context, const Call& call);
  void run_piece(const DeviceContext& context, const Call& call);
  Shape& find_shape(const Call& call);
  Product& find_product(const DeviceContext& context, const Call& call);
  std::unique_ptr<Product> make_product(const Call& call, int64_t rows) const;
  std::string tuning_key(const Call& call, int64_t rows) const;
  void choose_algorithm(const DeviceContext& context, const Call& call, Product& product,
                        int64_t rows);
  bool is_valid(const Product& product) const;
  void measure(const DeviceContext& context, const Call& call, Product& product,
               const std::vector<LtAlgorithm>& candidates);
  void set_pointers(const Call& call, Product& product) const;
  void launch(const DeviceContext& context, const Call& call, const Product& product);

  std::unique_ptr<CublasLtLibrary> library_;
  DeviceMemory workspace_;
  GemmTuning tuning_;
  const bool measures_;
  std::string key_prefix_;  // GPU and version of the library
  DeviceMemory flush_;
  std::map<Key, Shape> shapes_;
};

}  // namespace octavo::cuda
