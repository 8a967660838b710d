#include "cpu/logit_rules.h"

#include <cmath>

#include "cpu/cpu_testing.h"

namespace octavo::cpu {
namespace {

constexpr float kBanned = -INFINITY;

// The logits 0.5, -1.5, 2.5, -3.5, ... of ten tokens after the rules.
class LogitRulesTest : public testing::Test {
 protected:
  LogitRulesTest() {
    for (int i = 0; i < 10; ++i) {
      logits_.push_back((i % 2 == 0 ? 1.0f : -1.0f) * (static_cast<float>(i) + 0.5f));
    }
    sequence_.sampling = &sampling_;
    set_history({1, 2, 1}, {3, 3, 4});
  }

  void set_history(std::vector<int32_t> prompt, const std::vector<int32_t>& output) {
    sequence_.num_prompt_tokens = std::ssize(prompt);
    history_ = std::move(prompt);
    history_.insert(history_.end(), output.begin(), output.end());
    sequence_.token_ids = history_;
  }

  std::vector<float> apply() {
    std::vector<float> result = logits_;
    apply_logit_rules(sequence_, result, scratch_);
    return result;
  }

  // Ids whose logit the rules ban.
  std::vector<int32_t> banned() {
    const auto result = apply();
    std::vector<int32_t> ids;
    for (int32_t i = 0; i < 10; ++i) {
      if (result[i] == kBanned) ids.push_back(i);
    }
    return ids;
  }

  SamplingParams sampling_;
  ScheduledSequence sequence_;
  std::vector<int32_t> history_;
  std::vector<float> logits_;
  LogitRulesScratch scratch_;
};

using Ids = std::vector<int32_t>;

TEST_F(LogitRulesTest, NothingIsNothing) {
  EXPECT_FALSE(has_logit_rules(sequence_));
  EXPECT_EQ(apply(), logits_);
}

TEST_F(LogitRulesTest, BiasAdds) {
  sampling_.logit_bias = {{2, 10.0f}, {3, -100.0f}, {999, 1.0f}, {-1, 1.0f}};
  EXPECT_TRUE(has_logit_rules(sequence_));
  auto expected = logits_;
  expected[2] += 10.0f;
  expected[3] -= 100.0f;
  EXPECT_EQ(apply(), expected);
}

TEST_F(LogitRulesTest, AllowedIdsBanTheRest) {
  sampling_.allowed_token_ids = {2, 5, 2, 999};
  EXPECT_EQ(banned(), (Ids{0, 1, 3, 4, 6, 7, 8, 9}));
  EXPECT_EQ(apply()[5], logits_[5]);
  EXPECT_EQ(apply()[2], logits_[2]);
}

TEST_F(LogitRulesTest, BannedIdsAreBanned) {
  const Ids ids = {0, 9, 10, -5};
  sequence_.banned_token_ids = ids;
  EXPECT_EQ(banned(), (Ids{0, 9}));
}

TEST_F(LogitRulesTest, BitmaskBansClearBits) {
  const std::vector<uint32_t> mask = {0b1000000101};
  sequence_.token_bitmask = mask;
  EXPECT_EQ(banned(), (Ids{1, 3, 4, 5, 6, 7, 8}));
}

TEST_F(LogitRulesTest, BitmaskCoversWholeWords) {
  logits_ = random_floats(100, 1);
  const std::vector<uint32_t> mask = {~0u, 0u, 0x80000001u, 0x2u};
  sequence_.token_bitmask = mask;
  const auto result = apply();
  for (int32_t i = 0; i < 100; ++i) {
    const bool allowed = i < 32 || i == 64 || i == 95 || i == 97;
    EXPECT_EQ(result[i], allowed ? logits_[i] : kBanned) << i;
  }
}

TEST_F(LogitRulesTest, BadWordsBanTheCompletingToken) {
  // The history is 1 2 1 3 3 4.
  sampling_.bad_words = {
      {3, 4, 7}, {4, 8}, {9}, {3, 6}, {1, 2, 1, 3, 3, 4, 0}, {0, 1, 2, 1, 3, 3, 4, 5}};
  EXPECT_EQ(banned(), (Ids{0, 7, 8, 9}));
}

TEST_F(LogitRulesTest, RepetitionPenaltyCoversPromptAndOutput) {
  sampling_.repetition_penalty = 2.0f;
  auto expected = logits_;
  for (const int32_t id : {1, 2, 3, 4}) {
    expected[id] = expected[id] > 0 ? expected[id] / 2 : expected[id] * 2;
  }
  EXPECT_EQ(apply(), expected);
  EXPECT_EQ(apply(), expected) << "the counts of the first call must be gone";
}

TEST_F(LogitRulesTest, PresenceAndFrequencyCoverTheOutput) {
  sampling_.presence_penalty = 0.25f;
  sampling_.frequency_penalty = 0.5f;
  auto expected = logits_;
  expected[3] -= 2 * 0.5f + 0.25f;
  expected[4] -= 0.5f + 0.25f;
  EXPECT_EQ(apply(), expected);
}

TEST_F(LogitRulesTest, PenaltiesIgnoreIdsOutsideTheLogits) {
  sampling_.frequency_penalty = 1.0f;
  set_history({100}, {-3, 10, 2});
  auto expected = logits_;
  expected[2] -= 1.0f;
  EXPECT_EQ(apply(), expected);
}

TEST_F(LogitRulesTest, BansOutliveBiasAndPenalties) {
  const Ids ids = {3};
  sequence_.banned_token_ids = ids;
  sampling_.logit_bias = {{3, 1000.0f}};
  sampling_.repetition_penalty = 0.5f;
  sampling_.presence_penalty = -2.0f;
  EXPECT_EQ(apply()[3], kBanned);
}

}  // namespace
}  // namespace octavo::cpu
