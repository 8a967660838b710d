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

// The k most likely tokens in scratch.candidates and scratch.weights; returns their total.
double take_top(const Row& row, int64_t k, TokenDrawScratch& scratch) {
  top_logits(row.kernels, row.logits, k, scratch.top, scratch.candidates);
  scratch.weights.clear();
  double total = 0.0;
  for (const Candidate& candidate : scratch.candidates) {
    scratch.weights.push_back(row.weight(candidate.logit));
    total += scratch.weights.back();
  }
  return total;
}

// Drops the candidates behind those that hold `mass`. False if all together do not hold it.
bool cut_at_mass(double mass, TokenDrawScratch& scratch) {
  double sum = 0.0;
  for (size_t i = 0; i < scratch.weights.size(); ++i) {
    sum += scratch.weights[i];
    if (sum < mass) continue;
    scratch.weights.resize(i + 1);
    return true;
  }
  return false;
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

int32_t draw_from_top_k(const Row& row, const SamplingParams& sampling, float uniform,
                        TokenDrawScratch& scratch) {
  const double total = take_top(row, sampling.top_k, scratch);
  if (sampling.top_p < 1.0f) cut_at_mass(sampling.top_p * total, scratch);
  return draw_from_candidates(sampling, uniform, scratch);
}

// A few candidates hold the mass of a peaked distribution; for others the row is dealt into bins.
int32_t draw_from_top_p(const Row& row, const SamplingParams& sampling, float uniform,
                        TokenDrawScratch& scratch) {
  constexpr int64_t kFewCandidates = 64;
  const double mass = sampling.top_p * sum_weights(row, scratch);
  take_top(row, kFewCandidates, scratch);
  if (cut_at_mass(mass, scratch)) return draw_from_candidates(sampling, uniform, scratch);
  const int64_t size = std::ssize(row.logits);
  scratch.weights.resize(size);
  row.kernels.exp_terms(row.logits.data(), size, row.max, row.scale, scratch.weights.data());
  scratch.nucleus.deal(row.logits, scratch.weights, row.max, sampling.temperature);
  const double kept = scratch.nucleus.find({mass, sampling.min_p}).weight;
  return scratch.nucleus.find({uniform * kept, 0.0f}).last_id;
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
  if (has_top_k) return draw_from_top_k(row, sampling, uniform, scratch);
  if (sampling.top_p < 1.0f) return draw_from_top_p(row, sampling, uniform, scratch);
  if (sampling.min_p > 0.0f) return draw_above_min_p(row, sampling, uniform, scratch);
  return draw_from_all(row, uniform, scratch);
}

}  // namespace octavo::cpu
