// Norms, residual, activation function, rotary embedding: one row at a time, float32.
// Bound: L1 / L2 bandwidth.
#pragma once

#include "cpu/kernels.h"
#include "cpu/kernels/vec_math.h"

namespace octavo::cpu {
namespace {

// 1 / sqrt(mean of squares + eps), with four partial sums of 16 lanes.
inline float inverse_rms(const float* x, float eps, int64_t size) {
  Vec sum[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= size; i += 4 * kLanes) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const Vec a = load(x + i + v * kLanes);
      sum[v] = fma(a, a, sum[v]);
    }
  }
  for (; i < size; i += kLanes) {
    const Vec a = load_first(x + i, smaller(kLanes, size - i));
    sum[0] = fma(a, a, sum[0]);
  }
  const float total = reduce_add(add(add(sum[0], sum[1]), add(sum[2], sum[3])));
  return 1.0f / __builtin_sqrtf(total / static_cast<float>(size) + eps);
}

void rms_norm(const float* x, const float* weight, float eps, int64_t size, float* out) {
  const Vec inverse = set1(inverse_rms(x, eps, size));
  for (int64_t i = 0; i < size; i += kLanes) {
    const int64_t n = smaller(kLanes, size - i);
    const Vec scaled = mul(load_first(x + i, n), inverse);
    store_first(out + i, mul(scaled, load_first(weight + i, n)), n);
  }
}

void add_to(float* residual, const float* delta, int64_t size) {
  for (int64_t i = 0; i < size; ++i) residual[i] += delta[i];
}

// silu(g) = g / (1 + e^-g).
void silu_mul(const float* gate, const float* up, int64_t size, float* out) {
  const Vec one = set1(1.0f);
  for (int64_t i = 0; i < size; i += kLanes) {
    const int64_t n = smaller(kLanes, size - i);
    const Vec g = load_first(gate + i, n);
    const Vec silu = div(g, add(one, exp(sub(zero(), g))));
    store_first(out + i, mul(silu, load_first(up + i, n)), n);
  }
}

// gelu(g) = g / (1 + e^-2y) with y = sqrt(2 / pi) (g + 0.044715 g^3): the tanh approximation,
// without the cancellation of 1 + tanh(y) where y is far below 0.
void gelu_tanh_mul(const float* gate, const float* up, int64_t size, float* out) {
  const Vec one = set1(1.0f), cubic = set1(0.044715f), slope = set1(-1.5957691216057308f);
  for (int64_t i = 0; i < size; i += kLanes) {
    const int64_t n = smaller(kLanes, size - i);
    const Vec g = load_first(gate + i, n);
    const Vec y = mul(slope, mul(g, fma(cubic, mul(g, g), one)));
    store_first(out + i, mul(div(g, add(one, exp(y))), load_first(up + i, n)), n);
  }
}

void scale(float* x, float factor, int64_t size) {
  for (int64_t i = 0; i < size; ++i) x[i] *= factor;
}

void soft_cap_row(float* x, float cap, int64_t size) {
  const Vec limit = set1(cap);
  for (int64_t i = 0; i < size; i += kLanes) {
    const int64_t n = smaller(kLanes, size - i);
    store_first(x + i, mul(limit, tanh(div(load_first(x + i, n), limit))), n);
  }
}

void rope_half(float* head, const float* cos, const float* sin, int64_t rotary_dim) {
  const int64_t half = rotary_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float a = head[i], b = head[i + half];
    head[i] = a * cos[i] - b * sin[i];
    head[i + half] = b * cos[i] + a * sin[i];
  }
}

void rope_interleaved(float* head, const float* cos, const float* sin, int64_t rotary_dim) {
  for (int64_t i = 0; i < rotary_dim / 2; ++i) {
    const float a = head[2 * i], b = head[2 * i + 1];
    head[2 * i] = a * cos[i] - b * sin[i];
    head[2 * i + 1] = b * cos[i] + a * sin[i];
  }
}

}  // namespace
}  // namespace octavo::cpu
