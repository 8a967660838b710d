#include "cpu/nucleus.h"

#include <algorithm>

namespace octavo::cpu {
namespace {

// Tokens that are sorted rather than dealt again.
constexpr int64_t kFewMembers = 512;
// Logits this many temperatures below the greatest weigh next to nothing and share the last bin.
constexpr float kDepth = 32.0f;
// Tokens whose bins are compared at once.
constexpr int64_t kRun = 64;

bool contains(const uint16_t* bins, int64_t size, int bin) {
  bool found = false;
  for (int64_t i = 0; i < size; ++i) found |= bins[i] == bin;
  return found;
}

}  // namespace

void Nucleus::deal(std::span<const float> logits, std::span<const float> weights, float max,
                   float temperature) {
  whole_.logits = logits;
  whole_.weights = weights;
  fill(whole_, max, static_cast<float>(kNumBins) / (kDepth * temperature));
}

void Nucleus::fill(Deal& deal, float high, float bins_per_unit) {
  const int64_t size = std::ssize(deal.logits);
  deal.bins.resize(size);
  deal.sums.assign(kNumBins, {});
  for (int64_t i = 0; i < size; ++i) {
    const float place = (high - deal.logits[i]) * bins_per_unit;
    const float last = kNumBins - 1;
    deal.bins[i] = static_cast<uint16_t>(static_cast<int32_t>(place < last ? place : last));
  }
  for (int64_t i = 0; i < size; ++i) {
    Bin& sum = deal.sums[deal.bins[i]];
    sum.weight += deal.weights[i];
    sum.count += 1;
    sum.least = std::min(sum.least, deal.weights[i]);
  }
}

void Nucleus::collect(const Deal& deal, int bin) {
  const bool is_part = &deal == &part_;
  const int64_t size = std::ssize(deal.bins);
  members_.clear();
  for (int64_t begin = 0; begin < size; begin += kRun) {
    const int64_t end = std::min(size, begin + kRun);
    if (!contains(deal.bins.data() + begin, end - begin, bin)) continue;
    for (int64_t i = begin; i < end; ++i) {
      if (deal.bins[i] != bin) continue;
      const int32_t id = is_part ? part_ids_[i] : static_cast<int32_t>(i);
      members_.push_back({{deal.logits[i], id}, deal.weights[i]});
    }
  }
}

// Deals the members into bins of their own. False when they are few or all the same.
bool Nucleus::split() {
  if (std::ssize(members_) <= kFewMembers) return false;
  // The order of candidates is descending.
  const auto [first, last] = std::minmax_element(members_.begin(), members_.end());
  const float high = first->candidate.logit;
  const float per_unit = static_cast<float>(kNumBins) / (high - last->candidate.logit);
  if (!(per_unit < 1e30f)) return false;
  part_ids_.clear();
  part_logits_.clear();
  part_weights_.clear();
  for (const Member& each : members_) {
    part_ids_.push_back(each.candidate.id);
    part_logits_.push_back(each.candidate.logit);
    part_weights_.push_back(each.weight);
  }
  part_.logits = part_logits_;
  part_.weights = part_weights_;
  fill(part_, high, per_unit);
  return true;
}

Nucleus::Start Nucleus::find(const End& end) {
  const Deal* deal = &whole_;
  double before = 0.0;
  while (true) {
    // The bin in which the start ends. Rounding may keep the bins of a bin below what it reached
    // itself: then the last one of any weight.
    int last = 0;
    double sum = before;
    for (int bin = 0; bin < kNumBins; ++bin) {
      const Bin& each = deal->sums[bin];
      if (each.count == 0) continue;
      const bool is_end = sum + each.weight >= end.mass || each.least < end.least;
      if (is_end || each.weight > 0.0) {
        last = bin;
        before = sum;
      }
      if (is_end) break;
      sum += each.weight;
    }
    collect(*deal, last);
    if (!split()) return walk(before, end);
    deal = &part_;
  }
}

Nucleus::Start Nucleus::walk(double before, const End& end) {
  if (!std::is_sorted(members_.begin(), members_.end())) {
    std::sort(members_.begin(), members_.end());
  }
  Start start{before, members_.front().candidate.id};
  for (const Member& each : members_) {
    if (each.weight < end.least) break;
    start.weight += each.weight;
    if (each.weight > 0.0f) start.last_id = each.candidate.id;
    if (start.weight >= end.mass) break;
  }
  return start;
}

}  // namespace octavo::cpu
