// Scans of one row of logits, for sampling and log-probabilities. Bound: L2 / L3 bandwidth.
#pragma once

#include "cpu/kernels.h"
#include "cpu/kernels/vec_math.h"

namespace octavo::cpu {
namespace {

float max_or_nan(const float* x, int64_t size) {
  Vec greatest = set1(-__builtin_inff());
  uint32_t nan = 0;
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    const Vec a = load(x + i);
    nan |= mask_nan(a);
    greatest = max(greatest, a);
  }
  float result = reduce_max(greatest);
  for (; i < size; ++i) {
    nan |= x[i] != x[i];
    result = x[i] > result ? x[i] : result;
  }
  return nan != 0 ? __builtin_nanf("") : result;
}

void run_maxima(const float* x, int64_t size, int64_t run, float* out) {
  for (int64_t begin = 0; begin < size; begin += run) {
    const int64_t end = smaller(size, begin + run);
    Vec greatest = set1(-__builtin_inff());
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) greatest = max(greatest, load(x + i));
    float result = reduce_max(greatest);
    for (; i < end; ++i) result = x[i] > result ? x[i] : result;
    *out++ = result;
  }
}

int64_t find_equal(const float* x, int64_t size, float value) {
  const Vec wanted = set1(value);
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    const uint32_t mask = mask_equal(load(x + i), wanted);
    if (mask != 0) return i + __builtin_ctz(mask);
  }
  while (i < size && x[i] != value) ++i;
  return i;
}

int64_t count_greater(const float* x, int64_t size, float value) {
  const Vec bound = set1(value);
  int64_t count = 0, i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    count += __builtin_popcount(mask_greater(load(x + i), bound));
  }
  for (; i < size; ++i) count += x[i] > value;
  return count;
}

int64_t count_equal(const float* x, int64_t size, float value) {
  const Vec wanted = set1(value);
  int64_t count = 0, i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    count += __builtin_popcount(mask_equal(load(x + i), wanted));
  }
  for (; i < size; ++i) count += x[i] == value;
  return count;
}

int64_t collect_at_least(const float* x, int64_t size, float threshold, int32_t* indices,
                         int64_t capacity) {
  const Vec bound = set1(threshold);
  int64_t count = 0;
  for (int64_t i = 0; i < size; i += kLanes) {
    const int64_t n = smaller(kLanes, size - i);
    const uint32_t valid = n == kLanes ? 0xFFFFu : (1u << n) - 1;
    for (uint32_t mask = mask_at_least(load_first(x + i, n), bound) & valid; mask != 0;
         mask &= mask - 1) {
      if (count < capacity) indices[count] = static_cast<int32_t>(i + __builtin_ctz(mask));
      ++count;
    }
  }
  return count;
}

inline Vec exp_term(Vec x, float max, float scale) {
  return exp(mul(sub(x, set1(max)), set1(scale)));
}

void exp_sums(const float* x, int64_t size, float max, float scale, float* out) {
  for (int64_t begin = 0; begin < size; begin += kSumChunk) {
    const int64_t end = smaller(size, begin + kSumChunk);
    Vec sum = zero();
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) sum = add(sum, exp_term(load(x + i), max, scale));
    float result = reduce_add(sum);
    for (; i < end; ++i) result += first_lane(exp_term(set1(x[i]), max, scale));
    *out++ = result;
  }
}

void exp_terms(const float* x, int64_t size, float max, float scale, float* out) {
  for (int64_t i = 0; i < size; i += kLanes) {
    const int64_t n = smaller(kLanes, size - i);
    store_first(out + i, exp_term(load_first(x + i, n), max, scale), n);
  }
}

}  // namespace
}  // namespace octavo::cpu
