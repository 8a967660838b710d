// One token from one row of logits: temperature, top-k, top-p, min-p and the random number.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/nucleus.h"
#include "cpu/top_logits.h"
#include "sched/sampling_params.h"

namespace octavo::cpu {

// Working memory of one thread; grows to the vocabulary once.
struct TokenDrawScratch {
  TopLogitsScratch top;
  std::vector<Candidate> candidates;
  std::vector<float> weights;
  std::vector<float> chunk_sums;
  Nucleus nucleus;
};

// Temperatures below this are greedy: their reciprocal would leave float32's useful range.
inline constexpr float kGreedyTemperature = 1e-5f;

// The greatest logit; the lowest id among equals. Requires: `max` is the greatest logit.
int32_t greedy_token(const Kernels& kernels, std::span<const float> logits, float max);

// Draws from softmax(logits / temperature) restricted to the top_k most likely tokens, of those to
// the smallest set that holds top_p of their probability, of those to the ones at least min_p as
// likely as the first. `uniform` in (0, 1] is the only source of chance: the token is where the
// cumulative distribution reaches it.
// Requires: no NaN, `max` is the greatest logit and finite, temperature >= kGreedyTemperature.
int32_t draw_token(const Kernels& kernels, std::span<const float> logits, float max,
                   const SamplingParams& sampling, float uniform, TokenDrawScratch& scratch);

}  // namespace octavo::cpu
