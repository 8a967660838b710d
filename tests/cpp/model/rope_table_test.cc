#include "model/rope_table.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "base/errors.h"
#include "model/reference_backend.h"

namespace octavo::testing {
namespace {

TEST(RopeTable, PlainFrequenciesFallGeometrically) {
  const std::vector<float> frequencies = rope_frequencies(RopeConfig{.theta = 10000.0}, 8, 256);
  ASSERT_EQ(frequencies.size(), 4u);
  EXPECT_FLOAT_EQ(frequencies[0], 1.0f);
  EXPECT_FLOAT_EQ(frequencies[1], 0.1f);
  EXPECT_FLOAT_EQ(frequencies[3], 0.001f);
}

TEST(RopeTable, LinearDividesEveryFrequency) {
  const RopeConfig rope{.scaling = RopeScaling::kLinear, .factor = 4.0};
  EXPECT_FLOAT_EQ(rope_frequencies(rope, 8, 256)[1], 0.025f);
}

TEST(RopeTable, Llama3KeepsShortWavesAndDividesLongOnes) {
  const RopeConfig rope{.theta = 500000.0,
                        .scaling = RopeScaling::kLlama3,
                        .factor = 8.0,
                        .original_max_position_embeddings = 8192};
  const std::vector<float> scaled = rope_frequencies(rope, 128, 256);
  const std::vector<float> plain = rope_frequencies(RopeConfig{.theta = 500000.0}, 128, 256);
  bool met_middle = false;
  for (size_t i = 0; i < plain.size(); ++i) {
    const double wavelength = 2.0 * std::numbers::pi / plain[i];
    if (wavelength < 8192.0 / 4.0) {
      EXPECT_FLOAT_EQ(scaled[i], plain[i]);
    } else if (wavelength > 8192.0) {
      EXPECT_FLOAT_EQ(scaled[i], plain[i] / 8.0f);
    } else {
      EXPECT_LT(scaled[i], plain[i]);
      EXPECT_GT(scaled[i], plain[i] / 8.0f);
      met_middle = true;
    }
  }
  EXPECT_TRUE(met_middle);
}

TEST(RopeTable, YarnInterpolatesLowFrequenciesOnly) {
  const RopeConfig rope{
      .scaling = RopeScaling::kYarn, .factor = 4.0, .original_max_position_embeddings = 2048};
  const std::vector<float> scaled = rope_frequencies(rope, 64, 256);
  const std::vector<float> plain = rope_frequencies(RopeConfig{}, 64, 256);
  EXPECT_FLOAT_EQ(scaled.front(), plain.front());
  EXPECT_FLOAT_EQ(scaled.back(), plain.back() / 4.0f);
  for (size_t i = 1; i < plain.size(); ++i) EXPECT_LE(scaled[i] / plain[i], 1.0001f);
}

TEST(RopeTable, YarnAttentionFactor) {
  RopeConfig rope{.scaling = RopeScaling::kYarn, .factor = 4.0};
  EXPECT_DOUBLE_EQ(rope_attention_factor(rope), 0.1 * std::log(4.0) + 1.0);
  rope.mscale = 1.0;
  rope.mscale_all_dim = 0.5;
  EXPECT_DOUBLE_EQ(rope_attention_factor(rope),
                   (0.1 * std::log(4.0) + 1.0) / (0.05 * std::log(4.0) + 1.0));
  rope.attention_factor = 1.5;
  EXPECT_DOUBLE_EQ(rope_attention_factor(rope), 1.5);
  EXPECT_DOUBLE_EQ(rope_attention_factor(RopeConfig{}), 1.0);
}

TEST(RopeTable, HoldsCosAndSinOfEveryPosition) {
  ReferenceBackend backend;
  const RopeConfig rope{.rotary_dim = 6,
                        .interleaved = true,
                        .scaling = RopeScaling::kYarn,
                        .factor = 2.0,
                        .original_max_position_embeddings = 64,
                        .attention_factor = 1.25};
  const RopeTableBuffer buffer(backend, rope, 16, 100);
  const RopeTable& table = buffer.table();
  EXPECT_EQ(table.rotary_dim, 6);
  EXPECT_TRUE(table.interleaved);
  const std::vector<float> frequencies = rope_frequencies(rope, 6, 256);
  for (const int64_t position : {0, 1, 57, 99}) {
    for (int64_t i = 0; i < 3; ++i) {
      const double angle = static_cast<double>(position) * frequencies[i];
      EXPECT_NEAR(table.cos[position * 3 + i], 1.25 * std::cos(angle), 1e-5);
      EXPECT_NEAR(table.sin[position * 3 + i], 1.25 * std::sin(angle), 1e-5);
    }
  }
}

TEST(RopeTable, RefusesParametersThatMakeNoSense) {
  const auto frequencies = [](const RopeConfig& rope) { return rope_frequencies(rope, 8, 256); };
  EXPECT_THROW(frequencies({.theta = 0.0}), UnsupportedModelError);
  EXPECT_THROW(frequencies({.scaling = RopeScaling::kLinear, .factor = 0.0}),
               UnsupportedModelError);
  EXPECT_THROW(frequencies({.scaling = RopeScaling::kYarn, .factor = 2.0}), UnsupportedModelError);
  EXPECT_THROW(frequencies({.scaling = RopeScaling::kLlama3,
                            .factor = 2.0,
                            .original_max_position_embeddings = 64,
                            .low_freq_factor = 4.0,
                            .high_freq_factor = 4.0}),
               UnsupportedModelError);
}

TEST(RopeTable, LongropeTakesTheLongFactorsBeyondTheOriginalContext) {
  RopeConfig rope{.scaling = RopeScaling::kLongRope,
                  .factor = 4.0,
                  .original_max_position_embeddings = 64,
                  .short_factor = {1.0, 2.0},
                  .long_factor = {4.0, 8.0}};
  EXPECT_FLOAT_EQ(rope_frequencies(rope, 4, 64)[1], 0.01f / 2.0f);
  EXPECT_FLOAT_EQ(rope_frequencies(rope, 4, 65)[1], 0.01f / 8.0f);
  EXPECT_DOUBLE_EQ(rope_attention_factor(rope), std::sqrt(1.0 + std::log(4.0) / std::log(64.0)));
  rope.attention_factor = 1.5;
  EXPECT_DOUBLE_EQ(rope_attention_factor(rope), 1.5);
  EXPECT_THROW(rope_frequencies(rope, 6, 64), UnsupportedModelError);
}

}  // namespace
}  // namespace octavo::testing
