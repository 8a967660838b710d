// The fused tail of a layer against its steps in float64, and against itself: launches in a row
// must not depend on what the one before left in the counters.
#include <algorithm>
#include <memory>
#include <set>

#include "checker.h"
#include "cuda/fused_layer_tail.h"
#include "quantized.h"

namespace octavo::cuda::testing {
namespace {

constexpr DType kType = DType::kBFloat16;
constexpr float kEps = 1e-5f;
constexpr int64_t kRows = FusedLayerTail::kMaxRows;

struct TailCase {
  int64_t attended, hidden, inner;
  int64_t next = 0;  // 0: no next linear
  bool has_bias = false;
  bool is_fp8 = false;
};

double round_half(double v) { return rounded(static_cast<float>(v), kType); }

// A weight on both sides.
class Weight {
 public:
  Weight(int64_t rows, int64_t columns, const TailCase& c)
      : rows_(rows),
        columns_(columns),
        values_(
            random_values(rows * columns, kType, 1.0f / std::sqrt(static_cast<float>(columns)))),
        bias_(c.has_bias ? random_values(rows, kType, 0.3f) : std::vector<float>(rows, 0.0f)),
        device_(kType, values_),
        device_bias_(kType, bias_) {
    if (c.has_bias) operand_.bias = device_bias_.data();
    operand_.matrix = device_.matrix(rows, columns);
    if (!c.is_fp8) return;
    quantized_ = std::make_unique<DeviceQuantized>(values_, rows, columns, kType);
    operand_.matrix = quantized_->matrix.matrix(rows, columns);
    operand_.scales = quantized_->scale_data();
    const Quantized host(values_, rows, columns);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < columns; ++i) {
        values_[r * columns + i] = static_cast<float>(host.at(r, i));
      }
    }
  }

  const LinearOperand& operand() const { return operand_; }
  // Product of row `row` with x, times `scale`, plus the bias.
  double apply(int64_t row, const double* x, double scale = 1.0) const {
    double sum = 0.0;
    const float* w = values_.data() + row * columns_;
    for (int64_t i = 0; i < columns_; ++i) sum += w[i] * x[i];
    return sum * scale + bias_[row];
  }
  int64_t rows() const { return rows_; }

 private:
  int64_t rows_, columns_;
  std::vector<float> values_, bias_;
  Array device_, device_bias_;
  std::unique_ptr<DeviceQuantized> quantized_;
  LinearOperand operand_;
};

// Weights of a layer, and activations of as many rows as the kernel takes.
struct Tail {
  explicit Tail(const TailCase& tail_case)
      : c(tail_case),
        output(c.hidden, c.attended, c),
        gate_up(2 * c.inner, c.hidden, c),
        down(c.hidden, c.inner, c),
        next(std::max<int64_t>(c.next, 8), c.hidden, c),
        attended(random_values(kRows * c.attended, kType)),
        residual(random_values(kRows * c.hidden, kType, 2.0f)),
        mlp_norm(random_values(c.hidden, DType::kFloat32)),
        next_norm(random_values(c.hidden, DType::kFloat32)) {}

  const TailCase c;
  const Weight output, gate_up, down, next;
  const std::vector<float> attended, residual, mlp_norm, next_norm;
};

struct Result {
  std::vector<float> residual, normed, next;
  bool operator==(const Result&) const = default;
};

Result run(FusedLayerTail& kernel, const Tail& t, int64_t rows, int launches) {
  const TailCase& c = t.c;
  const Array attended(kType, t.attended), residual(kType, t.residual);
  const Array normed(kType, rows * c.hidden), gated(kType, rows * c.inner);
  const Array next_out(kType, rows * std::max<int64_t>(c.next, 8));
  const Array norms[2] = {{DType::kFloat32, t.mlp_norm}, {DType::kFloat32, t.next_norm}};
  LayerTailCall call{.output = t.output.operand(),
                     .gate_up = t.gate_up.operand(),
                     .down = t.down.operand(),
                     .next = {},
                     .mlp_norm = static_cast<const float*>(norms[0].data()),
                     .next_norm = static_cast<const float*>(norms[1].data()),
                     .eps = kEps,
                     .attended = attended.matrix(rows, c.attended),
                     .residual = residual.matrix(rows, c.hidden),
                     .normed = normed.matrix(rows, c.hidden),
                     .gated = gated.matrix(rows, c.inner),
                     .next_out = next_out.matrix(rows, std::max<int64_t>(c.next, 8))};
  if (c.next > 0) call.next = t.next.operand();
  expect(FusedLayerTail::accepts(call), "layer tail: not accepted");
  for (int i = 0; i < launches; ++i) kernel.run(context(), call);
  synchronize();
  Result result{residual.download(), {}, {}};
  result.residual.resize(rows * c.hidden);
  if (c.next == 0) result.normed = normed.download();
  if (c.next > 0) result.next = next_out.download();
  return result;
}

// One row of the residual after both additions, and what follows from it.
void reference_row(const Tail& t, int64_t row, std::vector<double>& r, std::vector<double>& last) {
  const TailCase& c = t.c;
  const std::vector<double> a(t.attended.begin() + row * c.attended,
                              t.attended.begin() + (row + 1) * c.attended);
  r.assign(t.residual.begin() + row * c.hidden, t.residual.begin() + (row + 1) * c.hidden);
  std::vector<double> x(c.hidden), gated(c.inner);
  const auto add = [&](const Weight& weight, const double* in, const std::vector<float>& norm) {
    double squares = 0.0;
    for (int64_t i = 0; i < c.hidden; ++i) {
      r[i] = round_half(r[i] + round_half(weight.apply(i, in)));
      squares += r[i] * r[i];
      x[i] = round_half(r[i] * norm[i]);
    }
    return 1.0 / std::sqrt(squares / static_cast<double>(c.hidden) + kEps);
  };
  double scale = add(t.output, a.data(), t.mlp_norm);
  for (int64_t i = 0; i < c.inner; ++i) {
    const double gate = round_half(t.gate_up.apply(i, x.data(), scale));
    const double up = round_half(t.gate_up.apply(c.inner + i, x.data(), scale));
    gated[i] = round_half(gate / (1.0 + std::exp(-gate)) * up);
  }
  scale = add(t.down, gated.data(), t.next_norm);
  last.clear();
  for (int64_t i = 0; i < c.next; ++i) last.push_back(t.next.apply(i, x.data(), scale));
  if (c.next > 0) return;
  for (int64_t i = 0; i < c.hidden; ++i) last.push_back(r[i] * scale * t.next_norm[i]);
}

void check_rows(FusedLayerTail& kernel, const Tail& tail, int64_t rows) {
  const TailCase& c = tail.c;
  const Result got = run(kernel, tail, rows, 1);
  const std::vector<float>& out = c.next > 0 ? got.next : got.normed;
  const int64_t width = c.next > 0 ? c.next : c.hidden;
  std::vector<float> got_residual, got_last;
  std::vector<double> ref_residual, ref_last, r, last;
  for (const int64_t row : std::set<int64_t>{0, rows / 2, rows - 1}) {
    reference_row(tail, row, r, last);
    ref_residual.insert(ref_residual.end(), r.begin(), r.end());
    ref_last.insert(ref_last.end(), last.begin(), last.end());
    const float* residual = got.residual.data() + row * c.hidden;
    got_residual.insert(got_residual.end(), residual, residual + c.hidden);
    got_last.insert(got_last.end(), out.data() + row * width, out.data() + (row + 1) * width);
  }
  const std::string name = "layer tail " + std::to_string(rows) + " rows, " +
                           std::to_string(c.attended) + " " + std::to_string(c.hidden) + " " +
                           std::to_string(c.inner) + " " + std::to_string(c.next) +
                           (c.is_fp8 ? " fp8" : "");
  // Each result is behind three to five roundings; fp8 weights may round the other way at times.
  const double tolerance = (c.is_fp8 ? 4 : 2) * tolerance_of(kType);
  expect_close(got_residual, ref_residual, tolerance, name + ": residual");
  expect_close(got_last, ref_last, 2 * tolerance, name + ": out");
  for (const std::vector<float>* all : {&got.residual, &out}) {
    expect(std::ranges::none_of(*all, [](float v) { return std::isnan(v); }), name + ": NaN");
  }
  expect(run(kernel, tail, rows, 1) == got, name + ": differs from run to run");
  expect(run(kernel, tail, rows, 7) == run(kernel, tail, rows, 7),
         name + ": launches in a row differ");
}

void check_tail(FusedLayerTail& kernel, const TailCase& c, const std::vector<int64_t>& rows) {
  const Tail tail(c);
  for (const int64_t count : rows) check_rows(kernel, tail, count);
}

CUDA_TEST(layer_tail_matches_reference) {
  FusedLayerTail kernel(context());
  check_tail(kernel, {576, 576, 1536, 960}, {1, 2, 7, 8, 9, 16, 17, 31, 64, 65, 128});
  check_tail(kernel, {576, 576, 1536, 960, true}, {1, 64, 100});
  check_tail(kernel, {1024, 520, 8 * random_int(1, 100), 0, true}, {1, 5, 12, 33, 64, 96});
  check_tail(kernel, {2048, 2048, 8192, 3072}, {1, 8, 30, 64, 128});
  check_tail(kernel, {4096, 4096, 14336, 6144}, {1, 64, 128});
  check_tail(kernel, {576, 576, 1536, 960, true, true}, {1, 11, 30, 50});
  check_tail(kernel, {2048, 1040, 4096, 0, false, true}, {1, 64});
}

// Small enough for compute-sanitizer.
CUDA_TEST(small_layer_tail) {
  FusedLayerTail kernel(context());
  check_tail(kernel, {136, 264, 520, 72, true}, {1, 20, 40, 70});
  check_tail(kernel, {264, 136, 72, 0}, {1, 20, 40});
  check_tail(kernel, {272, 144, 528, 80, true, true}, {3});
}

}  // namespace
}  // namespace octavo::cuda::testing
