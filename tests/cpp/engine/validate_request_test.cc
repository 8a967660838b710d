#include "engine/validate_request.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "base/errors.h"

namespace octavo {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int32_t kHuge = 1'000'000'000;

class ValidateRequestTest : public ::testing::Test {
 protected:
  static Request sound() {
    Request request;
    request.token_ids = {1, 2, 3};
    return request;
  }

  void accepts(const std::function<void(Request&)>& change) {
    Request request = sound();
    change(request);
    EXPECT_NO_THROW(validate_request(request, limits_));
  }

  // Refused with a message that names what is wrong.
  void refuses(const std::string& named, const std::function<void(Request&)>& change) {
    Request request = sound();
    change(request);
    try {
      validate_request(request, limits_);
      ADD_FAILURE() << "accepted a request with a bad " << named;
    } catch (const InvalidRequestError& error) {
      EXPECT_NE(std::string(error.what()).find(named), std::string::npos) << error.what();
    }
  }

  const std::vector<int32_t> eos_{0};
  const RequestLimits limits_{100, 16, eos_};
};

TEST_F(ValidateRequestTest, TheDefaultsAreSound) {
  accepts([](Request&) {});
}

TEST_F(ValidateRequestTest, PromptsThatFitWithOneTokenOfOutput) {
  accepts([](Request& r) { r.token_ids.assign(1, 5); });
  accepts([](Request& r) { r.token_ids.assign(15, 5); });
  refuses("prompt", [](Request& r) { r.token_ids.clear(); });
  refuses("16 tokens", [](Request& r) { r.token_ids.assign(16, 5); });
  refuses("prompt", [](Request& r) { r.token_ids.assign(100'000, 5); });
}

TEST_F(ValidateRequestTest, TokenIdsOfTheVocabulary) {
  accepts([](Request& r) { r.token_ids = {0, 99}; });
  refuses("100", [](Request& r) { r.token_ids = {5, 100}; });
  refuses("-1", [](Request& r) { r.token_ids = {-1}; });
  refuses("2147483647", [](Request& r) { r.token_ids = {std::numeric_limits<int32_t>::max()}; });
}

struct IntegerCase {
  const char* name;
  int32_t SamplingParams::*field;
  int32_t low, high;  // the last values that are accepted
};

TEST_F(ValidateRequestTest, IntegersAtTheirCapsAndBeyond) {
  for (const IntegerCase& c :
       {IntegerCase{"n", &SamplingParams::n, 1, 128},
        IntegerCase{"logprobs", &SamplingParams::logprobs, -1, 20},
        IntegerCase{"prompt_logprobs", &SamplingParams::prompt_logprobs, -1, 20}}) {
    accepts([&c](Request& r) { r.sampling.*c.field = c.low; });
    accepts([&c](Request& r) { r.sampling.*c.field = c.high; });
    for (const int32_t bad : {c.low - 1, c.high + 1, kHuge, -kHuge}) {
      refuses(c.name, [&c, bad](Request& r) { r.sampling.*c.field = bad; });
    }
  }
}

TEST_F(ValidateRequestTest, IntegersWithoutAnUpperCap) {
  accepts([](Request& r) { r.sampling.top_k = kHuge; });
  accepts([](Request& r) { r.sampling.max_tokens = std::numeric_limits<int32_t>::max(); });
  refuses("top_k", [](Request& r) { r.sampling.top_k = -1; });
  refuses("max_tokens", [](Request& r) { r.sampling.max_tokens = 0; });
  refuses("min_tokens", [](Request& r) { r.sampling.min_tokens = -1; });
  refuses("min_tokens", [](Request& r) { r.sampling.min_tokens = r.sampling.max_tokens + 1; });
}

struct FloatCase {
  const char* name;
  float SamplingParams::*field;
  std::vector<float> good, bad;
};

TEST_F(ValidateRequestTest, FloatsInTheirRanges) {
  const std::vector<FloatCase> cases{
      {"temperature", &SamplingParams::temperature, {0, 0.5, 2, 100}, {-0.1f}},
      {"top_p", &SamplingParams::top_p, {0.01f, 1}, {0, -1, 1.01f}},
      {"min_p", &SamplingParams::min_p, {0, 1}, {-0.1f, 1.1f}},
      {"repetition_penalty", &SamplingParams::repetition_penalty, {0.1f, 5}, {0, -1}},
      {"presence_penalty", &SamplingParams::presence_penalty, {-2, 2}, {-2.1f, 2.1f}},
      {"frequency_penalty", &SamplingParams::frequency_penalty, {-2, 2}, {-2.1f, 2.1f}},
  };
  for (const FloatCase& c : cases) {
    for (const float value : c.good) accepts([&](Request& r) { r.sampling.*c.field = value; });
    std::vector<float> bad = c.bad;
    bad.insert(bad.end(), {kNan, kInfinity, -kInfinity});
    for (const float value : bad) refuses(c.name, [&](Request& r) { r.sampling.*c.field = value; });
  }
}

TEST_F(ValidateRequestTest, LogitBias) {
  accepts([](Request& r) { r.sampling.logit_bias.assign(1024, {99, -100.0f}); });
  refuses("logit_bias", [](Request& r) { r.sampling.logit_bias.assign(1025, {1, 1.0f}); });
  refuses("logit_bias", [](Request& r) { r.sampling.logit_bias = {{100, 1.0f}}; });
  refuses("logit_bias", [](Request& r) { r.sampling.logit_bias = {{1, kNan}}; });
}

TEST_F(ValidateRequestTest, BadWords) {
  accepts([](Request& r) { r.sampling.bad_words.assign(128, {1, 2}); });
  refuses("bad_words", [](Request& r) { r.sampling.bad_words.assign(129, {1}); });
  refuses("bad_words", [](Request& r) { r.sampling.bad_words = {{}}; });
  refuses("bad_words", [](Request& r) { r.sampling.bad_words = {{1, 100}}; });
  refuses("bad_words", [](Request& r) { r.sampling.bad_words = {std::vector<int32_t>(65, 1)}; });
}

TEST_F(ValidateRequestTest, BansThatLeaveNoTokenToChoose) {
  std::vector<int32_t> all_but_eos(99);
  for (int32_t i = 0; i < 99; ++i) all_but_eos[i] = i + 1;
  const auto stops_at_all = [&](Request& r) { r.sampling.stop_token_ids = all_but_eos; };
  accepts(stops_at_all);
  refuses("no token", [&](Request& r) {
    stops_at_all(r);
    r.sampling.min_tokens = 1;
    r.sampling.max_tokens = 2;
  });
  refuses("no token", [](Request& r) {
    r.sampling.allowed_token_ids = {5, 6};
    r.sampling.bad_words = {{5}, {7, 6}};
  });
  accepts([](Request& r) {
    r.sampling.allowed_token_ids = {5, 6};
    r.sampling.bad_words = {{5}, {6, 5}};
  });
}

TEST_F(ValidateRequestTest, StopAndAllowedIds) {
  accepts([](Request& r) { r.sampling.stop_token_ids.assign(1024, 7); });
  refuses("stop_token_ids", [](Request& r) { r.sampling.stop_token_ids.assign(1025, 7); });
  refuses("stop_token_ids", [](Request& r) { r.sampling.stop_token_ids = {100}; });
  accepts([](Request& r) { r.sampling.allowed_token_ids.assign(100, 7); });
  refuses("allowed_token_ids", [](Request& r) { r.sampling.allowed_token_ids.assign(101, 7); });
  refuses("allowed_token_ids", [](Request& r) { r.sampling.allowed_token_ids = {-1}; });
}

TEST_F(ValidateRequestTest, SomeTokenMustRemainToBeChosen) {
  const auto bans_all = [](Request& r) {
    r.sampling.allowed_token_ids = {0, 7};
    r.sampling.stop_token_ids = {7};
    r.sampling.min_tokens = 1;
  };
  refuses("allowed_token_ids", bans_all);
  accepts([&](Request& r) {
    bans_all(r);
    r.sampling.min_tokens = 0;
  });
  accepts([&](Request& r) {
    bans_all(r);
    r.sampling.allowed_token_ids.push_back(8);
  });
}

}  // namespace
}  // namespace octavo
