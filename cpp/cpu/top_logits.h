// The k greatest logits of a row in order, without sorting the row.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cpu/kernels.h"

namespace octavo::cpu {

struct Candidate {
  float logit;
  int32_t id;

  // Descending logits; the lower id first among equals.
  bool operator<(const Candidate& other) const {
    return logit > other.logit || (logit == other.logit && id < other.id);
  }
};

// Working memory of one thread; grows to the vocabulary once.
struct TopLogitsScratch {
  std::vector<float> ordered_maxima;
  std::vector<int32_t> indices;
};

// The min(k, logits.size()) first candidates in order. Requires: no NaN.
void top_logits(const Kernels& kernels, std::span<const float> logits, int64_t k,
                TopLogitsScratch& scratch, std::vector<Candidate>& out);

}  // namespace octavo::cpu
