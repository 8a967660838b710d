// What single families of models need: norms of heads, GELU, multipliers, soft caps, experts.
#include <algorithm>
#include <numeric>

#include "checker.h"
#include "cuda/experts.h"
#include "cuda/gelu_tanh_mul.h"
#include "cuda/grouped_stream.h"
#include "cuda/qk_norm.h"
#include "cuda/scale.h"

namespace octavo::cuda::testing {
namespace {

constexpr DType kHalfTypes[] = {DType::kBFloat16, DType::kFloat16};

CUDA_TEST(gelu_tanh_mul_matches_reference) {
  for (const DType dtype : kHalfTypes) {
    for (const int64_t width : {8, 1536, 9216}) {
      const int64_t rows = random_int(1, 30);
      const auto values = random_values(rows * 2 * width, dtype, 4.0f);
      const Array gate_up(dtype, values), out(dtype, rows * width);
      gelu_tanh_mul(context(), gate_up.matrix(rows, 2 * width), out.matrix(rows, width));
      std::vector<double> ref(rows * width);
      for (int64_t i = 0; i < rows * width; ++i) {
        const double g = values[i / width * 2 * width + i % width];
        const double up = values[i / width * 2 * width + width + i % width];
        ref[i] = 0.5 * g * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (g + 0.044715 * g * g * g)));
        ref[i] *= up;
      }
      expect_close(out.download(), ref, tolerance_of(dtype), "gelu_tanh_mul");
    }
  }
}

CUDA_TEST(scale_and_soft_cap_match_reference) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16, DType::kFloat32}) {
    const int64_t size = random_int(1, 20000);
    const auto values = random_values(size, dtype, 40.0f);
    const Array x(dtype, values);
    scale(context(), x.matrix(1, size), 0.37f);
    std::vector<double> ref(size);
    std::ranges::transform(values, ref.begin(), [](float v) { return v * 0.37; });
    expect_close(x.download(), ref, tolerance_of(dtype), "scale");
    if (dtype != DType::kFloat32) continue;
    const Array y(dtype, values);
    soft_cap(context(), y.matrix(1, size), 30.0f);
    std::ranges::transform(values, ref.begin(), [](float v) { return 30.0 * std::tanh(v / 30.0); });
    expect_close(y.download(), ref, tolerance_of(dtype), "soft_cap");
  }
}

CUDA_TEST(qk_norm_matches_reference) {
  for (const DType dtype : kHalfTypes) {
    for (const int64_t dim : {64, 72, 128, 256}) {
      for (const bool per_head : {true, false}) {
        const int64_t rows = random_int(1, 40), q = 6 * dim, k = 2 * dim, width = q + 2 * k;
        const auto values = random_values(rows * width, dtype, 3.0f);
        const auto weight = random_values(q, DType::kFloat32);
        const Array qkv(dtype, values), w(DType::kFloat32, weight);
        const auto* device_weight = static_cast<const float*>(w.data());
        const int64_t q_run = per_head ? dim : q, k_run = per_head ? dim : k;
        AttentionParams params;
        params.num_q_heads = 6;
        params.num_kv_heads = 2;
        params.head_dim = dim;
        qk_norm(context(), qkv.matrix(rows, width),
                {device_weight, device_weight, q_run, k_run, 1e-6f}, params);
        std::vector<double> ref(values.begin(), values.end());
        for (int64_t i = 0; i < rows * width; ++i) {
          const int64_t col = i % width;
          if (col >= q + k) continue;
          const int64_t run = col < q ? q_run : k_run, at = (col < q ? col : col - q) % run;
          const auto first = values.begin() + (i - at);
          const double squares = std::inner_product(first, first + run, first, 0.0);
          ref[i] *= weight[at] / std::sqrt(squares / static_cast<double>(run) + 1e-6);
        }
        expect_close(qkv.download(), ref, tolerance_of(dtype), "qk_norm " + std::to_string(dim));
      }
    }
  }
}

struct ExpertShape {
  int64_t tokens, experts, per_token, in, out;
};

// The device's plan, and what it should be.
class Routed {
 public:
  // Skewed: the first experts have nearly all tokens.
  Routed(const ExpertShape& s, bool renormalize, bool is_skewed = false)
      : pairs_(s.tokens * s.per_token),
        memory_(expert_plan_size(pairs_, s.experts) * static_cast<int64_t>(sizeof(int32_t))) {
    const int64_t size = expert_plan_size(pairs_, s.experts);
    plan = expert_plan(TensorView::matrix(memory_.data(), DType::kInt32, 1, size), s.tokens,
                       s.experts, s.per_token);
    auto logits = random_values(s.tokens * s.experts, DType::kFloat32, 2.0f);
    for (int64_t t = 0; is_skewed && t < s.tokens; ++t) {
      for (int64_t e = 0; e < s.per_token; ++e) logits[t * s.experts + e] += 8.0f;
    }
    const Array device_logits(DType::kFloat32, logits);
    route_experts(context(), device_logits.matrix(s.tokens, s.experts), renormalize, plan);
    synchronize();
    for (int64_t t = 0; t < s.tokens; ++t) choose(&logits[t * s.experts], s, renormalize);
  }

  ExpertPlan plan;
  std::vector<int32_t> experts;  // of each pair
  std::vector<double> weights;

 private:
  void choose(const float* logits, const ExpertShape& s, bool renormalize) {
    std::vector<int32_t> order(s.experts);
    std::iota(order.begin(), order.end(), 0);
    std::ranges::stable_sort(order, [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
    double total = 0.0;
    for (int64_t e = 0; e < (renormalize ? s.per_token : s.experts); ++e) {
      total += std::exp(double{logits[order[e]]});
    }
    for (int64_t k = 0; k < s.per_token; ++k) {
      experts.push_back(order[k]);
      weights.push_back(std::exp(double{logits[order[k]]}) / total);
    }
  }

  int64_t pairs_;
  DeviceMemory memory_;
};

const ExpertShape kShapes[] = {{1, 8, 2, 64, 64},     {3, 128, 8, 256, 72},  {64, 128, 8, 128, 200},
                               {130, 8, 2, 72, 128},  {700, 64, 8, 64, 136}, {2000, 5, 1, 200, 64},
                               {17, 512, 10, 128, 96}};

CUDA_TEST(experts_are_chosen_and_combined_as_in_the_reference) {
  for (const bool renormalize : {true, false}) {
    for (const ExpertShape& s : kShapes) {
      const Routed routed(s, renormalize);
      const int64_t pairs = s.tokens * s.per_token;
      const auto rows = random_values(pairs * s.out, DType::kBFloat16);
      const Array device_rows(DType::kBFloat16, rows), out(DType::kBFloat16, s.tokens * s.out);
      combine_experts(context(), device_rows.matrix(pairs, s.out), routed.plan,
                      out.matrix(s.tokens, s.out));
      std::vector<int64_t> order(pairs);
      std::iota(order.begin(), order.end(), 0);
      std::ranges::stable_sort(order, {}, [&](int64_t p) { return routed.experts[p]; });
      std::vector<double> ref(s.tokens * s.out);
      for (int64_t row = 0; row < pairs; ++row) {
        const int64_t pair = order[row], token = pair / s.per_token;
        for (int64_t c = 0; c < s.out; ++c) {
          ref[token * s.out + c] += routed.weights[pair] * rows[row * s.out + c];
        }
      }
      expect_close(out.download(), ref, 4e-3, "experts " + std::to_string(s.experts));
    }
  }
}

CUDA_TEST(grouped_linear_matches_reference) {
  for (const DType dtype : kHalfTypes) {
    for (const ExpertShape& s : kShapes) {
      const Routed routed(s, true);
      const int64_t pairs = s.tokens * s.per_token;
      const auto x = random_values(s.tokens * s.in, dtype);
      const auto w = random_values(s.experts * s.out * s.in, dtype);
      const Array device_x(dtype, x), device_w(dtype, w), out(dtype, pairs * s.out);
      grouped_linear(context(), device_w.matrix(s.experts * s.out, s.in),
                     device_x.matrix(s.tokens, s.in), true, routed.plan, out.matrix(pairs, s.out));
      std::vector<int64_t> order(pairs);
      std::iota(order.begin(), order.end(), 0);
      std::ranges::stable_sort(order, {}, [&](int64_t p) { return routed.experts[p]; });
      std::vector<double> ref(pairs * s.out);
      for (int64_t row = 0; row < pairs; ++row) {
        const float* token = &x[order[row] / s.per_token * s.in];
        const float* expert = &w[routed.experts[order[row]] * s.out * s.in];
        for (int64_t c = 0; c < s.out; ++c) {
          ref[row * s.out + c] = std::inner_product(token, token + s.in, expert + c * s.in, 0.0);
        }
      }
      expect_close(out.download(), ref, tolerance_of(dtype), "grouped " + std::to_string(s.tokens));
    }
  }
}

// Rows of the plan: pairs in the order of their experts.
std::vector<int64_t> row_order(const Routed& routed, int64_t pairs) {
  std::vector<int64_t> order(pairs);
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, {}, [&](int64_t p) { return routed.experts[p]; });
  return order;
}

// The gated product of `s`, and the product that leads back from it, at sampled elements.
void check_grouped_stream(const ExpertShape& s, DType dtype, bool is_skewed) {
  const Routed routed(s, true, is_skewed);
  const int64_t pairs = s.tokens * s.per_token;
  const auto x = random_values(s.tokens * s.in, dtype);
  const auto w = random_values(s.experts * 2 * s.out * s.in, dtype, 0.1f);
  const auto back = random_values(s.experts * s.in * s.out, dtype, 0.1f);
  const Array device_x(dtype, x), device_w(dtype, w), device_back(dtype, back);
  const Array gated(dtype, pairs * s.out), out(dtype, pairs * s.in);
  GroupedStream linear(context());
  const auto run = [&] {
    linear.run_gated(context(), device_w.matrix(s.experts * 2 * s.out, s.in),
                     device_x.matrix(s.tokens, s.in), routed.plan, gated.matrix(pairs, s.out));
    linear.run(context(), device_back.matrix(s.experts * s.in, s.out), gated.matrix(pairs, s.out),
               routed.plan, out.matrix(pairs, s.in), true);
    return std::pair(gated.download(), out.download());
  };
  const auto found = run();
  const auto order = row_order(routed, pairs);
  std::vector<float> got, got_back;
  std::vector<double> ref, ref_back;
  const auto product = [](const float* a, const float* b, int64_t size) {
    double sum = 0.0;
    for (int64_t i = 0; i < size; ++i) sum += double{a[i]} * b[i];
    return sum;
  };
  for (int i = 0; i < 600; ++i) {
    const int64_t row = i < 2 ? i * (pairs - 1) : random_int(0, pairs - 1);
    const int64_t c = i < 2 ? i * (s.out - 1) : random_int(0, s.out - 1);
    const int64_t c_back = i < 2 ? i * (s.in - 1) : random_int(0, s.in - 1);
    const int64_t expert = routed.experts[order[row]];
    const float* token = &x[order[row] / s.per_token * s.in];
    const double gate = product(token, &w[(expert * 2 * s.out + c) * s.in], s.in);
    const double up = product(token, &w[((expert * 2 + 1) * s.out + c) * s.in], s.in);
    ref.push_back(gate / (1.0 + std::exp(-gate)) * up);
    got.push_back(found.first[row * s.out + c]);
    ref_back.push_back(
        product(&found.first[row * s.out], &back[(expert * s.in + c_back) * s.out], s.out));
    got_back.push_back(found.second[row * s.in + c_back]);
  }
  const std::string name = "grouped stream " + std::to_string(s.tokens) + " tokens, " +
                           std::to_string(s.experts) + " experts" + (is_skewed ? ", skewed" : "");
  expect_close(got, ref, 2 * tolerance_of(dtype), name + ", gated");
  expect_close(got_back, ref_back, tolerance_of(dtype), name);
  const auto has_nan = [](const std::vector<float>& v) {
    return std::ranges::any_of(v, [](float f) { return std::isnan(f); });
  };
  expect(!has_nan(found.first) && !has_nan(found.second), name + ": NaN");
  expect(run() == found, name + ": differs from run to run");
}

CUDA_TEST(grouped_stream_matches_reference) {
  for (const DType dtype : kHalfTypes) {
    for (const bool is_skewed : {false, true}) {
      for (const ExpertShape& s :
           {ExpertShape{1, 8, 2, 64, 64}, ExpertShape{1, 16, 8, 2048, 768},
            ExpertShape{3, 128, 8, 256, 64}, ExpertShape{64, 128, 8, 512, 192},
            ExpertShape{130, 8, 2, 192, 128}, ExpertShape{256, 128, 8, 128, 64},
            ExpertShape{500, 128, 8, 64, 64}, ExpertShape{2000, 5, 1, 192, 64},
            ExpertShape{17, 512, 10, 128, 192}}) {
        check_grouped_stream(s, dtype, is_skewed);
      }
    }
  }
}

// Small enough for compute-sanitizer.
CUDA_TEST(small_grouped_streams) {
  check_grouped_stream({1, 8, 2, 128, 64}, DType::kBFloat16, false);
  check_grouped_stream({40, 16, 2, 128, 192}, DType::kBFloat16, true);
}

}  // namespace
}  // namespace octavo::cuda::testing
