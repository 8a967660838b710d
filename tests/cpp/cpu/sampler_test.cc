#include "cpu/sampler.h"

#include <algorithm>
#include <cmath>

#include "cpu/cpu_testing.h"

namespace octavo::cpu {
namespace {

// Sequences with parameters of their own over random logits.
class SamplerTest : public EachIsa {
 protected:
  static constexpr int64_t kVocab = 1000;

  SamplingParams& add_sequence(std::vector<int32_t> history = {1, 2, 3}) {
    sampling_.push_back(std::make_unique<SamplingParams>());
    histories_.push_back(std::make_unique<std::vector<int32_t>>(std::move(history)));
    ScheduledSequence sequence;
    sequence.token_ids = *histories_.back();
    sequence.num_prompt_tokens = 2;
    sequence.sampling = sampling_.back().get();
    sequence.seed = 1000 + sequences_.size();
    sequences_.push_back(sequence);
    return *sampling_.back();
  }

  void add_row(int32_t sequence, int32_t target_id = -1) {
    targets_.emplace_back(sequence, target_id);
  }

  void draw_from_every_sequence() {
    for (int32_t i = 0; i < std::ssize(sequences_); ++i) add_row(i);
    logits_ = random_floats(std::ssize(targets_) * kVocab, 7, 2.0f);
  }

  StepResult sample(int32_t num_threads = 2) {
    return sample_rows(0, std::ssize(targets_), num_threads);
  }

  // Rows [begin, end) alone.
  StepResult sample_rows(size_t begin, size_t end, int32_t num_threads = 2) {
    std::vector<SampleRow> rows;
    for (size_t i = begin; i < end; ++i) {
      rows.push_back({&sequences_[targets_[i].first], targets_[i].first, targets_[i].second});
    }
    std::vector<float> logits(logits_.begin() + begin * kVocab, logits_.begin() + end * kVocab);
    StepResult result;
    result.token_ids.assign(sequences_.size(), -1);
    result.is_invalid.assign(sequences_.size(), 0);
    ThreadPool pool(num_threads);
    Sampler sampler(kernels_for(GetParam()), pool);
    sampler.sample(matrix(logits, std::ssize(rows), kVocab), rows, result);
    return result;
  }

  // log softmax of row `row`, in double precision.
  std::vector<double> logprobs(int64_t row) const {
    const float* x = &logits_[row * kVocab];
    const double max = *std::max_element(x, x + kVocab);
    double sum = 0;
    for (int64_t i = 0; i < kVocab; ++i) sum += std::exp(x[i] - max);
    std::vector<double> result;
    for (int64_t i = 0; i < kVocab; ++i) result.push_back(x[i] - max - std::log(sum));
    return result;
  }

  void expect_entries(const LogprobEntry* entries, int64_t row, int32_t chosen, int64_t k) const {
    const auto expected = logprobs(row);
    const auto rank = [&](int32_t id) {
      return 1 + std::ranges::count_if(expected, [&](double x) { return x > expected[id]; });
    };
    EXPECT_EQ(entries[0].token_id, chosen);
    EXPECT_NEAR(entries[0].logprob, expected[chosen], 2e-6);
    EXPECT_EQ(entries[0].rank, rank(chosen));
    for (int64_t i = 1; i <= k; ++i) {
      EXPECT_EQ(entries[i].rank, i);
      EXPECT_EQ(rank(entries[i].token_id), i);
      EXPECT_NEAR(entries[i].logprob, expected[entries[i].token_id], 2e-6);
    }
  }

  std::vector<std::unique_ptr<SamplingParams>> sampling_;
  std::vector<std::unique_ptr<std::vector<int32_t>>> histories_;
  std::vector<ScheduledSequence> sequences_;
  std::vector<std::pair<int32_t, int32_t>> targets_;  // batch row, target id
  std::vector<float> logits_;
};
OCTAVO_TEST_EACH_ISA(SamplerTest);

TEST_P(SamplerTest, GreedyTakesTheGreatest) {
  add_sequence().temperature = 0;
  add_sequence().temperature = 0;
  draw_from_every_sequence();
  const StepResult result = sample();
  for (int64_t r = 0; r < 2; ++r) {
    const auto row = logprobs(r);
    EXPECT_EQ(result.token_ids[r], std::ranges::max_element(row) - row.begin());
  }
  EXPECT_TRUE(result.logprobs.empty());
  EXPECT_EQ(result.is_invalid, (std::vector<uint8_t>{0, 0}));
}

TEST_P(SamplerTest, LogprobsAreOfTheRawDistribution) {
  SamplingParams& sampling = add_sequence();
  sampling.temperature = 0.3f;
  sampling.top_k = 5;
  sampling.logprobs = 4;
  sampling.repetition_penalty = 3.0f;
  sampling.logit_bias = {{17, 50.0f}};
  draw_from_every_sequence();
  const StepResult result = sample();
  ASSERT_EQ(result.logprobs.size(), 5u);
  EXPECT_EQ(result.token_ids[0], 17) << "the bias decides the draw";
  expect_entries(result.logprobs.data(), 0, 17, 4);
}

TEST_P(SamplerTest, EntriesComeInRowOrder) {
  add_sequence().prompt_logprobs = 2;
  add_sequence().logprobs = -1;
  SamplingParams& last = add_sequence();
  last.logprobs = 0;
  last.prompt_logprobs = 0;
  add_row(0, 5);
  add_row(0, 900);
  add_row(1);
  add_row(2, 33);
  add_row(2);
  logits_ = random_floats(5 * kVocab, 3);
  const StepResult result = sample();
  ASSERT_EQ(result.prompt_logprobs.size(), 7u);
  ASSERT_EQ(result.logprobs.size(), 1u);
  expect_entries(&result.prompt_logprobs[0], 0, 5, 2);
  expect_entries(&result.prompt_logprobs[3], 1, 900, 2);
  expect_entries(&result.prompt_logprobs[6], 3, 33, 0);
  expect_entries(&result.logprobs[0], 4, result.token_ids[2], 0);
  EXPECT_EQ(result.token_ids[0], -1);
  EXPECT_GE(result.token_ids[1], 0);
}

TEST_P(SamplerTest, TiesRankByLowerId) {
  add_sequence().prompt_logprobs = 3;
  add_row(0, 8);
  logits_.assign(kVocab, 0.0f);
  logits_[2] = logits_[8] = logits_[9] = 4.0f;
  const StepResult result = sample();
  EXPECT_EQ(result.prompt_logprobs[0].rank, 2);
  EXPECT_EQ(result.prompt_logprobs[1].token_id, 2);
  EXPECT_EQ(result.prompt_logprobs[2].token_id, 8);
  EXPECT_EQ(result.prompt_logprobs[3].token_id, 9);
}

TEST_P(SamplerTest, BadRowsAreInvalidAndKeepTheirPlaces) {
  for (int i = 0; i < 4; ++i) add_sequence().logprobs = 1;
  sampling_[2]->allowed_token_ids = {5};
  const std::vector<int32_t> banned = {5};
  sequences_[2].banned_token_ids = banned;
  draw_from_every_sequence();
  logits_[0 * kVocab + 999] = NAN;
  logits_[1 * kVocab + 3] = INFINITY;
  const StepResult result = sample();
  EXPECT_EQ(result.is_invalid, (std::vector<uint8_t>{1, 1, 1, 0}));
  for (int i = 0; i < 3; ++i) EXPECT_EQ(result.token_ids[i], -1);
  ASSERT_EQ(result.logprobs.size(), 8u);
  for (int i = 0; i < 6; ++i) EXPECT_EQ(result.logprobs[i].token_id, -1);
  expect_entries(&result.logprobs[6], 3, result.token_ids[3], 1);
}

TEST_P(SamplerTest, ANaNInAPromptRowIsInvalid) {
  add_sequence().prompt_logprobs = 0;
  add_row(0, 1);
  logits_.assign(kVocab, NAN);
  EXPECT_EQ(sample().is_invalid[0], 1);
}

// Seed and number of tokens decide the draw; slot, neighbours and threads do not.
TEST_P(SamplerTest, RowsDoNotDependOnTheBatch) {
  for (int i = 0; i < 40; ++i) {
    SamplingParams& sampling = add_sequence(std::vector<int32_t>(3 + i, i));
    sampling.logprobs = i % 3;
    sampling.top_k = i % 4 == 1 ? 20 : 0;
    sampling.top_p = i % 4 == 2 ? 0.9f : 1.0f;
    sampling.min_p = i % 4 == 3 ? 0.02f : 0.0f;
    sampling.frequency_penalty = i % 5 == 0 ? 0.1f : 0.0f;
  }
  draw_from_every_sequence();
  const StepResult two = sample(2), one = sample(1);
  EXPECT_EQ(two.token_ids, one.token_ids);
  size_t entry = 0;
  for (size_t row = 0; row < 40; ++row) {
    const StepResult alone = sample_rows(row, row + 1);
    EXPECT_EQ(alone.token_ids[row], two.token_ids[row]);
    for (const LogprobEntry& e : alone.logprobs) {
      EXPECT_EQ(e.token_id, two.logprobs[entry].token_id);
      EXPECT_EQ(std::bit_cast<uint32_t>(e.logprob),
                std::bit_cast<uint32_t>(two.logprobs[entry].logprob));
      EXPECT_EQ(e.rank, two.logprobs[entry++].rank);
    }
  }
  EXPECT_EQ(entry, two.logprobs.size());
}

TEST_P(SamplerTest, TheDrawTurnsWithSeedAndPosition) {
  for (int i = 0; i < 64; ++i) {
    add_sequence(std::vector<int32_t>(3 + i / 2, 1));
    sequences_.back().seed = 5 + i % 2;
  }
  draw_from_every_sequence();
  for (size_t i = kVocab; i < logits_.size(); ++i) logits_[i] = logits_[i - kVocab];
  auto tokens = sample().token_ids;
  std::ranges::sort(tokens);
  const auto repeated = std::ranges::unique(tokens);
  EXPECT_GT(repeated.begin() - tokens.begin(), 20);
}

}  // namespace
}  // namespace octavo::cpu
