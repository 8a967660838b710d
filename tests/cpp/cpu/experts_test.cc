#include <algorithm>
#include <cmath>
#include <numeric>

#include "cpu/cpu_testing.h"

namespace octavo::cpu {
namespace {

constexpr int64_t kHidden = 40, kInner = 20, kExperts = 7, kPerToken = 3;

// A bank of random experts, and every buffer that a pass over some tokens takes.
class Mixture {
 public:
  Mixture(Backend& backend, bool renormalize)
      : backend_(backend),
        gate_up_(random_floats(kExperts * 2 * kInner * kHidden, 1, 0.3f)),
        down_(random_floats(kExperts * kHidden * kInner, 2, 0.3f)),
        gate_up_weight_(load(gate_up_, kInner, 2 * kExperts, kHidden)),
        down_weight_(load(down_, kHidden, kExperts, kInner)),
        bank_{*gate_up_weight_, *down_weight_, kExperts, kPerToken, renormalize} {}

  std::vector<float> run(std::vector<float> x, std::vector<float> logits) {
    const int64_t rows = std::ssize(x) / kHidden, pairs = rows * kPerToken;
    std::vector<int32_t> plan(expert_plan_size(pairs, kExperts));
    std::vector<float> gate_up(pairs * 2 * kInner), gated(pairs * kInner), out(pairs * kHidden);
    const ExpertScratch scratch{TensorView::matrix(plan.data(), DType::kInt32, 1, std::ssize(plan)),
                                matrix(gate_up, pairs, 2 * kInner), matrix(gated, pairs, kInner),
                                matrix(out, pairs, kHidden)};
    std::vector<float> result(rows * kHidden);
    backend_.experts(matrix(x, rows, kHidden), matrix(logits, rows, kExperts), bank_, scratch,
                     matrix(result, rows, kHidden));
    return result;
  }

  // One token, in double precision.
  std::vector<double> twin(const float* x, const float* logits) const {
    std::vector<int64_t> order(kExperts);
    std::iota(order.begin(), order.end(), 0);
    std::ranges::stable_sort(order, [&](int64_t a, int64_t b) { return logits[a] > logits[b]; });
    double total = 0;
    for (int64_t i = 0; i < (bank_.renormalize ? kPerToken : kExperts); ++i) {
      total += std::exp(double{logits[order[i]]});
    }
    std::vector<double> sum(kHidden);
    for (int64_t i = 0; i < kPerToken; ++i) {
      const double weight = std::exp(double{logits[order[i]]}) / total;
      const float* gate = &gate_up_[order[i] * 2 * kInner * kHidden];
      for (int64_t j = 0; j < kInner; ++j) {
        const double g = dot(gate + j * kHidden, x), u = dot(gate + (kInner + j) * kHidden, x);
        for (int64_t c = 0; c < kHidden; ++c) {
          const double w = down_[(order[i] * kHidden + c) * kInner + j];
          sum[c] += weight * g / (1 + std::exp(-g)) * u * w;
        }
      }
    }
    return sum;
  }

 private:
  // Each expert's projections come as tensors of their own, as in a checkpoint.
  std::unique_ptr<LinearWeight> load(const std::vector<float>& data, int64_t rows_each,
                                     int64_t count, int64_t in) {
    auto weight = backend_.create_linear(rows_each * count, in, false);
    for (int64_t i = 0; i < count; ++i) {
      backend_.load_rows(*weight, i * rows_each,
                         {data.data() + i * rows_each * in, DType::kFloat32, rows_each, in});
    }
    return weight;
  }
  static double dot(const float* row, const float* x) {
    return std::inner_product(row, row + kHidden, x, 0.0);
  }

  Backend& backend_;
  const std::vector<float> gate_up_, down_;
  const std::unique_ptr<LinearWeight> gate_up_weight_, down_weight_;
  const ExpertBank bank_;
};

class ExpertsTest : public EachIsa {
 protected:
  static std::unique_ptr<Backend> backend(int32_t num_threads = 2) {
    return create_backend(backend_options(isa(), DType::kFloat32, num_threads));
  }
};
OCTAVO_TEST_EACH_ISA(ExpertsTest);

std::vector<float> row(const std::vector<float>& values, int64_t index, int64_t size) {
  return {values.begin() + index * size, values.begin() + (index + 1) * size};
}

TEST_P(ExpertsTest, MatchesADoublePrecisionTwin) {
  const auto b = backend();
  for (const bool renormalize : {false, true}) {
    Mixture mixture(*b, renormalize);
    for (const int64_t rows : {1, 2, 9, 50}) {
      const auto x = random_floats(rows * kHidden, 3), logits = random_floats(rows * kExperts, 4);
      const auto out = mixture.run(x, logits);
      for (int64_t r = 0; r < rows; ++r) {
        const auto expected = mixture.twin(&x[r * kHidden], &logits[r * kExperts]);
        for (int64_t c = 0; c < kHidden; ++c) {
          ASSERT_NEAR(out[r * kHidden + c], expected[c], 1e-5) << rows << " rows, row " << r;
        }
      }
    }
  }
}

TEST_P(ExpertsTest, ARowDoesNotDependOnTheBatchOrTheThreads) {
  const auto b = backend();
  Mixture mixture(*b, true);
  constexpr int64_t kRows = 33;
  const auto x = random_floats(kRows * kHidden, 3), logits = random_floats(kRows * kExperts, 4);
  const auto all = mixture.run(x, logits);
  for (const int64_t r : {0, 7, 32}) {
    EXPECT_TRUE(
        same_bits(mixture.run(row(x, r, kHidden), row(logits, r, kExperts)), row(all, r, kHidden)));
  }
  const auto single = backend(1);
  EXPECT_TRUE(same_bits(Mixture(*single, true).run(x, logits), all));
}

TEST_P(ExpertsTest, EqualLogitsGoToTheFirstExpertsAndNaNHarmsOnlyItsRow) {
  const auto b = backend();
  Mixture mixture(*b, true);
  const auto x = random_floats(2 * kHidden, 3);
  std::vector<float> logits(2 * kExperts, 0.5f);
  logits[kExperts] = NAN;
  const auto out = mixture.run(x, logits);
  const auto expected = mixture.twin(x.data(), logits.data());
  for (int64_t c = 0; c < kHidden; ++c) ASSERT_NEAR(out[c], expected[c], 1e-5);
  EXPECT_TRUE(std::isnan(out[kHidden]));
}

}  // namespace
}  // namespace octavo::cpu
