// The start of a row in descending order, up to a share of its weight, without sorting the row.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cpu/top_logits.h"

namespace octavo::cpu {

// The row is dealt into bins by logit, so a search looks at the sums of the bins and at the tokens
// of one. A bin of many tokens is dealt again. Time grows with the row's length alone.
class Nucleus {
 public:
  // Where the start ends: with the first token whose cumulative weight reaches `mass`, or before
  // the first one that weighs less than `least`.
  struct End {
    double mass;
    float least;
  };
  struct Start {
    double weight;    // of all its tokens together
    int32_t last_id;  // its last token of positive weight; only for `least` = 0
  };

  // Deals a row, which must outlive the searches. Requires: no NaN; `max` is the greatest logit and
  // finite; weight = exp((logit - max) / temperature).
  void deal(std::span<const float> logits, std::span<const float> weights, float max,
            float temperature);
  // The start that ends at `end`, or the whole row when nothing ends it.
  Start find(const End& end);

 private:
  static constexpr int kNumBins = 1024;

  struct Bin {
    double weight = 0.0;
    int64_t count = 0;
    float least = 2.0f;  // above every weight
  };
  // Tokens in bins of descending logits.
  struct Deal {
    std::span<const float> logits;
    std::span<const float> weights;
    std::vector<uint16_t> bins;  // of each token
    std::vector<Bin> sums;
  };
  struct Member {
    Candidate candidate;
    float weight;
    bool operator<(const Member& other) const { return candidate < other.candidate; }
  };

  static void fill(Deal& deal, float high, float bins_per_unit);
  void collect(const Deal& deal, int bin);
  bool split();
  Start walk(double before, const End& end);

  Deal whole_;
  Deal part_;
  std::vector<int32_t> part_ids_;
  std::vector<float> part_logits_;
  std::vector<float> part_weights_;
  std::vector<Member> members_;  // of the bin that is looked at
};

}  // namespace octavo::cpu
