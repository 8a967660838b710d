#include "cpu/top_logits.h"

#include <algorithm>

#include "cpu/cpu_testing.h"

namespace octavo::cpu {
namespace {

class TopLogitsTest : public EachIsa {};
OCTAVO_TEST_EACH_ISA(TopLogitsTest);

std::vector<Candidate> sorted(const std::vector<float>& logits, int64_t k) {
  std::vector<Candidate> all;
  for (size_t i = 0; i < logits.size(); ++i) all.push_back({logits[i], static_cast<int32_t>(i)});
  std::ranges::stable_sort(all, [](auto a, auto b) { return a.logit > b.logit; });
  all.resize(std::min<size_t>(all.size(), k));
  return all;
}

TEST_P(TopLogitsTest, AreTheFirstOfASort) {
  const Kernels& kernels = kernels_for(GetParam());
  TopLogitsScratch scratch;
  std::vector<Candidate> top;
  for (const int64_t size : {1, 5, 16, 100, 1000, 49152}) {
    auto logits = random_floats(size, static_cast<uint32_t>(size), 4.0f);
    for (const bool has_ties : {false, true}) {
      if (has_ties) {
        for (float& x : logits) x = std::round(x);
      }
      for (const int64_t k : {0, 1, 2, 20, 50, 999, 5000, 60000}) {
        top_logits(kernels, logits, k, scratch, top);
        const auto expected = sorted(logits, k);
        ASSERT_EQ(top.size(), expected.size());
        for (size_t i = 0; i < top.size(); ++i) {
          ASSERT_EQ(top[i].id, expected[i].id) << "size " << size << " k " << k << " place " << i;
        }
      }
    }
  }
}

TEST_P(TopLogitsTest, HoldWithMostTokensBanned) {
  const Kernels& kernels = kernels_for(GetParam());
  TopLogitsScratch scratch;
  std::vector<Candidate> top;
  std::vector<float> logits(5000, -INFINITY);
  logits[77] = -1.0f;
  logits[4999] = 2.0f;
  top_logits(kernels, logits, 3, scratch, top);
  ASSERT_EQ(top.size(), 3u);
  EXPECT_EQ(top[0].id, 4999);
  EXPECT_EQ(top[1].id, 77);
  EXPECT_EQ(top[2].id, 0);
}

}  // namespace
}  // namespace octavo::cpu
