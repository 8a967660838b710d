// What a request imposes on its logits before a token is drawn: biases, bans and penalties.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sched/scheduled_batch.h"

namespace octavo::cpu {

// Working memory of one thread; grows to the vocabulary once.
struct LogitRulesScratch {
  std::vector<int32_t> output_counts;  // [vocab], all 0 between calls
  std::vector<uint8_t> is_seen;        // [vocab], all 0 between calls
  std::vector<float> kept_logits;
};

// Whether apply_logit_rules would change anything.
bool has_logit_rules(const ScheduledSequence& sequence);

// In this order: logit_bias; then -inf outside allowed_token_ids and token_bitmask and for
// banned_token_ids and completed bad words; then the repetition penalty over the distinct tokens of
// prompt and output (l > 0 ? l / r : l * r), and the frequency and presence penalties over the
// output. Costs O(history), plus O(vocab) only for allowed ids and bitmasks. Ids outside the logits
// are ignored.
void apply_logit_rules(const ScheduledSequence& sequence, std::span<float> logits,
                       LogitRulesScratch& scratch);

}  // namespace octavo::cpu
