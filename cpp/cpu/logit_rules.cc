#include "cpu/logit_rules.h"

#include <algorithm>
#include <limits>

namespace octavo::cpu {
namespace {

constexpr float kBanned = -std::numeric_limits<float>::infinity();

bool is_inside(int32_t id, std::span<const float> logits) {
  return id >= 0 && id < std::ssize(logits);
}

void ban(std::span<float> logits, int32_t id) {
  if (is_inside(id, logits)) logits[id] = kBanned;
}

void allow_only(std::span<const int32_t> ids, std::span<float> logits, std::vector<float>& kept) {
  kept.resize(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    kept[i] = is_inside(ids[i], logits) ? logits[ids[i]] : kBanned;
  }
  std::ranges::fill(logits, kBanned);
  for (size_t i = 0; i < ids.size(); ++i) {
    if (is_inside(ids[i], logits)) logits[ids[i]] = kept[i];
  }
}

void apply_bitmask(std::span<const uint32_t> mask, std::span<float> logits) {
  constexpr size_t kBits = 32;
  for (size_t word = 0; word * kBits < logits.size(); ++word) {
    const uint32_t bits = word < mask.size() ? mask[word] : 0;
    const auto run = logits.subspan(word * kBits, std::min(kBits, logits.size() - word * kBits));
    if (bits == 0) {
      std::ranges::fill(run, kBanned);
    } else if (bits != ~uint32_t{0}) {
      for (size_t i = 0; i < run.size(); ++i) {
        if ((bits >> i & 1) == 0) run[i] = kBanned;
      }
    }
  }
}

// A bad sequence is completed by its last token when the history ends with what comes before it.
void ban_completions(const std::vector<std::vector<int32_t>>& bad_words,
                     std::span<const int32_t> history, std::span<float> logits) {
  for (const std::vector<int32_t>& word : bad_words) {
    if (word.empty() || word.size() - 1 > history.size()) continue;
    const auto prefix = std::span(word).first(word.size() - 1);
    if (std::ranges::equal(prefix, history.last(prefix.size()))) ban(logits, word.back());
  }
}

bool has_penalties(const SamplingParams& sampling) {
  return sampling.repetition_penalty != 1.0f || sampling.presence_penalty != 0.0f ||
         sampling.frequency_penalty != 0.0f;
}

void penalize(const SamplingParams& sampling, int32_t output_count, float& logit) {
  if (sampling.repetition_penalty != 1.0f) {
    logit =
        logit > 0.0f ? logit / sampling.repetition_penalty : logit * sampling.repetition_penalty;
  }
  if (output_count > 0) {
    const float count = static_cast<float>(output_count);
    logit -= sampling.frequency_penalty * count + sampling.presence_penalty;
  }
}

// Counts the output, visits each distinct token of the history once, and leaves the tables zero.
void apply_penalties(const ScheduledSequence& sequence, std::span<float> logits,
                     LogitRulesScratch& scratch) {
  scratch.output_counts.resize(std::max(scratch.output_counts.size(), logits.size()));
  scratch.is_seen.resize(scratch.output_counts.size());
  const std::span<const int32_t> history = sequence.token_ids;
  for (const int32_t id : history.subspan(sequence.num_prompt_tokens)) {
    if (is_inside(id, logits)) ++scratch.output_counts[id];
  }
  for (const int32_t id : history) {
    if (!is_inside(id, logits) || scratch.is_seen[id] != 0) continue;
    scratch.is_seen[id] = 1;
    penalize(*sequence.sampling, scratch.output_counts[id], logits[id]);
  }
  for (const int32_t id : history) {
    if (!is_inside(id, logits)) continue;
    scratch.is_seen[id] = 0;
    scratch.output_counts[id] = 0;
  }
}

}  // namespace

bool has_logit_rules(const ScheduledSequence& sequence) {
  const SamplingParams& sampling = *sequence.sampling;
  return !sampling.logit_bias.empty() || !sampling.allowed_token_ids.empty() ||
         !sampling.bad_words.empty() || !sequence.banned_token_ids.empty() ||
         !sequence.token_bitmask.empty() || has_penalties(sampling);
}

void apply_logit_rules(const ScheduledSequence& sequence, std::span<float> logits,
                       LogitRulesScratch& scratch) {
  const SamplingParams& sampling = *sequence.sampling;
  for (const auto& [id, bias] : sampling.logit_bias) {
    if (is_inside(id, logits)) logits[id] += bias;
  }
  if (!sampling.allowed_token_ids.empty()) {
    allow_only(sampling.allowed_token_ids, logits, scratch.kept_logits);
  }
  if (!sequence.token_bitmask.empty()) apply_bitmask(sequence.token_bitmask, logits);
  for (const int32_t id : sequence.banned_token_ids) ban(logits, id);
  ban_completions(sampling.bad_words, sequence.token_ids, logits);
  if (has_penalties(sampling)) apply_penalties(sequence, logits, scratch);
}

}  // namespace octavo::cpu
