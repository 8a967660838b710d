// What lies in the units of coded_units.h, to operands of the matrix units, exactly.
// Codes of four bits become the last bits of the number 128 (bf16) or 1024 (fp16), from which 128
// or 1024 plus the zero is taken. Source: Kim et al., "Who Says Elephants Can't Run", 2022.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/coded_units.h"
#include "cuda/common/element.cuh"

namespace octavo::cuda {

// kGroups: groups of columns of a unit. kLaneWords: of a lane, for a unit; kStepWords, for a step.
template <int kGroupsV>
struct Int4Units {
  static constexpr int kGroups = kGroupsV;
  static constexpr int kStepWords = 1;
  static constexpr int kLaneWords = 8 * kStepWords;
  static constexpr int kCodeBytes = kUnitRows * kUnitDepth / 2;
  static constexpr int kUnitBytes = kCodeBytes + kGroups * kTermBytes;

  template <typename T>
  struct Terms {
    static constexpr uint32_t kMagic = std::is_same_v<T, bf16> ? 0x43004300 : 0x64006400;

    __device__ explicit Terms(uint32_t word) {
      const uint32_t zero = word & kInt4ZeroMask;
      magic_and_zero = kMagic | zero | zero << 16;
      scale = __uint_as_float(word & ~kInt4ZeroMask);
    }
    // The codes in bits 0 to 3 and 16 to 19 of a word, less the zero.
    __device__ uint32_t pair(uint32_t word) const {
      uint32_t biased;
      asm("lop3.b32 %0, %1, 0x000f000f, %2, 0xea;" : "=r"(biased) : "r"(word), "n"(kMagic));
      if constexpr (std::is_same_v<T, bf16>) {
        const __nv_bfloat162 v = __hsub2(reinterpret_cast<const __nv_bfloat162&>(biased),
                                         reinterpret_cast<const __nv_bfloat162&>(magic_and_zero));
        return reinterpret_cast<const uint32_t&>(v);
      } else {
        const __half2 v = __hsub2(reinterpret_cast<const __half2&>(biased),
                                  reinterpret_cast<const __half2&>(magic_and_zero));
        return reinterpret_cast<const uint32_t&>(v);
      }
    }

    float scale;
    uint32_t magic_and_zero;
  };

  // The four registers of an A operand, not scaled; the terms are those of rows g and g + 8.
  template <typename T>
  static __device__ void operand(const uint32_t* words, const Terms<T>& first,
                                 const Terms<T>& second, uint32_t (&a)[4]) {
    a[0] = first.pair(words[0]);
    a[1] = second.pair(words[0] >> 4);
    a[2] = first.pair(words[0] >> 8);
    a[3] = second.pair(words[0] >> 12);
  }
};

struct Float8Units {
  static constexpr int kGroups = 1;
  static constexpr int kStepWords = 2;
  static constexpr int kLaneWords = 8 * kStepWords;
  static constexpr int kCodeBytes = kUnitRows * kUnitDepth;
  static constexpr int kUnitBytes = kCodeBytes + kTermBytes;

  template <typename T>
  struct Terms {
    __device__ explicit Terms(uint32_t word) { scale = __uint_as_float(word); }
    float scale;
  };

  template <typename T>
  static __device__ void operand(const uint32_t* words, const Terms<T>&, const Terms<T>&,
                                 uint32_t (&a)[4]) {
    const uint2 first = fp8x4_to_words<T>(words[0]);
    const uint2 second = fp8x4_to_words<T>(words[1]);
    a[0] = first.x;
    a[1] = second.x;
    a[2] = first.y;
    a[3] = second.y;
  }
};

// Calls f with the units of a type. Requires: has_units(dtype).
template <typename F>
void dispatch_units(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kInt4G32:
      return f(Int4Units<4>{});
    case DType::kInt4G64:
      return f(Int4Units<2>{});
    case DType::kInt4G128:
      return f(Int4Units<1>{});
    default:
      check(dtype == DType::kFloat8Blocks, "a type without units");
      return f(Float8Units{});
  }
}

}  // namespace octavo::cuda
