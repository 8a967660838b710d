// How the tokens of one request are chosen. Plain data: validated at submit, frozen afterwards.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace octavo {

// What of the prompt's last hidden states is reported: nothing, the last token's, or their sum.
enum class Pooling : uint8_t { kNone, kLast, kSum };

struct SamplingParams {
  int32_t n = 1;  // sequences sampled from one prompt, sharing its blocks

  float temperature = 1.0f;  // 0 is greedy
  int32_t top_k = 0;         // 0 keeps every token
  float top_p = 1.0f;        // (0, 1]
  float min_p = 0.0f;        // [0, 1], relative to the most likely token

  float repetition_penalty = 1.0f;  // > 0; over prompt and output tokens
  float presence_penalty = 0.0f;    // over output tokens
  float frequency_penalty = 0.0f;   // over output tokens, times their count
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::vector<int32_t> allowed_token_ids;       // empty allows all
  std::vector<std::vector<int32_t>> bad_words;  // token sequences that must not be completed

  std::optional<uint64_t> seed;  // absent: derived from the engine's seed and the request id

  int32_t max_tokens = 16;  // >= 1
  int32_t min_tokens = 0;   // end-of-sequence and stop ids are banned before
  bool ignore_eos = false;
  std::vector<int32_t> stop_token_ids;

  int32_t logprobs = -1;         // -1 none, 0 the chosen token, k also the k most likely
  int32_t prompt_logprobs = -1;  // the same for every prompt token but the first

  Pooling pooling =
      Pooling::kNone;  // kSum needs prompt_logprobs, which have every position computed
};

// One (token, log-probability) pair. Log-probabilities are of the model's raw distribution, before
// temperature, penalties and masks; rank counts from 1 for the most likely token.
struct LogprobEntry {
  int32_t token_id;
  float logprob;
  int32_t rank;
};

}  // namespace octavo
