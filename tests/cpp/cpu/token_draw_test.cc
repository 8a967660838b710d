#include "cpu/token_draw.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "base/philox.h"
#include "cpu/cpu_testing.h"

namespace octavo::cpu {
namespace {

class TokenDrawTest : public EachIsa {
 protected:
  int32_t draw(const std::vector<float>& logits, const SamplingParams& sampling, float uniform) {
    const Kernels& kernels = kernels_for(GetParam());
    const float max = kernels.max_or_nan(logits.data(), std::ssize(logits));
    return draw_token(kernels, logits, max, sampling, uniform, scratch_);
  }

  std::map<int32_t, int64_t> count_draws(const std::vector<float>& logits,
                                         const SamplingParams& sampling, int64_t num_draws) {
    std::map<int32_t, int64_t> counts;
    for (int64_t i = 0; i < num_draws; ++i) {
      ++counts[draw(logits, sampling, philox_uniform(42, static_cast<uint64_t>(i), 0))];
    }
    return counts;
  }

  TokenDrawScratch scratch_;
};
OCTAVO_TEST_EACH_ISA(TokenDrawTest);

// The distribution that the rules define, in double precision: 0 for tokens that they drop.
std::vector<double> twin(const std::vector<float>& logits, const SamplingParams& sampling) {
  std::vector<int32_t> order(logits.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  std::ranges::stable_sort(order, [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  const auto weight = [&](int32_t id) {
    return std::exp((double{logits[id]} - logits[order[0]]) / sampling.temperature);
  };
  if (sampling.top_k > 0) order.resize(std::min<size_t>(order.size(), sampling.top_k));
  double total = 0, sum = 0;
  for (const int32_t id : order) total += weight(id);
  std::vector<double> p(logits.size());
  for (const int32_t id : order) {
    if (sum >= sampling.top_p * total && sampling.top_p < 1) break;
    sum += weight(id);
    if (weight(id) >= sampling.min_p) p[id] = weight(id);
  }
  double kept = 0;
  for (const double x : p) kept += x;
  for (double& x : p) x /= kept;
  return p;
}

SamplingParams params(float temperature, int32_t top_k, float top_p, float min_p) {
  SamplingParams sampling;
  sampling.temperature = temperature;
  sampling.top_k = top_k;
  sampling.top_p = top_p;
  sampling.min_p = min_p;
  return sampling;
}

// Chi-square over tokens expected at least 5 times, the rest as one class; 5 standard deviations
// above the mean of the statistic with fixed draws.
void expect_distribution(const std::map<int32_t, int64_t>& counts, const std::vector<double>& p,
                         int64_t num_draws) {
  double statistic = 0, classes = 0, rest = 0, rest_seen = 0;
  for (int32_t id = 0; id < std::ssize(p); ++id) {
    const double expected = p[id] * static_cast<double>(num_draws);
    const double seen = counts.contains(id) ? static_cast<double>(counts.at(id)) : 0.0;
    ASSERT_TRUE(p[id] > 0 || seen == 0) << "token " << id << " was dropped";
    if (expected >= 5) {
      statistic += (seen - expected) * (seen - expected) / expected;
      ++classes;
    } else {
      rest += expected;
      rest_seen += seen;
    }
  }
  if (rest >= 5) {
    statistic += (rest_seen - rest) * (rest_seen - rest) / rest;
    ++classes;
  }
  const double freedom = classes - 1;
  EXPECT_LE(statistic, freedom + 5 * std::sqrt(2 * freedom) + 1e-9);
}

// What draw_token() must give, from a row that is sorted whole.
int32_t draw_sorted(const Kernels& kernels, const std::vector<float>& logits,
                    const SamplingParams& sampling, float uniform) {
  std::vector<Candidate> order;
  for (size_t i = 0; i < logits.size(); ++i) order.push_back({logits[i], static_cast<int32_t>(i)});
  std::sort(order.begin(), order.end());
  std::vector<float> weights(logits.size()), chunks((logits.size() + kSumChunk - 1) / kSumChunk);
  const float max = order[0].logit, scale = 1.0f / sampling.temperature;
  kernels.exp_terms(logits.data(), std::ssize(logits), max, scale, weights.data());
  kernels.exp_sums(logits.data(), std::ssize(logits), max, scale, chunks.data());
  double all = 0, sum = 0, total = 0, cumulative = 0;
  for (const float chunk : chunks) all += chunk;
  size_t count = 0;
  while (count < order.size() && sum < sampling.top_p * all) sum += weights[order[count++].id];
  for (size_t i = 0; i < count; ++i) {
    if (weights[order[i].id] < sampling.min_p) {
      count = i;
      break;
    }
    total += weights[order[i].id];
  }
  int32_t last = 0;
  for (size_t i = 0; i < count && (i == 0 || cumulative < uniform * total); ++i) {
    if (weights[order[i].id] <= 0) continue;
    last = order[i].id;
    cumulative += weights[last];
  }
  return last;
}

std::vector<float> rounded(std::vector<float> x, float step) {
  for (float& each : x) each = std::round(each / step) * step;
  return x;
}

TEST_P(TokenDrawTest, TopPTakesTheTokenThatASortedRowGives) {
  std::vector<float> banned = random_floats(3000, 5, 0.5f);
  for (size_t i = 0; i < banned.size(); i += 2) banned[i] = -INFINITY;
  std::vector<float> two_levels(5000, 0.0f);
  std::fill_n(two_levels.begin() + 1000, 700, 1e-7f);
  const std::vector<float> rows[] = {random_floats(50000, 1, 3.0f),
                                     random_floats(20000, 2, 0.5f),
                                     random_floats(8000, 3, 1e-4f),
                                     random_floats(3000, 4, 30.0f),
                                     rounded(random_floats(9000, 6, 1.0f), 0.25f),
                                     std::vector<float>(2000, -3.0f),
                                     banned,
                                     two_levels};
  const Kernels& kernels = kernels_for(GetParam());
  for (const auto& logits : rows) {
    for (const SamplingParams& sampling :
         {params(1, 0, 0.9f, 0), params(1, 0, 0.5f, 0), params(0.7f, 0, 0.99999f, 0),
          params(5, 0, 0.95f, 0), params(1, 0, 0.95f, 0.3f), params(1, 0, 0.9f, 0.9999f)}) {
      for (int i = 0; i < 12; ++i) {
        const float uniform = i == 0 ? 1.0f : philox_uniform(9, static_cast<uint64_t>(i), 0);
        ASSERT_EQ(draw(logits, sampling, uniform), draw_sorted(kernels, logits, sampling, uniform))
            << logits.size() << " logits from " << logits[0] << ", top_p " << sampling.top_p
            << ", min_p " << sampling.min_p << ", uniform " << uniform;
      }
    }
  }
}

TEST_P(TokenDrawTest, FollowsTheDistribution) {
  const auto logits = random_floats(600, 3, 2.0f);
  for (const SamplingParams& sampling :
       {params(1, 0, 1, 0), params(0.5f, 0, 1, 0), params(2, 0, 1, 0), params(1, 7, 1, 0),
        params(1, 0, 0.8f, 0), params(0.7f, 0, 0.3f, 0), params(1, 0, 1, 0.1f),
        params(1.3f, 40, 0.9f, 0.05f), params(1, 1, 1, 0), params(1, 2000, 1, 0),
        params(1, 0, 0.9999f, 0), params(1.5f, 300, 0.99f, 0)}) {
    constexpr int64_t kDraws = 4000;
    expect_distribution(count_draws(logits, sampling, kDraws), twin(logits, sampling), kDraws);
  }
}

// The token is where the cumulative distribution reaches the random number.
TEST_P(TokenDrawTest, InvertsTheCumulativeDistribution) {
  const std::vector<float> logits = {std::log(0.2f), std::log(0.5f), std::log(0.3f)};
  const auto all = params(1, 0, 1, 0);
  EXPECT_EQ(draw(logits, all, 1e-7f), 0);
  EXPECT_EQ(draw(logits, all, 0.19f), 0);
  EXPECT_EQ(draw(logits, all, 0.21f), 1);
  EXPECT_EQ(draw(logits, all, 0.69f), 1);
  EXPECT_EQ(draw(logits, all, 0.71f), 2);
  EXPECT_EQ(draw(logits, all, 1.0f), 2);
}

TEST_P(TokenDrawTest, NeverDrawsABannedToken) {
  std::vector<float> logits(3000, -INFINITY);
  logits[1234] = -5.0f;
  for (const SamplingParams& sampling :
       {params(1, 0, 1, 0), params(1, 50, 1, 0), params(1, 0, 0.9f, 0), params(1, 0, 1, 0.5f)}) {
    for (const float uniform : {1e-7f, 0.5f, 1.0f})
      EXPECT_EQ(draw(logits, sampling, uniform), 1234);
  }
}

TEST_P(TokenDrawTest, TopPKeepsAtLeastOne) {
  const std::vector<float> logits = {0.0f, 0.1f, 0.0f};
  for (const float uniform : {1e-7f, 1.0f})
    EXPECT_EQ(draw(logits, params(1, 0, 1e-6f, 0), uniform), 1);
}

TEST_P(TokenDrawTest, ALowTemperatureIsGreedy) {
  const auto logits = random_floats(5000, 9);
  const int32_t best =
      greedy_token(kernels_for(GetParam()), logits, *std::ranges::max_element(logits));
  for (const float uniform : {1e-7f, 0.5f, 1.0f}) {
    EXPECT_EQ(draw(logits, params(kGreedyTemperature, 0, 1, 0), uniform), best);
  }
}

TEST_P(TokenDrawTest, GreedyTakesTheLowestIdOfEquals) {
  std::vector<float> logits(100, 1.0f);
  logits[41] = logits[40] = logits[99] = 2.0f;
  EXPECT_EQ(greedy_token(kernels_for(GetParam()), logits, 2.0f), 40);
}

}  // namespace
}  // namespace octavo::cpu
