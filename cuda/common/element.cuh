// Element types of activations and caches: conversions and 16-byte vectors.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

#include "base/check.h"
#include "base/dtype.h"

namespace octavo::cuda {

using bf16 = __nv_bfloat16;
using fp16 = __half;
using fp8 = __nv_fp8_e4m3;

// Two floats as one word of T, the first in the low half.
template <typename T>
__device__ inline uint32_t pack2(float low, float high) {
  uint32_t word;
  if constexpr (sizeof(T) == 2 && std::is_same_v<T, bf16>) {
    const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    word = reinterpret_cast<const uint32_t&>(v);
  } else {
    const __half2 v = __floats2half2_rn(low, high);
    word = reinterpret_cast<const uint32_t&>(v);
  }
  return word;
}

template <typename T>
__device__ inline float2 unpack2(uint32_t word) {
  if constexpr (std::is_same_v<T, bf16>) {
    return __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(word));
  } else {
    return __half22float2(reinterpret_cast<const __half2&>(word));
  }
}

// Four fp8 values (low byte first) as two words of T; exact. For bf16 the bits move into place and
// a product with 2^120 corrects the exponent, denormals included.
template <typename T>
__device__ inline uint2 fp8x4_to_words(uint32_t quad) {
  if constexpr (std::is_same_v<T, fp16>) {
    const __half2 low(__nv_cvt_fp8x2_to_halfraw2(quad & 0xffff, __NV_E4M3));
    const __half2 high(__nv_cvt_fp8x2_to_halfraw2(quad >> 16, __NV_E4M3));
    return make_uint2(reinterpret_cast<const uint32_t&>(low),
                      reinterpret_cast<const uint32_t&>(high));
  } else {
    constexpr uint32_t kTwoTo120 = 0x7b807b80;
    uint32_t words[2] = {__byte_perm(quad, 0, 0x1404), __byte_perm(quad, 0, 0x3424)};
#pragma unroll
    for (uint32_t& w : words) {
      w = (w & 0x80008000) | (w & 0x7f007f00) >> 4;
      const __nv_bfloat162 v = __hmul2(reinterpret_cast<const __nv_bfloat162&>(w),
                                       reinterpret_cast<const __nv_bfloat162&>(kTwoTo120));
      w = reinterpret_cast<const uint32_t&>(v);
    }
    return make_uint2(words[0], words[1]);
  }
}

// A word of T as two fp8 values, saturating.
template <typename T>
__device__ inline uint16_t word_to_fp8x2(uint32_t word) {
  return __nv_cvt_float2_to_fp8x2(unpack2<T>(word), __NV_SATFINITE, __NV_E4M3);
}

// Eight consecutive elements as floats. Requires: 16-byte alignment (32 for float).
template <typename T>
__device__ inline void load8(const T* p, float (&v)[8]) {
  if constexpr (std::is_same_v<T, float>) {
    const float4 a = reinterpret_cast<const float4*>(p)[0];
    const float4 b = reinterpret_cast<const float4*>(p)[1];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
    v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
  } else {
    const uint4 words = *reinterpret_cast<const uint4*>(p);
    const uint32_t w[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 f = unpack2<T>(w[i]);
      v[2 * i] = f.x;
      v[2 * i + 1] = f.y;
    }
  }
}

template <typename T>
__device__ inline void store8(T* p, const float (&v)[8]) {
  if constexpr (std::is_same_v<T, float>) {
    reinterpret_cast<float4*>(p)[0] = make_float4(v[0], v[1], v[2], v[3]);
    reinterpret_cast<float4*>(p)[1] = make_float4(v[4], v[5], v[6], v[7]);
  } else {
    *reinterpret_cast<uint4*>(p) = make_uint4(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]),
                                              pack2<T>(v[4], v[5]), pack2<T>(v[6], v[7]));
  }
}

template <typename T>
__device__ inline T from_float(float v) {
  if constexpr (std::is_same_v<T, float>) return v;
  if constexpr (std::is_same_v<T, bf16>) return __float2bfloat16_rn(v);
  if constexpr (std::is_same_v<T, fp16>) return __float2half_rn(v);
}

template <typename T>
__device__ inline float to_float(T v) {
  return static_cast<float>(v);
}

// v rounded to T and back: what a reader of the stored value sees.
template <typename T>
__device__ inline float round_to(float v) {
  return to_float(from_float<T>(v));
}

// Calls f with a value of the half type that `dtype` names. Throws CheckError for another.
template <typename F>
void dispatch_half(DType dtype, F&& f) {
  check(dtype == DType::kBFloat16 || dtype == DType::kFloat16, "activations are bf16 or fp16");
  if (dtype == DType::kBFloat16) {
    f(bf16{});
  } else {
    f(fp16{});
  }
}

// The same with float32 allowed.
template <typename F>
void dispatch_float(DType dtype, F&& f) {
  if (dtype == DType::kFloat32) {
    f(float{});
  } else {
    dispatch_half(dtype, f);
  }
}

}  // namespace octavo::cuda
