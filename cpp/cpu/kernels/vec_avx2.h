// Sixteen floats in two AVX2 registers: lane for lane the same arithmetic as vec_avx512.h. Included
// once, by isa_avx2.cc; all names have internal linkage.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace octavo::cpu {
namespace {

struct Vec {
  __m256 lo, hi;
};

// Tile of accumulators that leaves registers for the operands: 12 of 16.
inline constexpr int kTileRows = 6;
inline constexpr int kTileVecs = 1;

// All bits set in the first n of 8 lanes.
inline __m256i first_lanes(int64_t n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane);
}

inline Vec zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Vec set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, Vec x) {
  _mm256_storeu_ps(p, x.lo);
  _mm256_storeu_ps(p + 8, x.hi);
}
// Lanes from n on are 0 and are not read.
inline Vec load_first(const float* p, int64_t n) {
  return {_mm256_maskload_ps(p, first_lanes(n)), _mm256_maskload_ps(p + 8, first_lanes(n - 8))};
}
// A masked store costs an AMD core tens of cycles, so whole vectors have none.
inline void store_first(float* p, Vec x, int64_t n) {
  if (n >= 16) return store(p, x);
  _mm256_maskstore_ps(p, first_lanes(n), x.lo);
  _mm256_maskstore_ps(p + 8, first_lanes(n - 8), x.hi);
}

inline Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline Vec sub(Vec a, Vec b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline Vec mul(Vec a, Vec b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline Vec div(Vec a, Vec b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
// a * b + c and c - a * b, rounded once.
inline Vec fma(Vec a, Vec b, Vec c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline Vec fnma(Vec a, Vec b, Vec c) {
  return {_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi)};
}
// A NaN in b is returned; one in a is not.
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline Vec absolute(Vec x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.lo), _mm256_andnot_ps(sign, x.hi)};
}
inline Vec round(Vec x) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.lo, kNearest), _mm256_round_ps(x.hi, kNearest)};
}
inline __m256 power_of_two(__m256 n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}
// x * 2^n for whole n in [-126, 127].
inline Vec scale_by_power(Vec x, Vec n) {
  return {_mm256_mul_ps(x.lo, power_of_two(n.lo)), _mm256_mul_ps(x.hi, power_of_two(n.hi))};
}
// x where a < b does not hold, else 0.
inline Vec zero_where_less(Vec x, Vec a, Vec b) {
  return {_mm256_and_ps(_mm256_cmp_ps(a.lo, b.lo, _CMP_NLT_UQ), x.lo),
          _mm256_and_ps(_mm256_cmp_ps(a.hi, b.hi, _CMP_NLT_UQ), x.hi)};
}

// The sums of bytes 0..15 and 16..31.
struct HalfSums {
  int32_t low, high;
};
// Rounds to the nearest whole number, even of two: 32 bytes of `out`.
inline HalfSums round_to_int8(Vec low, Vec high, int8_t* out) {
  const __m256i first = _mm256_packs_epi32(_mm256_cvtps_epi32(low.lo), _mm256_cvtps_epi32(low.hi));
  const __m256i second =
      _mm256_packs_epi32(_mm256_cvtps_epi32(high.lo), _mm256_cvtps_epi32(high.hi));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i both = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(first, second), order);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), both);
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), both);
  __m256i sums = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  sums = _mm256_hadd_epi32(sums, sums);
  sums = _mm256_hadd_epi32(sums, sums);
  return {_mm256_cvtsi256_si32(sums), _mm_cvtsi128_si32(_mm256_extracti128_si256(sums, 1))};
}

template <int kPredicate>
inline uint32_t mask_compare(Vec a, Vec b) {
  const int lo = _mm256_movemask_ps(_mm256_cmp_ps(a.lo, b.lo, kPredicate));
  const int hi = _mm256_movemask_ps(_mm256_cmp_ps(a.hi, b.hi, kPredicate));
  return static_cast<uint32_t>(lo | hi << 8);
}
// One bit a lane.
inline uint32_t mask_nan(Vec x) { return mask_compare<_CMP_UNORD_Q>(x, x); }
inline uint32_t mask_equal(Vec a, Vec b) { return mask_compare<_CMP_EQ_OQ>(a, b); }
inline uint32_t mask_greater(Vec a, Vec b) { return mask_compare<_CMP_GT_OQ>(a, b); }
inline uint32_t mask_at_least(Vec a, Vec b) { return mask_compare<_CMP_GE_OQ>(a, b); }

inline __m256 low_half(Vec x) { return x.lo; }
inline __m256 high_half(Vec x) { return x.hi; }

inline __m256 widen_half(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline __m256 widen_bfloat16(const uint16_t* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
// Sixteen elements as float32.
inline Vec load(const uint16_t* half) { return {widen_half(half), widen_half(half + 8)}; }
struct BFloat16 {
  uint16_t bits;
};
inline Vec load(const BFloat16* p) {
  return {widen_bfloat16(&p->bits), widen_bfloat16(&p->bits + 8)};
}

inline __m256i bfloat16_bits(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
}
// Sixteen elements rounded to the nearest bfloat16, even of two.
inline void store_bfloat16(uint16_t* p, Vec x) {
  const __m256i both = _mm256_packus_epi32(bfloat16_bits(x.lo), bfloat16_bits(x.hi));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(both, 0xD8));
}
inline void store_half(uint16_t* p, Vec x) {
  auto* both = reinterpret_cast<__m128i*>(p);
  _mm_storeu_si128(both, _mm256_cvtps_ph(x.lo, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(both + 1, _mm256_cvtps_ph(x.hi, _MM_FROUND_TO_NEAREST_INT));
}
// out[2 i] = a[i], out[2 i + 1] = b[i] for sixteen elements.
inline void store_pairs(uint16_t* out, const uint16_t* a, const uint16_t* b) {
  const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a));
  const __m256i second = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
  const __m256i low = _mm256_unpacklo_epi16(first, second);
  const __m256i high = _mm256_unpackhi_epi16(first, second);
  auto* pairs = reinterpret_cast<__m256i*>(out);
  _mm256_storeu_si256(pairs, _mm256_permute2x128_si256(low, high, 0x20));
  _mm256_storeu_si256(pairs + 1, _mm256_permute2x128_si256(low, high, 0x31));
}

inline Vec load(const int32_t* p) {
  const auto* both = reinterpret_cast<const __m256i*>(p);
  return {_mm256_cvtepi32_ps(_mm256_loadu_si256(both)),
          _mm256_cvtepi32_ps(_mm256_loadu_si256(both + 1))};
}

inline __m256 widen_int8(const int8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}
inline Vec load_int8(const int8_t* p) { return {widen_int8(p), widen_int8(p + 8)}; }

}  // namespace
}  // namespace octavo::cpu
