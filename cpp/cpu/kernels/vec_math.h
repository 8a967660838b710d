// What the kernels need beyond single instructions.
#pragma once

#include <cstdint>

#include "cpu/kernels/vec.h"

namespace octavo::cpu {
namespace {

inline constexpr int64_t kLanes = 16;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Halves are added to halves: the same order on every instruction set.
inline float reduce_add(Vec x) {
  const __m256 eight = _mm256_add_ps(low_half(x), high_half(x));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline float reduce_max(Vec x) {
  const __m256 eight = _mm256_max_ps(low_half(x), high_half(x));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

inline float first_lane(Vec x) { return _mm_cvtss_f32(_mm256_castps256_ps128(low_half(x))); }

// e^x within 1.2 units in the last place for x in [-87.3, 88.3]; 0 below, about 2.2e38 above, exact
// at 0; NaN stays NaN. x = n ln 2 + r with |r| <= ln 2 / 2, then a polynomial of degree 6.
// Source: Cephes expf.
inline Vec exp(Vec x) {
  const Vec clipped = min(set1(88.3f), x);
  const Vec n = round(mul(clipped, set1(1.44269504088896341f)));
  const Vec high = fnma(n, set1(0.693359375f), clipped);
  const Vec r = fnma(n, set1(-2.12194440e-4f), high);
  Vec p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  const Vec y = fma(p, mul(r, r), add(r, set1(1.0f)));
  return zero_where_less(scale_by_power(y, n), x, set1(-87.3f));
}

// tanh(x) = 1 - 2 / (e^2x + 1), within 1.2e-7 absolute.
inline Vec tanh(Vec x) {
  const Vec one = set1(1.0f);
  return sub(one, div(set1(2.0f), add(exp(add(x, x)), one)));
}

inline float bits_to_float(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof(x));
  return x;
}

inline uint32_t float_to_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  return bits;
}

inline uint16_t bfloat16_bits(float x) {
  const uint32_t bits = float_to_bits(x);
  if (x != x) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// The stored element types: uint16_t is a half.
inline float widen(float x) { return x; }
inline float widen(uint16_t half) { return _cvtsh_ss(half); }
inline float widen(BFloat16 x) { return bits_to_float(uint32_t{x.bits} << 16); }
inline void narrow(float x, float* out) { *out = x; }
inline void narrow(float x, uint16_t* out) { *out = _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }
inline void narrow(float x, BFloat16* out) { out->bits = bfloat16_bits(x); }

// acc[r][v] += sum over k ascending of a[r, k] * b[k, v], one rounding each: the innermost loop of
// GEMM and attention. b[k, v] is a vector of 16 at b + k * b_stride + v * vec_stride.
template <int kRows, int kVecs, typename T>
inline void multiply_add(const float* a, int64_t a_stride, const T* b, int64_t b_stride,
                         int64_t vec_stride, int64_t depth, Vec (&acc)[kRows][kVecs]) {
  for (int64_t k = 0; k < depth; ++k) {
    Vec column[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) column[v] = load(b + k * b_stride + v * vec_stride);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec x = set1(a[r * a_stride + k]);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) acc[r][v] = fma(x, column[v], acc[r][v]);
    }
  }
}

}  // namespace
}  // namespace octavo::cpu
