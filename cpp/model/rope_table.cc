#include "model/rope_table.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

#include "base/errors.h"

namespace octavo {
namespace {

constexpr double kTwoPi = 2.0 * std::numbers::pi;

void scale_llama3(const RopeConfig& rope, std::vector<double>& frequencies) {
  const auto context = static_cast<double>(rope.original_max_position_embeddings);
  for (double& frequency : frequencies) {
    const double wavelength = kTwoPi / frequency;
    if (wavelength < context / rope.high_freq_factor) continue;
    if (wavelength > context / rope.low_freq_factor) {
      frequency /= rope.factor;
      continue;
    }
    const double smooth = (context / wavelength - rope.low_freq_factor) /
                          (rope.high_freq_factor - rope.low_freq_factor);
    frequency = (1.0 - smooth) * frequency / rope.factor + smooth * frequency;
  }
}

// The dimension whose wavelength makes `rotations` turns within the original context.
double yarn_correction_dim(const RopeConfig& rope, int64_t dim, double rotations) {
  const auto context = static_cast<double>(rope.original_max_position_embeddings);
  return static_cast<double>(dim) * std::log(context / (rotations * kTwoPi)) /
         (2.0 * std::log(rope.theta));
}

void scale_yarn(const RopeConfig& rope, int64_t dim, std::vector<double>& frequencies) {
  double low = yarn_correction_dim(rope, dim, rope.beta_fast);
  double high = yarn_correction_dim(rope, dim, rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(dim - 1));
  if (low == high) high += 0.001;
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    frequencies[i] = frequencies[i] / rope.factor * ramp + frequencies[i] * (1.0 - ramp);
  }
}

void scale_longrope(const RopeConfig& rope, int64_t max_model_len,
                    std::vector<double>& frequencies) {
  const bool is_long = max_model_len > rope.original_max_position_embeddings;
  const std::vector<double>& divisors = is_long ? rope.long_factor : rope.short_factor;
  if (divisors.size() != frequencies.size()) {
    throw UnsupportedModelError("rope_scaling: longrope has " + std::to_string(divisors.size()) +
                                " factors for " + std::to_string(frequencies.size()) +
                                " frequencies");
  }
  for (size_t i = 0; i < frequencies.size(); ++i) frequencies[i] /= divisors[i];
}

double yarn_mscale(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

void check_scaling(const RopeConfig& rope) {
  if (!(rope.theta > 0.0)) throw UnsupportedModelError("rope_theta must be positive");
  if (rope.scaling == RopeScaling::kNone) return;
  if (!(rope.factor > 0.0)) throw UnsupportedModelError("rope_scaling: factor must be positive");
  if (rope.scaling == RopeScaling::kLinear) return;
  if (rope.original_max_position_embeddings <= 0) {
    throw UnsupportedModelError("rope_scaling: original_max_position_embeddings is missing");
  }
  if (rope.scaling == RopeScaling::kLongRope && !(rope.factor >= 1.0)) {
    throw UnsupportedModelError("rope_scaling: longrope needs a factor of at least 1");
  }
  if (rope.scaling == RopeScaling::kLlama3 && !(rope.high_freq_factor > rope.low_freq_factor)) {
    throw UnsupportedModelError("rope_scaling: high_freq_factor must exceed low_freq_factor");
  }
}

}  // namespace

int64_t resolve_rotary_dim(const RopeConfig& rope, int64_t head_dim) {
  return rope.rotary_dim > 0 ? rope.rotary_dim : head_dim;
}

std::vector<float> rope_frequencies(const RopeConfig& rope, int64_t rotary_dim,
                                    int64_t max_model_len) {
  check_scaling(rope);
  std::vector<double> frequencies(rotary_dim / 2);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(rotary_dim);
    frequencies[i] = std::pow(rope.theta, -exponent);
  }
  switch (rope.scaling) {
    case RopeScaling::kNone:
      break;
    case RopeScaling::kLinear:
      for (double& frequency : frequencies) frequency /= rope.factor;
      break;
    case RopeScaling::kLlama3:
      scale_llama3(rope, frequencies);
      break;
    case RopeScaling::kYarn:
      scale_yarn(rope, rotary_dim, frequencies);
      break;
    case RopeScaling::kLongRope:
      scale_longrope(rope, max_model_len, frequencies);
      break;
  }
  return {frequencies.begin(), frequencies.end()};
}

double rope_attention_factor(const RopeConfig& rope) {
  const bool is_long = rope.scaling == RopeScaling::kLongRope;
  if (rope.scaling != RopeScaling::kYarn && !is_long) return 1.0;
  if (rope.attention_factor > 0.0) return rope.attention_factor;
  if (is_long) {
    const auto context = static_cast<double>(rope.original_max_position_embeddings);
    return rope.factor <= 1.0 ? 1.0 : std::sqrt(1.0 + std::log(rope.factor) / std::log(context));
  }
  if (rope.mscale != 0.0 && rope.mscale_all_dim != 0.0) {
    return yarn_mscale(rope.factor, rope.mscale) / yarn_mscale(rope.factor, rope.mscale_all_dim);
  }
  return yarn_mscale(rope.factor, 1.0);
}

int64_t RopeTableBuffer::size_bytes(const RopeConfig& rope, int64_t head_dim,
                                    int64_t max_model_len) {
  return resolve_rotary_dim(rope, head_dim) * max_model_len * static_cast<int64_t>(sizeof(float));
}

RopeTableBuffer::RopeTableBuffer(Backend& backend, const RopeConfig& rope, int64_t head_dim,
                                 int64_t max_model_len) {
  const int64_t rotary_dim = resolve_rotary_dim(rope, head_dim);
  const std::vector<float> frequencies = rope_frequencies(rope, rotary_dim, max_model_len);
  const double factor = rope_attention_factor(rope);
  const auto half = static_cast<int64_t>(frequencies.size());
  std::vector<float> values(2 * max_model_len * half);
  float* cos = values.data();
  float* sin = cos + max_model_len * half;
  for (int64_t position = 0; position < max_model_len; ++position) {
    for (int64_t i = 0; i < half; ++i) {
      // Models are trained with this angle rounded to float32: at position 100,000 the exact one
      // differs in the third decimal.
      const float angle = static_cast<float>(position) * frequencies[i];
      cos[position * half + i] = static_cast<float>(std::cos(static_cast<double>(angle)) * factor);
      sin[position * half + i] = static_cast<float>(std::sin(static_cast<double>(angle)) * factor);
    }
  }
  const auto size_bytes = static_cast<int64_t>(values.size() * sizeof(float));
  buffer_ = backend.allocate(size_bytes);
  backend.copy_to_device(buffer_->data(), values.data(), size_bytes);
  backend.synchronize();
  const auto* device = static_cast<const float*>(buffer_->data());
  table_ = {device, device + max_model_len * half, rotary_dim, rope.interleaved};
}

}  // namespace octavo
