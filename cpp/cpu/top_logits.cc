#include "cpu/top_logits.h"

#include <algorithm>
#include <functional>
#include <limits>

namespace octavo::cpu {
namespace {

// A lower bound of the k-th greatest logit: the k-th greatest of the maxima of disjoint runs, since
// each of those is an element. With few more elements than k above it when runs are many.
float lower_bound_of_kth(const Kernels& kernels, std::span<const float> logits, int64_t k,
                         TopLogitsScratch& scratch) {
  const int64_t size = std::ssize(logits);
  int64_t run = 256;
  while (run > 16 && size / run < 4 * k) run /= 2;
  const int64_t num_runs = (size + run - 1) / run;
  if (num_runs < k) return -std::numeric_limits<float>::infinity();
  scratch.ordered_maxima.resize(num_runs);
  kernels.run_maxima(logits.data(), size, run, scratch.ordered_maxima.data());
  const auto kth = scratch.ordered_maxima.begin() + (k - 1);
  std::ranges::nth_element(scratch.ordered_maxima, kth, std::greater<>());
  return *kth;
}

}  // namespace

void top_logits(const Kernels& kernels, std::span<const float> logits, int64_t k,
                TopLogitsScratch& scratch, std::vector<Candidate>& out) {
  const int64_t size = std::ssize(logits);
  k = std::min(k, size);
  out.clear();
  if (k <= 0) return;
  const float threshold = lower_bound_of_kth(kernels, logits, k, scratch);
  scratch.indices.resize(size);
  const int64_t count =
      kernels.collect_at_least(logits.data(), size, threshold, scratch.indices.data(), size);
  for (int64_t i = 0; i < count; ++i) {
    out.push_back({logits[scratch.indices[i]], scratch.indices[i]});
  }
  if (count > k) {
    std::ranges::nth_element(out, out.begin() + (k - 1), std::less<>());
    out.resize(k);
  }
  std::ranges::sort(out, std::less<>());
}

}  // namespace octavo::cpu
