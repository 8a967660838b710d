// Weights that keep a checkpoint's codes, of four bits or fp8: their way to the device and back,
// the streaming kernels, and products of many rows, against float64 on the values of dequantize().
#include <algorithm>
#include <bit>
#include <cstring>

#include "backend/cuda_backend.h"
#include "base/dequantize.h"
#include "checker.h"
#include "cuda/coded_gemm.h"
#include "cuda/coded_stream.h"
#include "cuda/coded_units.h"
#include "cuda/weights.h"

namespace octavo::cuda::testing {
namespace {

constexpr DType kInt4Types[] = {DType::kInt4G32, DType::kInt4G64, DType::kInt4G128};

// A random matrix in blocks of a checkpoint, scales of half precision.
struct Coded {
  Coded(DType type, int64_t num_rows, int64_t num_cols)
      : dtype(type), rows(num_rows), cols(num_cols), bytes(dtype_bytes(type, rows * cols)) {
    for (std::byte& b : bytes) b = static_cast<std::byte>(generator()() & 0xF7);  // no NaN of e4m3
    const DTypeInfo info = dtype_info(dtype);
    const int64_t per_row = cols / info.block_elements;
    for (int64_t i = 0; i < rows * per_row; ++i) {
      const bool is_new = dtype != DType::kFloat8Rows || i % per_row == 0;
      if (is_new) scale_ = new_scale();
      const uint32_t zero = is_int4(dtype) ? static_cast<uint32_t>(random_int(0, 16)) : 0;
      const uint32_t term = std::bit_cast<uint32_t>(scale_) | zero;
      std::memcpy(&bytes[i * info.block_bytes], &term, sizeof(term));
    }
    values.resize(rows * cols);
    dequantize(dtype, bytes.data(), rows * cols, values.data());
  }

  WeightView view(int64_t begin, int64_t count) const {
    return {&bytes[dtype_bytes(dtype, begin * cols)], dtype, count, cols};
  }

  DType dtype;
  int64_t rows, cols;
  std::vector<std::byte> bytes;
  std::vector<float> values;

 private:
  float new_scale() const {
    const float magnitude = is_int4(dtype) ? 0.01f : 0.0005f;
    return rounded(magnitude * static_cast<float>(random_int(50, 200)) / 100.0f, DType::kFloat16);
  }

  float scale_ = 0.0f;
};

// A backend that keeps codes, and a projection filled in ranges of rows that share units.
std::unique_ptr<Backend> make_backend(DType dtype, bool batch_invariant = false) {
  BackendOptions options;
  options.device = "cuda:0";
  options.weight_dtype = dtype;
  options.keep_quantized = true;
  options.batch_invariant = batch_invariant;
  return create_cuda_backend(options);
}

std::unique_ptr<LinearWeight> load(Backend& backend, const Coded& coded, int64_t step) {
  auto weight = backend.create_projection(coded.rows, coded.cols, false, coded.dtype);
  expect(static_cast<const CudaLinearWeight&>(*weight).coding() == coded.dtype, "codes are kept");
  for (int64_t begin = 0; begin < coded.rows; begin += step) {
    const int64_t count = std::min(step, coded.rows - begin);
    backend.load_rows(*weight, begin, coded.view(begin, count));
  }
  return weight;
}

LinearOperand operand_of(const LinearWeight& weight) {
  return static_cast<const CudaLinearWeight&>(weight).operand();
}

CUDA_TEST(codes_come_back_as_they_are) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    const auto backend = make_backend(dtype);
    for (const DType coding :
         {DType::kInt4G32, DType::kInt4G64, DType::kInt4G128, DType::kFloat8Blocks}) {
      for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{208, 128}, {336, 1408}}) {
        const Coded coded(coding, rows, cols);
        const auto weight = load(*backend, coded, 72);
        const int64_t begin = rows > 256 ? 128 : 0, count = rows - begin - 3;
        const Array out(dtype, count * cols);
        unpack_units(context(), operand_of(*weight).matrix, begin, out.matrix(count, cols));
        auto expected = std::vector(coded.values.begin() + begin * cols,
                                    coded.values.begin() + (begin + count) * cols);
        for (float& v : expected) v = rounded(v, dtype);
        expect(out.download() == expected, std::string("unpacked ") + name_of(coding));
      }
    }
  }
}

struct CodedCase {
  DType coding;
  DType dtype;
  int64_t rows, cols, out_features;
  bool has_bias = false;
  bool is_gated = false;
};

std::string text_of(const CodedCase& c) {
  return std::string(name_of(c.coding)) + " " + std::to_string(c.rows) + "x" +
         std::to_string(c.cols) + "x" + std::to_string(c.out_features) + " " + name_of(c.dtype) +
         (c.is_gated ? " gated" : "");
}

// Compares sampled elements of `got` [rows, out_features] with x W^T + b.
void check_products(const CodedCase& c, const std::vector<float>& x, const Coded& w,
                    const std::vector<float>& b, const std::vector<float>& got, double tolerance) {
  const auto product = [&](int64_t row, int64_t column) {
    double sum = c.has_bias ? b[column] : 0.0;
    for (int64_t j = 0; j < c.cols; ++j) {
      sum += double{x[row * c.cols + j]} * w.values[column * c.cols + j];
    }
    return sum;
  };
  std::vector<float> sampled;
  std::vector<double> ref;
  for (int i = 0; i < 400; ++i) {
    const int64_t row = i < 2 ? i * (c.rows - 1) : random_int(0, c.rows - 1);
    const int64_t column = i < 2 ? i * (c.out_features - 1) : random_int(0, c.out_features - 1);
    const double first = product(row, column);
    ref.push_back(c.is_gated
                      ? first / (1.0 + std::exp(-first)) * product(row, c.out_features + column)
                      : first);
    sampled.push_back(got[row * c.out_features + column]);
  }
  expect_close(sampled, ref, tolerance, text_of(c));
  expect(std::ranges::none_of(got, [](float v) { return std::isnan(v); }), text_of(c) + ": NaN");
}

// The streaming kernels, on memory that they did not lay out themselves.
void check_stream(Backend& backend, const CodedCase& c) {
  const int64_t width = c.is_gated ? 2 * c.out_features : c.out_features;
  const Coded w(c.coding, width, c.cols);
  const auto weight = load(backend, w, 200);
  const auto x = random_values(c.rows * c.cols, c.dtype), b = random_values(width, c.dtype);
  const Array device_x(c.dtype, x), device_b(c.dtype, b), out(c.dtype, c.rows * c.out_features);
  LinearOperand operand = operand_of(*weight);
  if (c.has_bias) operand.bias = device_b.data();
  CodedStream linear(context());
  const auto run = [&] {
    const TensorView in = device_x.matrix(c.rows, c.cols);
    const TensorView to = out.matrix(c.rows, c.out_features);
    if (c.is_gated) {
      linear.run_gated(context(), operand, in, to);
    } else {
      linear.run(context(), operand, in, to);
    }
    return out.download();
  };
  const auto first = run();
  check_products(c, x, w, b, first, (c.is_gated ? 2 : 1) * tolerance_of(c.dtype));
  expect(run() == first, text_of(c) + ": differs from run to run");
}

CUDA_TEST(stream_of_codes_matches_reference) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    const auto backend = make_backend(dtype);
    for (const DType coding :
         {DType::kInt4G32, DType::kInt4G64, DType::kInt4G128, DType::kFloat8Blocks}) {
      for (const int64_t rows : {1, 7, 8, 9, 16, 17, 32, 33, 64}) {
        check_stream(*backend, {coding, dtype, rows, 640, 16 * random_int(1, 40), rows % 2 == 0});
        check_stream(*backend,
                     {coding, dtype, rows, 1408, 64 * random_int(1, 6), rows % 2 == 1, true});
      }
      check_stream(*backend, {coding, dtype, 3, 4096, 6144});
      check_stream(*backend, {coding, dtype, 16, 14336, 1024});
      check_stream(*backend, {coding, dtype, 33, 4096, 3584, false, true});
    }
    check_stream(*backend, {DType::kInt4G32, dtype, 5, 96, 528});
    check_stream(*backend, {DType::kInt4G64, dtype, 20, 4160, 80, true});
  }
}

CUDA_TEST(many_rows_of_codes_match_reference) {
  Gemm gemm(context());
  CodedGemm linear;
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (const DType coding :
         {DType::kInt4G32, DType::kInt4G64, DType::kInt4G128, DType::kFloat8Blocks}) {
      const auto backend = make_backend(dtype);
      for (const CodedCase& c : {CodedCase{coding, dtype, 100, 640, 272, true},
                                 CodedCase{coding, dtype, 300, 4096, 6400},
                                 CodedCase{coding, dtype, 65, 14336, 2048, true}}) {
        const Coded w(coding, c.out_features, c.cols);
        const auto weight = load(*backend, w, c.out_features);
        const auto x = random_values(c.rows * c.cols, dtype);
        const auto b = random_values(c.out_features, dtype);
        const Array device_x(dtype, x), device_b(dtype, b), out(dtype, c.rows * c.out_features);
        LinearOperand operand = operand_of(*weight);
        if (c.has_bias) operand.bias = device_b.data();
        linear.run(context(), gemm, operand, device_x.matrix(c.rows, c.cols),
                   out.matrix(c.rows, c.out_features));
        // Weights are rounded to half precision on this path.
        check_products(c, x, w, b, out.download(), 2 * tolerance_of(dtype));
      }
    }
  }
}

// Through the backend, which chooses: passes of 64 rows, many rows, gated or not; batch-invariant.
CUDA_TEST(backend_multiplies_codes) {
  constexpr int64_t kCols = 512, kInner = 320;
  for (const bool batch_invariant : {false, true}) {
    const auto backend = make_backend(DType::kBFloat16, batch_invariant);
    for (const DType coding : {DType::kInt4G32, DType::kInt4G64, DType::kInt4G128,
                               DType::kFloat8Rows, DType::kFloat8Blocks}) {
      const Coded w(coding, 2 * kInner, kCols);
      const auto weight = load(*backend, w, kInner);
      for (const int64_t rows : {5, 100, 192, 250}) {
        const auto x = random_values(rows * kCols, DType::kBFloat16);
        const Array device_x(DType::kBFloat16, x);
        const Array out(DType::kBFloat16, rows * 2 * kInner);
        const Array gate_up(DType::kBFloat16, rows * 2 * kInner);
        const Array gated(DType::kBFloat16, rows * kInner);
        backend->linear(*weight, device_x.matrix(rows, kCols), out.matrix(rows, 2 * kInner));
        backend->gated_linear(*weight, device_x.matrix(rows, kCols),
                              gate_up.matrix(rows, 2 * kInner), gated.matrix(rows, kInner));
        backend->synchronize();
        // Many rows of kFloat8Rows have activations in fp8.
        const bool is_coarse =
            coding == DType::kFloat8Rows && (rows > CodedStream::kMaxRows || batch_invariant);
        const double tolerance = is_coarse ? 0.05 : 2 * tolerance_of(DType::kBFloat16);
        CodedCase c{coding, DType::kBFloat16, rows, kCols, 2 * kInner};
        check_products(c, x, w, {}, out.download(), tolerance);
        c.out_features = kInner;
        c.is_gated = true;
        check_products(c, x, w, {}, gated.download(), 2 * tolerance);
      }
    }
  }
}

// What does not fit a kept weight is decoded or quantised, and codes fit a plain one.
CUDA_TEST(codes_and_values_find_their_form) {
  const auto backend = make_backend(DType::kBFloat16);
  const Coded w(DType::kInt4G64, 64, 128);
  const auto plain = backend->create_linear(64, 128, false);
  backend->load_rows(*plain, 0, w.view(0, 64));
  const Array copy(DType::kBFloat16, 64 * 128);
  check_cuda(cudaMemcpy(copy.data(), operand_of(*plain).matrix.data, 64 * 128 * 2,
                        cudaMemcpyDeviceToDevice));
  auto expected = w.values;
  for (float& v : expected) v = rounded(v, DType::kBFloat16);
  expect(copy.download() == expected, "codes in a plain weight");
  const auto odd = backend->create_projection(72, 128, false, DType::kInt4G64);
  expect(static_cast<const CudaLinearWeight&>(*odd).coding() == DType::kBFloat16,
         "rows that are no multiple of 16 are decoded");
  const auto whole = backend->create_projection(4096, 4096, false, DType::kInt4G128);
  expect(whole->size_bytes() == backend->projection_bytes(4096, 4096, DType::kInt4G128) &&
             whole->size_bytes() == int64_t{4096} * 4096 / 128 * 68,
         "size of four bits");
}

struct ExpertSizes {
  int64_t tokens, experts, per_token, hidden, inner;
};

// The sum over a token's experts, from router logits, at `column`.
double expert_sum(const ExpertSizes& s, const float* x, const float* logits, const Coded& gate_up,
                  const Coded& down, int64_t column) {
  std::vector<int64_t> order(s.experts);
  for (int64_t e = 0; e < s.experts; ++e) order[e] = e;
  std::ranges::stable_sort(order, [&](int64_t a, int64_t b) { return logits[a] > logits[b]; });
  double total = 0.0, sum = 0.0;
  for (int64_t k = 0; k < s.per_token; ++k) total += std::exp(double{logits[order[k]]});
  const auto product = [&](const float* row) {
    double result = 0.0;
    for (int64_t j = 0; j < s.hidden; ++j) result += double{x[j]} * row[j];
    return result;
  };
  for (int64_t k = 0; k < s.per_token; ++k) {
    const int64_t e = order[k];
    double out = 0.0;
    for (int64_t i = 0; i < s.inner; ++i) {
      const double gate = product(&gate_up.values[(2 * e * s.inner + i) * s.hidden]);
      const double up = product(&gate_up.values[((2 * e + 1) * s.inner + i) * s.hidden]);
      out +=
          gate / (1.0 + std::exp(-gate)) * up * down.values[(e * s.hidden + column) * s.inner + i];
    }
    sum += std::exp(double{logits[order[k]]}) / total * out;
  }
  return sum;
}

void check_experts(Backend& backend, const ExpertSizes& s, DType coding) {
  const Coded gate_up(coding, s.experts * 2 * s.inner, s.hidden);
  const Coded down(coding, s.experts * s.hidden, s.inner);
  const auto load_experts = [&](const Coded& coded, int64_t tensor_rows) {
    auto weight = backend.create_experts(coded.rows, coded.cols, tensor_rows, coding);
    for (int64_t begin = 0; begin < coded.rows; begin += tensor_rows) {
      backend.load_rows(*weight, begin, coded.view(begin, tensor_rows));
    }
    expect(has_units(operand_of(*weight).matrix.dtype), "codes of experts are kept");
    return weight;
  };
  const auto first = load_experts(gate_up, s.inner), second = load_experts(down, s.hidden);
  constexpr DType kType = DType::kBFloat16;
  const int64_t pairs = s.tokens * s.per_token, plan_size = expert_plan_size(pairs, s.experts);
  const auto x = random_values(s.tokens * s.hidden, kType);
  const auto logits = random_values(s.tokens * s.experts, DType::kFloat32, 2.0f);
  const Array device_x(kType, x), device_logits(DType::kFloat32, logits);
  const Array gates(kType, pairs * 2 * s.inner), gated(kType, pairs * s.inner);
  const Array rows(kType, pairs * s.hidden), out(kType, s.tokens * s.hidden);
  const DeviceMemory plan(plan_size * 4);
  const ExpertScratch scratch{TensorView::matrix(plan.data(), DType::kInt32, 1, plan_size),
                              gates.matrix(pairs, 2 * s.inner), gated.matrix(pairs, s.inner),
                              rows.matrix(pairs, s.hidden)};
  backend.experts(device_x.matrix(s.tokens, s.hidden), device_logits.matrix(s.tokens, s.experts),
                  {*first, *second, s.experts, s.per_token, true}, scratch,
                  out.matrix(s.tokens, s.hidden));
  backend.synchronize();
  const auto all = out.download();
  std::vector<float> got;
  std::vector<double> ref;
  for (int i = 0; i < 40; ++i) {
    const int64_t t = i < 2 ? i * (s.tokens - 1) : random_int(0, s.tokens - 1);
    const int64_t c = i < 2 ? i * (s.hidden - 1) : random_int(0, s.hidden - 1);
    ref.push_back(expert_sum(s, &x[t * s.hidden], &logits[t * s.experts], gate_up, down, c));
    got.push_back(all[t * s.hidden + c]);
  }
  const std::string name =
      std::string("experts ") + name_of(coding) + ", " + std::to_string(s.tokens) + " tokens";
  expect_close(got, ref, 3 * tolerance_of(kType), name);
  expect(std::ranges::none_of(all, [](float v) { return std::isnan(v); }), name + ": NaN");
}

CUDA_TEST(experts_of_codes_match_reference) {
  const auto backend = make_backend(DType::kBFloat16);
  for (const DType coding : {DType::kInt4G32, DType::kInt4G64, DType::kInt4G128, DType::kFloat8Rows,
                             DType::kFloat8Blocks}) {
    check_experts(*backend, {1, 128, 8, 256, 128}, coding);
    check_experts(*backend, {40, 16, 2, 384, 256}, coding);
    check_experts(*backend, {300, 8, 2, 256, 384}, coding);
  }
}

// Small enough for compute-sanitizer.
CUDA_TEST(small_linears_of_codes) {
  const auto backend = make_backend(DType::kBFloat16);
  for (const int64_t rows : {1, 16, 50}) {
    for (const DType coding : kInt4Types) {
      check_stream(*backend, {coding, DType::kBFloat16, rows, 384, 144, true});
      check_stream(*backend, {coding, DType::kBFloat16, rows, 4096, 256});
      check_stream(*backend, {coding, DType::kBFloat16, rows, 512, 128, true, true});
    }
    check_stream(*backend, {DType::kFloat8Blocks, DType::kBFloat16, rows, 512, 144, true});
    check_experts(*backend, {rows, 4, 2, 128, 128}, DType::kInt4G64);
    check_stream(*backend, {DType::kFloat8Blocks, DType::kBFloat16, rows, 512, 64, true, true});
  }
}

}  // namespace
}  // namespace octavo::cuda::testing
