// Sampling against a reference that sorts the whole row in float64. A draw is right when the random
// number falls into the token's interval of the cumulative distribution, give or take rounding.
#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <set>

#include "base/philox.h"
#include "checker.h"
#include "cuda/sampler.h"

namespace octavo::cuda::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A sequence with all that its ScheduledSequence points to.
struct Request {
  SamplingParams params;
  std::vector<int32_t> tokens;
  int64_t num_prompt_tokens = 0;
  std::vector<int32_t> banned;
  std::vector<uint32_t> bitmask;
  uint64_t seed = 0;
  int32_t target_id = -1;
};

// The row after the rules, in the order that Backend documents.
std::vector<double> ruled(const Request& r, const std::vector<float>& row) {
  std::vector<double> out(row.begin(), row.end());
  const auto vocab = static_cast<int32_t>(row.size());
  for (const auto& [id, bias] : r.params.logit_bias) out[id] += bias;
  const std::set<int32_t> allowed(r.params.allowed_token_ids.begin(),
                                  r.params.allowed_token_ids.end());
  for (int32_t i = 0; i < vocab; ++i) {
    if (!allowed.empty() && !allowed.contains(i)) out[i] = -kInfinity;
    if (!r.bitmask.empty() && (r.bitmask[i / 32] >> (i % 32) & 1) == 0) out[i] = -kInfinity;
  }
  for (const int32_t id : r.banned) out[id] = -kInfinity;
  for (const auto& word : r.params.bad_words) {
    const auto prefix = std::span(word).first(word.size() - 1);
    const auto tail = std::span(r.tokens).last(prefix.size());
    if (std::ranges::equal(prefix, tail)) out[word.back()] = -kInfinity;
  }
  std::map<int32_t, int> outputs;
  for (const int32_t id : r.tokens) outputs[id] += 0;
  for (size_t i = r.num_prompt_tokens; i < r.tokens.size(); ++i) ++outputs[r.tokens[i]];
  for (const auto& [id, count] : outputs) {
    const double p = r.params.repetition_penalty;
    out[id] = out[id] > 0 ? out[id] / p : out[id] * p;
    if (count > 0) out[id] -= r.params.frequency_penalty * count + r.params.presence_penalty;
  }
  return out;
}

// Ids by descending logit, the lower id first among equals.
std::vector<int32_t> ordered_ids(const std::vector<double>& row) {
  std::vector<int32_t> ids(row.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::ranges::stable_sort(ids, [&](int32_t a, int32_t b) { return row[a] > row[b]; });
  return ids;
}

void check_draw(const Request& r, const std::vector<float>& raw, int32_t token,
                const std::string& name) {
  const auto row = ruled(r, raw);
  const double maximum = *std::ranges::max_element(row);
  auto ids = ordered_ids(row);
  if (r.params.temperature < 1e-5f) {
    const bool ok = token >= 0 && row[token] > maximum - 1e-5 * std::abs(maximum);
    return expect(
        ok, name + ": greedy token " + std::to_string(token) + ", not " + std::to_string(ids[0]));
  }
  const auto weight = [&](int32_t id) {
    return std::exp((row[id] - maximum) / r.params.temperature);
  };
  const bool has_top_k = r.params.top_k > 0 && r.params.top_k < std::ssize(row);
  if (has_top_k) ids.resize(r.params.top_k);
  double total = 0.0;
  for (const int32_t id : ids) total += weight(id);
  if (r.params.top_p < 1.0f) {
    const double mass = r.params.top_p * total;
    double sum = 0.0;
    size_t count = 0;
    while (count < ids.size() && sum < mass) sum += weight(ids[count++]);
    ids.resize(count);
  }
  std::erase_if(ids, [&](int32_t id) { return weight(id) < r.params.min_p; });
  if (!has_top_k && r.params.top_p >= 1.0f) std::ranges::sort(ids);
  total = 0.0;
  for (const int32_t id : ids) total += weight(id);
  const double u = philox_uniform(r.seed, r.tokens.size(), 0);
  constexpr double kSlack = 1e-4;
  double sum = 0.0;
  for (const int32_t id : ids) {
    const double low = sum / total;
    sum += weight(id);
    if (id != token) continue;
    const bool ok = u > low - kSlack && u < sum / total + kSlack;
    return expect(ok, name + ": token " + std::to_string(token) + " for another number");
  }
  // At the edge of the kept set rounding may let one more token in.
  if (u < 1.0 - 1e-3) fail(name + ": token " + std::to_string(token) + " is not in the kept set");
}

void check_entries(const std::vector<float>& row, int32_t first_token, int32_t count,
                   const LogprobEntry* entries, const std::string& name) {
  const std::vector<double> raw(row.begin(), row.end());
  const double maximum = *std::ranges::max_element(raw);
  double sum = 0.0;
  for (const double v : raw) sum += std::exp(v - maximum);
  const double log_sum = maximum + std::log(sum);
  const auto ids = ordered_ids(raw);
  for (int32_t i = 0; i < count; ++i) {
    const int32_t id = i == 0 ? first_token : ids[i - 1];
    const auto rank = static_cast<int32_t>(std::ranges::find(ids, id) - ids.begin()) + 1;
    const bool ok = entries[i].token_id == id && entries[i].rank == rank &&
                    std::abs(entries[i].logprob - (raw[id] - log_sum)) < 1e-4;
    expect(ok, name + ": entry " + std::to_string(i) + " is " +
                   std::to_string(entries[i].token_id) + " rank " +
                   std::to_string(entries[i].rank) + ", not " + std::to_string(id) + " rank " +
                   std::to_string(rank));
  }
}

ScheduledSequence scheduled(const Request& r, int32_t slot) {
  ScheduledSequence sequence;
  sequence.slot = slot;
  sequence.token_ids = r.tokens;
  sequence.num_prompt_tokens = r.num_prompt_tokens;
  sequence.samples = true;
  sequence.sampling = &r.params;
  sequence.seed = r.seed;
  sequence.banned_token_ids = r.banned;
  sequence.token_bitmask = r.bitmask;
  return sequence;
}

// A step of its own.
void sample_now(Sampler& sampler, TensorView logits, std::span<const SampleRow> rows,
                StepResult& result) {
  sampler.begin_step();
  sampler.sample(context(), logits, rows, result);
  sampler.end_step(context());
  sampler.wait_step();
}

// Samples `requests` once and checks every row; returns the tokens.
std::vector<int32_t> check_step(Sampler& sampler, const std::vector<Request>& requests,
                                const std::vector<std::vector<float>>& rows,
                                const std::string& name) {
  const auto vocab = std::ssize(rows[0]);
  std::vector<float> flat;
  for (const auto& row : rows) flat.insert(flat.end(), row.begin(), row.end());
  const Array logits(DType::kFloat32, flat);
  std::vector<ScheduledSequence> sequences(requests.size());
  std::vector<SampleRow> sample_rows;
  for (size_t i = 0; i < requests.size(); ++i) {
    const Request& r = requests[i];
    sequences[i] = scheduled(r, static_cast<int32_t>(i));
    sample_rows.push_back({&sequences[i], static_cast<int32_t>(i), r.target_id});
  }
  StepResult result;
  result.token_ids.assign(requests.size(), -1);
  result.is_invalid.assign(requests.size(), 0);
  sample_now(sampler, logits.matrix(std::ssize(requests), vocab), sample_rows, result);

  size_t next = 0, next_prompt = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    const Request& r = requests[i];
    const std::string row_name = name + " row " + std::to_string(i);
    expect(result.is_invalid[i] == 0, row_name + ": invalid");
    const bool draws = r.target_id < 0;
    if (draws) check_draw(r, rows[i], result.token_ids[i], row_name);
    const int32_t wanted = 1 + (draws ? r.params.logprobs : r.params.prompt_logprobs);
    if (wanted == 0) continue;
    auto& entries = draws ? result.logprobs : result.prompt_logprobs;
    size_t& place = draws ? next : next_prompt;
    expect(place + wanted <= entries.size(), row_name + ": entries are missing");
    if (place + wanted > entries.size()) break;
    check_entries(rows[i], draws ? result.token_ids[i] : r.target_id, wanted,
                  entries.data() + place, row_name);
    place += wanted;
  }
  return result.token_ids;
}

Request random_request(int64_t vocab) {
  Request r;
  r.seed = generator()();
  r.num_prompt_tokens = random_int(1, 30);
  r.tokens.resize(r.num_prompt_tokens + random_int(0, 40));
  for (int32_t& id : r.tokens)
    id = static_cast<int32_t>(random_int(0, std::min<int64_t>(vocab, 50) - 1));
  return r;
}

std::vector<std::vector<float>> random_rows(size_t count, int64_t vocab, float scale) {
  std::vector<std::vector<float>> rows;
  for (size_t i = 0; i < count; ++i) rows.push_back(random_values(vocab, DType::kFloat32, scale));
  return rows;
}

constexpr int64_t kVocabs[] = {7, 300, 1000, 49152, 128256};

CUDA_TEST(greedy_takes_the_greatest_and_lowest_id) {
  Sampler sampler;
  for (const int64_t vocab : kVocabs) {
    std::vector<Request> requests;
    for (int i = 0; i < 9; ++i) {
      requests.push_back(random_request(vocab));
      requests.back().params.temperature = 0.0f;
    }
    auto rows = random_rows(requests.size(), vocab, 3.0f);
    rows[3][vocab / 2] = rows[3][vocab - 1] = 40.0f;
    rows[4].assign(vocab, 1.0f);
    const auto tokens = check_step(sampler, requests, rows, "greedy");
    expect(tokens[3] == vocab / 2, "greedy: lowest id among equals");
    expect(tokens[4] == 0, "greedy: first of a flat row");
  }
}

CUDA_TEST(draws_follow_the_random_number) {
  Sampler sampler;
  for (const int64_t vocab : kVocabs) {
    for (const float spread : {0.05f, 1.0f, 4.0f}) {
      std::vector<Request> requests;
      for (const int32_t top_k : {0, 1, 5, 50, 3000}) {
        for (const float top_p : {1.0f, 0.9f, 0.3f}) {
          for (const float min_p : {0.0f, 0.05f}) {
            requests.push_back(random_request(vocab));
            requests.back().params.temperature = 0.2f + 0.4f * static_cast<float>(random_int(0, 4));
            requests.back().params.top_k = top_k;
            requests.back().params.top_p = top_p;
            requests.back().params.min_p = min_p;
          }
        }
      }
      const auto rows = random_rows(requests.size(), vocab, spread);
      const auto tokens =
          check_step(sampler, requests, rows, "draw spread " + std::to_string(spread));
      expect(check_step(sampler, requests, rows, "again") == tokens, "draws differ run to run");
    }
  }
}

CUDA_TEST(rules_shape_the_row) {
  Sampler sampler;
  for (const int64_t vocab : {300, 49152, 128256}) {
    std::vector<Request> requests;
    for (int i = 0; i < 24; ++i) {
      Request r = random_request(vocab);
      SamplingParams& p = r.params;
      p.temperature = i % 3 == 0 ? 0.0f : 0.8f;
      if (i % 2 == 0) p.repetition_penalty = 1.3f;
      if (i % 4 == 1) p.presence_penalty = 0.7f;
      if (i % 4 >= 2) p.frequency_penalty = 0.4f;
      for (int j = 0; j < i % 5 * 3; ++j) {
        p.logit_bias.push_back({static_cast<int32_t>(j * 17 % vocab), 2.0f});
      }
      if (i % 6 == 1) p.allowed_token_ids = {1, 2, 3, 40, 200, 299};
      if (i % 6 == 2) {
        r.bitmask.resize((vocab + 31) / 32);
        for (uint32_t& word : r.bitmask) word = static_cast<uint32_t>(generator()());
      }
      if (i % 4 == 3) r.banned = {5, 6, 7};
      if (i % 5 == 4) p.bad_words = {{9}, {r.tokens.back(), 11}, {-5, 12}};
      p.logprobs = i % 3 == 2 ? 5 : -1;
      requests.push_back(std::move(r));
    }
    // The tokens drawn go on to the next step, where the device's own counts must agree.
    for (int step = 0; step < 4; ++step) {
      const auto rows = random_rows(requests.size(), vocab, 2.0f);
      const auto tokens = check_step(sampler, requests, rows, "rules step " + std::to_string(step));
      for (size_t i = 0; i < requests.size(); ++i) requests[i].tokens.push_back(tokens[i]);
    }
  }
}

CUDA_TEST(logprobs_and_ranks) {
  Sampler sampler;
  for (const int64_t vocab : kVocabs) {
    std::vector<Request> requests;
    for (int i = 0; i < 12; ++i) {
      Request r = random_request(vocab);
      const auto wanted = static_cast<int32_t>(random_int(0, std::min<int64_t>(vocab, 20)));
      if (i % 3 == 0) {
        r.target_id = static_cast<int32_t>(random_int(0, vocab - 1));
        r.params.prompt_logprobs = wanted;
      } else {
        r.params.logprobs = i == 7 ? -1 : wanted;
      }
      requests.push_back(std::move(r));
    }
    auto rows = random_rows(requests.size(), vocab, 3.0f);
    rows[2].assign(vocab, 0.5f);
    check_step(sampler, requests, rows, "logprobs");
  }
}

CUDA_TEST(bad_rows_are_invalid) {
  Sampler sampler;
  const int64_t vocab = 49152;
  auto rows = random_rows(4, vocab, 1.0f);
  rows[0][vocab - 1] = NAN;
  rows[1][100] = kInfinity;
  rows[2].assign(vocab, -kInfinity);
  std::vector<float> flat;
  for (const auto& row : rows) flat.insert(flat.end(), row.begin(), row.end());
  const Array logits(DType::kFloat32, flat);
  Request plain = random_request(vocab), none = random_request(vocab);
  none.params.allowed_token_ids = {-1, static_cast<int32_t>(vocab)};
  plain.params.logprobs = 2;
  std::vector<ScheduledSequence> sequences;
  std::vector<SampleRow> sample_rows;
  for (const Request* r : {&plain, &plain, &plain, &none}) {
    sequences.push_back(scheduled(*r, static_cast<int32_t>(sequences.size())));
  }
  for (int32_t i = 0; i < 4; ++i) sample_rows.push_back({&sequences[i], i, -1});
  StepResult result;
  result.token_ids.assign(4, 7);
  result.is_invalid.assign(4, 0);
  sample_now(sampler, logits.matrix(4, vocab), sample_rows, result);
  for (int i = 0; i < 4; ++i) {
    expect(result.is_invalid[i] == 1 && result.token_ids[i] == -1,
           "row " + std::to_string(i) + " is invalid");
  }
  expect(result.logprobs.size() == 9 && result.logprobs[0].token_id == -1,
         "entries of invalid rows");
}

}  // namespace
}  // namespace octavo::cuda::testing
