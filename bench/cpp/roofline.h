// What this machine can do at best, measured at the start of a benchmark: the roof that kernels are
// compared with. Each figure is the best of several short runs.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "base/aligned_buffer.h"
#include "cpu/cpu_features.h"
#include "cpu/thread_pool.h"

namespace octavo::cpu {

enum class Arithmetic : uint8_t { kFloat32, kBFloat16, kInt8 };

namespace roofline {

inline constexpr int kChains = 12;  // enough to hide the latency
inline constexpr int64_t kSteps = 50'000;

// Twelve chains that only registers hold; the asm keeps the compiler from folding them.
#define OCTAVO_ROOF(name, features, vector, start, step, ops)                                  \
  __attribute__((target(features))) inline double name() {                                     \
    vector a0 = start, a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0;                            \
    vector b0 = start, b1 = b0, b2 = b0, b3 = b0, b4 = b0, b5 = b0;                            \
    vector w = start, x = w;                                                                   \
    __asm__ volatile("" : "+v"(w), "+v"(x));                                                   \
    const auto next = [&](vector a) __attribute__((target(features), always_inline)) {         \
      return step;                                                                             \
    };                                                                                         \
    for (int64_t i = 0; i < kSteps; ++i) {                                                     \
      a0 = next(a0), a1 = next(a1), a2 = next(a2), a3 = next(a3);                              \
      a4 = next(a4), a5 = next(a5), b0 = next(b0), b1 = next(b1);                              \
      b2 = next(b2), b3 = next(b3), b4 = next(b4), b5 = next(b5);                              \
      __asm__ volatile(""                                                                      \
                       : "+v"(a0), "+v"(a1), "+v"(a2), "+v"(a3), "+v"(a4), "+v"(a5), "+v"(b0), \
                         "+v"(b1), "+v"(b2), "+v"(b3), "+v"(b4), "+v"(b5));                    \
    }                                                                                          \
    return static_cast<double>(kSteps) * kChains * (ops);                                      \
  }
OCTAVO_ROOF(fma_avx2, "avx2,fma", __m256, _mm256_set1_ps(1), _mm256_fmadd_ps(w, x, a), 16)
OCTAVO_ROOF(maddubs_avx2, "avx2", __m256i, _mm256_set1_epi8(1),
            _mm256_add_epi16(a, _mm256_maddubs_epi16(w, x)), 64)
OCTAVO_ROOF(fma_avx512, "avx512f", __m512, _mm512_set1_ps(1), _mm512_fmadd_ps(w, x, a), 32)
OCTAVO_ROOF(bf16_avx512, "avx512f,avx512bf16", __m512, _mm512_set1_ps(1),
            _mm512_dpbf16_ps(a, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x)), 64)
OCTAVO_ROOF(int8_avx512, "avx512f,avx512vnni", __m512i, _mm512_set1_epi8(1),
            _mm512_dpbusd_epi32(a, w, x), 128)
#undef OCTAVO_ROOF

// Products of full tiles into four accumulators.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
inline double bf16_amx() {
  const TileConfig config;
  __asm__ volatile("ldtilecfg %0" : : "m"(config));
  for (int64_t i = 0; i < kSteps; ++i) {
    __asm__ volatile(
        "tdpbf16ps %tmm6, %tmm4, %tmm0\n\ttdpbf16ps %tmm7, %tmm4, %tmm1\n\t"
        "tdpbf16ps %tmm6, %tmm5, %tmm2\n\ttdpbf16ps %tmm7, %tmm5, %tmm3");
  }
  __asm__ volatile("tilerelease");
  return static_cast<double>(kSteps) * 4 * (2 * 16 * 16 * 32);
}

// int8 products do without tiles on AMX too.
inline double run_chains(Isa isa, Arithmetic arithmetic) {
  if (isa == Isa::kAmx && arithmetic == Arithmetic::kBFloat16) return bf16_amx();
  if (isa == Isa::kAvx2) return arithmetic == Arithmetic::kInt8 ? maddubs_avx2() : fma_avx2();
  if (arithmetic == Arithmetic::kBFloat16) return bf16_avx512();
  if (arithmetic == Arithmetic::kInt8) return int8_avx512();
  return fma_avx512();
}

__attribute__((target("avx2"))) inline int64_t read_all(const std::byte* p, int64_t size) {
  __m256i sum[4] = {};
  for (int64_t i = 0; i < size; i += 128) {
    for (int v = 0; v < 4; ++v) {
      const auto* at = reinterpret_cast<const __m256i*>(p + i + 32 * v);
      sum[v] = _mm256_xor_si256(sum[v], _mm256_load_si256(at));
    }
  }
  const __m256i all =
      _mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]), _mm256_xor_si256(sum[2], sum[3]));
  return _mm256_extract_epi64(all, 0);
}

// Work done per second, the best of `runs`; every thread runs the body once.
template <typename Body>
double best_rate(ThreadPool& pool, int runs, const Body& body) {
  using Clock = std::chrono::steady_clock;
  double best = 0;
  std::vector<double> work(pool.num_threads());
  for (int run = 0; run < runs; ++run) {
    const auto start = Clock::now();
    pool.parallel_for(pool.num_threads(), [&](int64_t task, int) { work[task] = body(task); });
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    double total = 0;
    for (const double w : work) total += w;
    best = std::max(best, total / seconds);
  }
  return best;
}

}  // namespace roofline

// Operations per second of all threads (a multiplication and an addition are two).
inline double peak_ops(ThreadPool& pool, Isa isa, Arithmetic arithmetic) {
  return roofline::best_rate(pool, 20,
                             [&](int64_t) { return roofline::run_chains(isa, arithmetic); });
}

// Bytes per second that all threads together read from memory.
inline double peak_read_bytes(ThreadPool& pool) {
  constexpr int64_t kBytes = int64_t{256} << 20;
  const AlignedBuffer buffer(kBytes);
  std::fill_n(buffer.as<char>(), kBytes, 1);
  const int64_t share = kBytes / pool.num_threads() / 128 * 128;
  return roofline::best_rate(pool, 8, [&](int64_t task) {
    int64_t seen = roofline::read_all(buffer.as<std::byte>() + task * share, share);
    __asm__ volatile("" : "+r"(seen));
    return static_cast<double>(share);
  });
}

}  // namespace octavo::cpu
