#include "engine/validate_request.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "base/errors.h"

namespace octavo {
namespace {

// Bounds on what one request can ask for: see the table of caps in the reliability contract.
constexpr int64_t kMaxSequences = 128;
constexpr int64_t kMaxLogprobs = 20;
constexpr int64_t kMaxLogitBias = 1024;
constexpr int64_t kMaxBadWords = 128;
constexpr int64_t kMaxBadWordTokens = 64;
constexpr int64_t kMaxStopTokenIds = 1024;

[[noreturn]] void refuse(const std::string& message) { throw InvalidRequestError(message); }

void check_range(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return;
  refuse(std::string(name) + " must be between " + std::to_string(low) + " and " +
         std::to_string(high) + ", not " + std::to_string(value) + ".");
}

void check_at_least(const char* name, int64_t value, int64_t low) {
  if (value >= low) return;
  refuse(std::string(name) + " must be at least " + std::to_string(low) + ", not " +
         std::to_string(value) + ".");
}

// `rule` completes the sentence "<name> must be ...". A NaN never holds.
void check_holds(const char* name, bool holds, const char* rule) {
  if (!holds) refuse(std::string(name) + " must be " + rule + ".");
}

void check_size(const char* name, size_t size, int64_t most) {
  if (static_cast<int64_t>(size) <= most) return;
  refuse(std::string(name) + " may have at most " + std::to_string(most) + " entries, not " +
         std::to_string(size) + ".");
}

void check_ids(const char* name, std::span<const int32_t> ids, int64_t vocab_size) {
  const auto is_bad = [vocab_size](int32_t id) { return id < 0 || id >= vocab_size; };
  const auto bad = std::ranges::find_if(ids, is_bad);
  if (bad == ids.end()) return;
  refuse(std::string(name) + " holds the token id " + std::to_string(*bad) +
         ", which is outside the vocabulary of " + std::to_string(vocab_size) + " tokens.");
}

void check_prompt(const Request& request, const RequestLimits& limits) {
  if (request.token_ids.empty()) refuse("The prompt is empty.");
  const int64_t num_tokens = std::ssize(request.token_ids);
  if (num_tokens >= limits.max_model_len) {
    refuse("The prompt has " + std::to_string(num_tokens) + " tokens, but at most " +
           std::to_string(limits.max_model_len - 1) + " fit in the context of " +
           std::to_string(limits.max_model_len) + " tokens with room for one of output.");
  }
  check_ids("The prompt", request.token_ids, limits.vocab_size);
}

void check_shape_of_distribution(const SamplingParams& p) {
  check_holds("temperature", p.temperature >= 0 && std::isfinite(p.temperature), "0 or more");
  check_at_least("top_k", p.top_k, 0);
  check_holds("top_p", p.top_p > 0 && p.top_p <= 1, "above 0 and at most 1");
  check_holds("min_p", p.min_p >= 0 && p.min_p <= 1, "between 0 and 1");
  check_holds("repetition_penalty", p.repetition_penalty > 0 && std::isfinite(p.repetition_penalty),
              "above 0");
  check_holds("presence_penalty", std::abs(p.presence_penalty) <= 2, "between -2 and 2");
  check_holds("frequency_penalty", std::abs(p.frequency_penalty) <= 2, "between -2 and 2");
}

void check_counts(const SamplingParams& p) {
  check_range("n", p.n, 1, kMaxSequences);
  check_at_least("max_tokens", p.max_tokens, 1);
  check_at_least("min_tokens", p.min_tokens, 0);
  if (p.min_tokens > p.max_tokens) refuse("min_tokens must not be greater than max_tokens.");
  check_range("logprobs", p.logprobs, -1, kMaxLogprobs);
  check_range("prompt_logprobs", p.prompt_logprobs, -1, kMaxLogprobs);
  if (p.pooling == Pooling::kNone) return;
  if (p.n != 1 || p.max_tokens != 1) refuse("pooling needs n and max_tokens to be 1.");
  if (p.pooling == Pooling::kSum && p.prompt_logprobs < 0) refuse("A sum needs prompt_logprobs.");
}

void check_token_lists(const SamplingParams& p, int64_t vocab_size) {
  check_size("logit_bias", p.logit_bias.size(), kMaxLogitBias);
  for (const auto& [id, bias] : p.logit_bias) {
    check_ids("logit_bias", std::span(&id, 1), vocab_size);
    check_holds("logit_bias", std::isfinite(bias), "finite");
  }
  check_size("bad_words", p.bad_words.size(), kMaxBadWords);
  for (const std::vector<int32_t>& word : p.bad_words) {
    if (word.empty()) refuse("bad_words must not hold an empty sequence.");
    check_size("A sequence of bad_words", word.size(), kMaxBadWordTokens);
    check_ids("bad_words", word, vocab_size);
  }
  check_size("stop_token_ids", p.stop_token_ids.size(), kMaxStopTokenIds);
  check_ids("stop_token_ids", p.stop_token_ids, vocab_size);
  check_size("allowed_token_ids", p.allowed_token_ids.size(), vocab_size);
  check_ids("allowed_token_ids", p.allowed_token_ids, vocab_size);
}

void check_token_mask(const Request& request, int64_t vocab_size) {
  if (request.token_mask.empty()) return;
  const SamplingParams& p = request.sampling;
  if (std::ssize(request.token_mask) != (vocab_size + 31) / 32) {
    refuse("The token mask is of another vocabulary.");
  }
  // The grammar says when the output may end, and a mask less other tokens could be empty.
  if (p.min_tokens > 0 || p.ignore_eos || !p.allowed_token_ids.empty() || !p.bad_words.empty()) {
    refuse(
        "Structured output does not go with min_tokens, ignore_eos, allowed_token_ids or "
        "bad_words.");
  }
}

// Bans that leave no token to choose would end in an invalid row. Of a word of bad_words the last
// token is banned where the others precede it: so it counts as banned.
void check_something_is_allowed(const SamplingParams& p, const RequestLimits& limits) {
  std::vector<int32_t> banned;
  for (const std::vector<int32_t>& word : p.bad_words) banned.push_back(word.back());
  if (p.min_tokens > 0) {
    banned.insert(banned.end(), limits.eos_token_ids.begin(), limits.eos_token_ids.end());
    banned.insert(banned.end(), p.stop_token_ids.begin(), p.stop_token_ids.end());
  }
  std::ranges::sort(banned);
  banned.erase(std::ranges::unique(banned).begin(), banned.end());
  const auto is_banned = [&](int32_t id) { return std::ranges::binary_search(banned, id); };
  const bool is_all_banned = p.allowed_token_ids.empty()
                                 ? std::ssize(banned) >= limits.vocab_size
                                 : std::ranges::all_of(p.allowed_token_ids, is_banned);
  if (is_all_banned) {
    refuse("allowed_token_ids, bad_words and min_tokens leave no token to choose.");
  }
}

}  // namespace

void validate_request(const Request& request, const RequestLimits& limits) {
  check_prompt(request, limits);
  check_counts(request.sampling);
  check_shape_of_distribution(request.sampling);
  check_token_lists(request.sampling, limits.vocab_size);
  check_something_is_allowed(request.sampling, limits);
  check_token_mask(request, limits.vocab_size);
}

}  // namespace octavo
