#include "cpu/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "base/philox.h"

namespace octavo::cpu {
namespace {

int64_t num_entries(const SampleRow& row) {
  const SamplingParams& sampling = *row.sequence->sampling;
  const int32_t wanted = row.target_id >= 0 ? sampling.prompt_logprobs : sampling.logprobs;
  return wanted < 0 ? 0 : 1 + wanted;
}

std::vector<LogprobEntry>& entries_of(const SampleRow& row, StepResult& result) {
  return row.target_id >= 0 ? result.prompt_logprobs : result.logprobs;
}

}  // namespace

void Sampler::sample(TensorView logits, std::span<const SampleRow> rows, StepResult& result) {
  check(logits.dtype == DType::kFloat32 && logits.rows() == std::ssize(rows),
        "sample: a row of float32 logits for each sample row");
  reserve_entries(rows, result);
  outcomes_.resize(rows.size());
  const int64_t vocab = logits.cols();
  pool_.parallel_for(std::ssize(rows), [&](int64_t i, int thread) {
    const std::span<float> row(logits.as<float>() + i * logits.row_stride, vocab);
    outcomes_[i] = run_row(rows[i], row, entries_[i], scratch_[thread]);
  });
  for (size_t i = 0; i < rows.size(); ++i) {
    const int32_t batch_row = rows[i].batch_row;
    if (rows[i].target_id < 0) result.token_ids[batch_row] = outcomes_[i].token_id;
    if (outcomes_[i].is_invalid) result.is_invalid[batch_row] = 1;
  }
}

// Places for the entries of every row, in row order; filled by whichever thread runs the row.
void Sampler::reserve_entries(std::span<const SampleRow> rows, StepResult& result) {
  const size_t first = result.logprobs.size(), first_prompt = result.prompt_logprobs.size();
  size_t total[2] = {first, first_prompt};
  for (const SampleRow& row : rows) total[row.target_id >= 0 ? 1 : 0] += num_entries(row);
  const LogprobEntry missing{-1, std::numeric_limits<float>::quiet_NaN(), 0};
  result.logprobs.resize(total[0], missing);
  result.prompt_logprobs.resize(total[1], missing);
  entries_.resize(rows.size());
  size_t next[2] = {first, first_prompt};
  for (size_t i = 0; i < rows.size(); ++i) {
    size_t& place = next[rows[i].target_id >= 0 ? 1 : 0];
    entries_[i] = {entries_of(rows[i], result).data() + place, num_entries(rows[i])};
    place += entries_[i].size;
  }
}

Sampler::RowOutcome Sampler::run_row(const SampleRow& row, std::span<float> logits,
                                     EntrySpan entries, RowScratch& scratch) const {
  const float max = kernels_.max_or_nan(logits.data(), std::ssize(logits));
  if (!std::isfinite(max)) return {-1, true};
  if (row.target_id >= 0) {
    write_entries(logits, max, row.target_id, entries, scratch);
    return {};
  }
  std::span<float> processed = logits;
  if (entries.size > 0 && has_logit_rules(*row.sequence)) {
    scratch.processed.assign(logits.begin(), logits.end());
    processed = scratch.processed;
  }
  const int32_t token_id = choose(row, processed, scratch);
  if (token_id < 0) return {-1, true};
  if (entries.size > 0) write_entries(logits, max, token_id, entries, scratch);
  return {token_id, false};
}

// The next token, or -1 when the rules leave none.
int32_t Sampler::choose(const SampleRow& row, std::span<float> logits, RowScratch& scratch) const {
  const ScheduledSequence& sequence = *row.sequence;
  apply_logit_rules(sequence, logits, scratch.rules);
  const float max = kernels_.max_or_nan(logits.data(), std::ssize(logits));
  if (!std::isfinite(max)) return -1;
  if (sequence.sampling->temperature < kGreedyTemperature) {
    return greedy_token(kernels_, logits, max);
  }
  const float uniform = philox_uniform(sequence.seed, sequence.token_ids.size(), 0);
  return draw_token(kernels_, logits, max, *sequence.sampling, uniform, scratch.draw);
}

void Sampler::write_entries(std::span<const float> logits, float max, int32_t token_id,
                            EntrySpan entries, RowScratch& scratch) const {
  const int64_t size = std::ssize(logits);
  check(token_id < size, "log-probability of a token outside the logits");
  std::vector<float>& sums = scratch.draw.chunk_sums;
  sums.resize((size + kSumChunk - 1) / kSumChunk);
  kernels_.exp_sums(logits.data(), size, max, 1.0f, sums.data());
  double sum = 0.0;
  for (const float chunk : sums) sum += chunk;
  const double log_sum = max + std::log(sum);
  const auto logprob = [&](float logit) { return static_cast<float>(logit - log_sum); };

  const float chosen = logits[token_id];
  const int64_t rank = 1 + kernels_.count_greater(logits.data(), size, chosen) +
                       kernels_.count_equal(logits.data(), token_id, chosen);
  entries.begin[0] = {token_id, logprob(chosen), static_cast<int32_t>(rank)};
  std::vector<Candidate>& top = scratch.draw.candidates;
  top_logits(kernels_, logits, entries.size - 1, scratch.draw.top, top);
  for (int64_t i = 0; i < std::ssize(top); ++i) {
    entries.begin[i + 1] = {top[i].id, logprob(top[i].logit), static_cast<int32_t>(i + 1)};
  }
}

}  // namespace octavo::cpu
