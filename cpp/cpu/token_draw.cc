#include "cpu/token_draw.h"

#include <algorithm>
#include <cmath>

namespace octavo::cpu {
namespace {

struct Row {
  const Kernels& kernels;
  std::span<const float> logits;
  float max;
  float scale;  // 1 / temperature

  float weight(float logit) const {
    float w = 0.0f;
    kernels.exp_terms(&logit, 1, max, scale, &w);
    return w;
  }
};

// Sums of the chunks of weights into scratch.chunk_sums; returns their total.
double sum_weights(const Row& row, TokenDrawScratch& scratch) {
  const int64_t size = std::ssize(row.logits);
  scratch.chunk_sums.resize((size + kSumChunk - 1) / kSumChunk);
  row.kernels.exp_sums(row.logits.data(), size, row.max, row.scale, scratch.chunk_sums.data());
  double total = 0.0;
  for (const float sum : scratch.chunk_sums) total += sum;
  return total;
}

// The first index whose cumulative weight reaches `target`; the last of positive weight when
// rounding keeps the sum below it.
int64_t find_cumulative(std::span<const float> weights, double target) {
  double sum = 0.0;
  int64_t last = 0;
  for (int64_t i = 0; i < std::ssize(weights); ++i) {
    if (weights[i] <= 0.0f) continue;
    last = i;
    sum += weights[i];
    if (sum >= target) break;
  }
  return last;
}

int32_t draw_from_all(const Row& row, float uniform, TokenDrawScratch& scratch) {
  const double target = uniform * sum_weights(row, scratch);
  double before = 0.0;
  int64_t chunk = 0, chosen = 0;
  for (; chunk < std::ssize(scratch.chunk_sums); ++chunk) {
    if (scratch.chunk_sums[chunk] <= 0.0f) continue;
    chosen = chunk;
    if (before + scratch.chunk_sums[chunk] >= target) break;
    before += scratch.chunk_sums[chunk];
  }
  const auto part = row.logits.subspan(
      chosen * kSumChunk, std::min(kSumChunk, std::ssize(row.logits) - chosen * kSumChunk));
  scratch.weights.resize(part.size());
  row.kernels.exp_terms(part.data(), std::ssize(part), row.max, row.scale, scratch.weights.data());
  return static_cast<int32_t>(chosen * kSumChunk +
                              find_cumulative(scratch.weights, target - before));
}

double weigh_candidates(const Row& row, TokenDrawScratch& scratch) {
  scratch.weights.clear();
  double total = 0.0;
  for (const Candidate& candidate : scratch.candidates) {
    scratch.weights.push_back(row.weight(candidate.logit));
    total += scratch.weights.back();
  }
  return total;
}

// How many of the candidates hold `mass`, or nothing if all of them do not.
int64_t count_reaching(std::span<const float> weights, double mass) {
  double sum = 0.0;
  for (int64_t i = 0; i < std::ssize(weights); ++i) {
    sum += weights[i];
    if (sum >= mass) return i + 1;
  }
  return -1;
}

// Leaves the nucleus in scratch.candidates and scratch.weights. Without top_k the candidates grow
// until they hold the mass, so a peaked distribution never sorts the vocabulary.
void select_candidates(const Row& row, const SamplingParams& sampling, TokenDrawScratch& scratch) {
  constexpr int64_t kFirstGuess = 64, kGrowth = 8;
  const int64_t size = std::ssize(row.logits);
  const bool has_top_k = sampling.top_k > 0 && sampling.top_k < size;
  double mass = has_top_k ? 0.0 : sampling.top_p * sum_weights(row, scratch);
  int64_t count = -1;
  for (int64_t k = has_top_k ? sampling.top_k : kFirstGuess; count < 0; k *= kGrowth) {
    top_logits(row.kernels, row.logits, k, scratch.top, scratch.candidates);
    const double total = weigh_candidates(row, scratch);
    if (has_top_k) mass = sampling.top_p * total;
    count = sampling.top_p < 1.0f ? count_reaching(scratch.weights, mass) : -1;
    if (count < 0 && (has_top_k || k >= size)) count = std::ssize(scratch.candidates);
  }
  scratch.candidates.resize(count);
  scratch.weights.resize(count);
}

int32_t draw_from_candidates(const SamplingParams& sampling, float uniform,
                             TokenDrawScratch& scratch) {
  const float least = sampling.min_p * scratch.weights[0];
  double total = 0.0;
  size_t kept = 0;
  while (kept < scratch.weights.size() && scratch.weights[kept] >= least) {
    total += scratch.weights[kept++];
  }
  scratch.weights.resize(kept);
  return scratch.candidates[find_cumulative(scratch.weights, uniform * total)].id;
}

// min_p alone needs no order: the tokens above one bound, in ascending ids.
int32_t draw_above_min_p(const Row& row, const SamplingParams& sampling, float uniform,
                         TokenDrawScratch& scratch) {
  const int64_t size = std::ssize(row.logits);
  // A little below the bound, so that the test on the weights decides alone.
  const float bound = row.max + (std::log(sampling.min_p) - 1e-3f) / row.scale;
  scratch.top.indices.resize(size);
  const int64_t count = row.kernels.collect_at_least(row.logits.data(), size, bound,
                                                     scratch.top.indices.data(), size);
  scratch.candidates.clear();
  scratch.weights.clear();
  double total = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t id = scratch.top.indices[i];
    const float weight = row.weight(row.logits[id]);
    if (weight < sampling.min_p) continue;
    scratch.candidates.push_back({row.logits[id], id});
    scratch.weights.push_back(weight);
    total += weight;
  }
  return scratch.candidates[find_cumulative(scratch.weights, uniform * total)].id;
}

}  // namespace

int32_t greedy_token(const Kernels& kernels, std::span<const float> logits, float max) {
  return static_cast<int32_t>(kernels.find_equal(logits.data(), std::ssize(logits), max));
}

int32_t draw_token(const Kernels& kernels, std::span<const float> logits, float max,
                   const SamplingParams& sampling, float uniform, TokenDrawScratch& scratch) {
  const Row row{kernels, logits, max, 1.0f / sampling.temperature};
  const bool has_top_k = sampling.top_k > 0 && sampling.top_k < std::ssize(logits);
  if (has_top_k || sampling.top_p < 1.0f) {
    select_candidates(row, sampling, scratch);
    return draw_from_candidates(sampling, uniform, scratch);
  }
  if (sampling.min_p > 0.0f) return draw_above_min_p(row, sampling, uniform, scratch);
  return draw_from_all(row, uniform, scratch);
}

}  // namespace octavo::cpu
