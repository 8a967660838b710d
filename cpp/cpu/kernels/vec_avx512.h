// Sixteen floats in one AVX-512 register. Included once by each isa_*.cc that has AVX-512; all
// names have internal linkage.
#pragma once

#include <cstdint>

// GCC 12 takes its own "undefined" operands of masked intrinsics for uses (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

namespace octavo::cpu {
namespace {

struct Vec {
  __m512 v;
};

// Tile of accumulators that leaves registers for the operands: 24 of 32.
inline constexpr int kTileRows = 6;
inline constexpr int kTileVecs = 4;

inline __mmask16 first_lanes(int64_t n) {
  return n >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << n) - 1);
}

inline __mmask16 lanes_below(int64_t n) { return n <= 0 ? 0 : first_lanes(n); }

inline Vec zero() { return {_mm512_setzero_ps()}; }
inline Vec set1(float x) { return {_mm512_set1_ps(x)}; }
inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, Vec x) { _mm512_storeu_ps(p, x.v); }
// Lanes from n on are 0 and are not read.
inline Vec load_first(const float* p, int64_t n) {
  return {_mm512_maskz_loadu_ps(first_lanes(n), p)};
}
inline void store_first(float* p, Vec x, int64_t n) {
  _mm512_mask_storeu_ps(p, first_lanes(n), x.v);
}

inline Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec div(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
// a * b + c and c - a * b, rounded once.
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec fnma(Vec a, Vec b, Vec c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
// A NaN in b is returned; one in a is not.
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vec absolute(Vec x) { return {_mm512_abs_ps(x.v)}; }
inline Vec round(Vec x) {
  return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// x * 2^n for whole n in [-126, 127].
inline Vec scale_by_power(Vec x, Vec n) { return {_mm512_scalef_ps(x.v, n.v)}; }
// x - floor(x); 0 for an infinity.
inline Vec fraction(Vec x) {
  return {_mm512_reduce_ps(x.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
}
// y * 2^floor(x) for y in [1, 2] and x <= 126; 0 where x < -126. Requires: denormals are flushed.
inline Vec scale_by_floor(Vec y, Vec x) { return {_mm512_scalef_ps(y.v, x.v)}; }
// x where a < b does not hold, else 0.
inline Vec zero_where_less(Vec x, Vec a, Vec b) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_NLT_UQ), x.v)};
}

// Lanes [first, end) of x, the others of y; the bounds may lie anywhere.
inline Vec select_lanes(Vec x, Vec y, int64_t first, int64_t end) {
  const auto mask = static_cast<__mmask16>(lanes_below(end) & ~lanes_below(first));
  return {_mm512_mask_mov_ps(y.v, mask, x.v)};
}

// The sums of bytes 0..15 and 16..31.
struct HalfSums {
  int32_t low, high;
};
// Rounds to the nearest whole number, even of two: 32 bytes of `out`.
inline HalfSums round_to_int8(Vec low, Vec high, int8_t* out) {
  const __m128i first = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(low.v));
  const __m128i second = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(high.v));
  const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), both);
  __m256i sums = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), both);
  sums = _mm256_hadd_epi32(sums, sums);
  sums = _mm256_hadd_epi32(sums, sums);
  return {_mm256_cvtsi256_si32(sums), _mm_cvtsi128_si32(_mm256_extracti128_si256(sums, 1))};
}

// One bit a lane.
inline uint32_t mask_nan(Vec x) { return _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q); }
inline uint32_t mask_equal(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ); }
inline uint32_t mask_greater(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
inline uint32_t mask_at_least(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }

// Lane i = the greatest lane of rows[i].
inline Vec lane_maxima(const Vec (&rows)[16]) {
  __m512 pairs[8], fours[4], eights[2];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const __m512 a = rows[2 * i].v, b = rows[2 * i + 1].v;
    pairs[i] = _mm512_max_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(pairs[2 * i]), b = _mm512_castps_pd(pairs[2 * i + 1]);
    fours[i] = _mm512_max_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  const auto across = [](__m512 a, __m512 b) {
    return _mm512_max_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
  };
  for (int i = 0; i < 2; ++i) eights[i] = across(fours[2 * i], fours[2 * i + 1]);
  return {across(eights[0], eights[1])};
}

inline __m256 low_half(Vec x) { return _mm512_castps512_ps256(x.v); }
inline __m256 high_half(Vec x) { return _mm512_extractf32x8_ps(x.v, 1); }

// Sixteen elements as float32.
inline Vec load(const uint16_t* half) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(half)))};
}
struct BFloat16 {
  uint16_t bits;
};
inline Vec load(const BFloat16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}

// Sixteen elements rounded to the nearest bfloat16, even of two.
inline void store_bfloat16(uint16_t* p, Vec x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x.v)));
}
inline void store_bfloat16(uint16_t* p, Vec first, Vec second) {
  _mm512_storeu_si512(p, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second.v, first.v)));
}
inline void store_half(uint16_t* p, Vec x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
// Sixteen pairs of bfloat16 as float32.
struct PairVecs {
  Vec even, odd;
};
inline PairVecs load_pairs(const uint16_t* p) {
  const __m512i bits = _mm512_loadu_si512(p);
  const __m512i odd = _mm512_and_si512(bits, _mm512_set1_epi32(-0x10000));
  return {{_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16))}, {_mm512_castsi512_ps(odd)}};
}
// out[2 i] = x[i] rounded to bfloat16; what lies between is not written, not even with itself.
inline void store_every_other(uint16_t* out, Vec x) {
  const auto bits = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x.v));
  _mm512_mask_storeu_epi16(out, 0x55555555, _mm512_cvtepu16_epi32(bits));
}

inline Vec load(const int32_t* p) { return {_mm512_cvtepi32_ps(_mm512_loadu_si512(p))}; }

inline Vec load_int8(const int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
}

}  // namespace
}  // namespace octavo::cpu
