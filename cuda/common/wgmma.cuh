// Warpgroup matrix instructions (sm_90a).
// A warpgroup's accumulator of 64 x N floats lies as N / 8 fragments of mma.m16n8k16, one after the
// other; warp w holds rows 16 w to 16 w + 15. Source: PTX ISA, "Asynchronous Warpgroup Level Matrix
// Instructions".
#pragma once

#include <cstdint>

#include "cuda/common/mma.cuh"

namespace octavo::cuda {

// Shared-memory operand with 128-byte swizzle: rows of 128 bytes, in groups of 8 that lie
// `stride_bytes` apart; `leading_bytes` separates the 64-element columns of an operand that is
// contiguous along N. Requires: 1024-byte aligned groups.
__device__ inline uint64_t wgmma_operand(uint32_t shared, uint32_t leading_bytes,
                                         uint32_t stride_bytes) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  return kSwizzle128 | (uint64_t{(shared & 0x3ffff) >> 4}) | (uint64_t{leading_bytes >> 4} << 16) |
         (uint64_t{stride_bytes >> 4} << 32);
}

__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving uses of an accumulator across a fence or a wait.
template <int kCount>
__device__ inline void pin_registers(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

#define OCTAVO_WGMMA_32_NAMES                                                           \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22," \
  "%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
#define OCTAVO_WGMMA_32_OPERANDS                                                                  \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
      "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),    \
      "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]),  \
      "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]),  \
      "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define OCTAVO_WGMMA_64_NAMES                                                           \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22," \
  "%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,"    \
  "%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,"    \
  "%63}, "
#define OCTAVO_WGMMA_64_OPERANDS                                                                  \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
      "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),    \
      "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]),  \
      "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]),  \
      "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),  \
      "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]),  \
      "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]),  \
      "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),  \
      "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])

#define OCTAVO_WGMMA_4_NAMES "{%0,%1,%2,%3}, "
#define OCTAVO_WGMMA_4_OPERANDS "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define OCTAVO_WGMMA_8_NAMES "{%0,%1,%2,%3,%4,%5,%6,%7}, "
#define OCTAVO_WGMMA_8_OPERANDS \
  OCTAVO_WGMMA_4_OPERANDS, "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#define OCTAVO_WGMMA_16_NAMES "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, "
#define OCTAVO_WGMMA_16_OPERANDS                                                          \
  OCTAVO_WGMMA_8_OPERANDS, "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), \
      "+f"(d[13]), "+f"(d[14]), "+f"(d[15])

// d (+)= a b^T: a [64, 16] and b [n, 16] in shared memory, both contiguous along the 16. `a_at` is
// the number of the operand behind the accumulator.
#define OCTAVO_WGMMA_SHARED(n, type, names, operands, a_at, b_at, accumulate_at)              \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #accumulate_at                              \
               ", 0; wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " " names \
               "%" #a_at ", %" #b_at ", p, 1, 1, 0, 0; }"                                     \
               : operands                                                                     \
               : "l"(a), "l"(b), "r"(accumulate))
#define OCTAVO_WGMMA_SHARED_OF(count, n, a_at, b_at, accumulate_at)                                \
  template <typename T>                                                                            \
  __device__ inline void wgmma_shared(float(&d)[count], uint64_t a, uint64_t b, int accumulate) {  \
    if constexpr (std::is_same_v<T, bf16>) {                                                       \
      OCTAVO_WGMMA_SHARED(n, "bf16", OCTAVO_WGMMA_##count##_NAMES,                                 \
                          OCTAVO_WGMMA_##count##_OPERANDS, a_at, b_at, accumulate_at);             \
    } else {                                                                                       \
      OCTAVO_WGMMA_SHARED(n, "f16", OCTAVO_WGMMA_##count##_NAMES, OCTAVO_WGMMA_##count##_OPERANDS, \
                          a_at, b_at, accumulate_at);                                              \
    }                                                                                              \
  }
OCTAVO_WGMMA_SHARED_OF(4, 8, 4, 5, 6)
OCTAVO_WGMMA_SHARED_OF(8, 16, 8, 9, 10)
OCTAVO_WGMMA_SHARED_OF(16, 32, 16, 17, 18)
OCTAVO_WGMMA_SHARED_OF(32, 64, 32, 33, 34)
OCTAVO_WGMMA_SHARED_OF(64, 128, 64, 65, 66)

// The same with a [64, 16] in registers.
#define OCTAVO_WGMMA_MIXED(n, type, names, operands, at0, at1, at2, at3, b_at, accumulate_at) \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #accumulate_at                              \
               ", 0; wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " " names \
               "{%" #at0 ",%" #at1 ",%" #at2 ",%" #at3 "}, %" #b_at ", p, 1, 1, 0; }"         \
               : operands                                                                     \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate))
#define OCTAVO_WGMMA_MIXED_OF(count, n, at0, at1, at2, at3, b_at, accumulate_at)                   \
  template <typename T>                                                                            \
  __device__ inline void wgmma_mixed(float(&d)[count], const uint32_t(&a)[4], uint64_t b,          \
                                     int accumulate) {                                             \
    if constexpr (std::is_same_v<T, bf16>) {                                                       \
      OCTAVO_WGMMA_MIXED(n, "bf16", OCTAVO_WGMMA_##count##_NAMES, OCTAVO_WGMMA_##count##_OPERANDS, \
                         at0, at1, at2, at3, b_at, accumulate_at);                                 \
    } else {                                                                                       \
      OCTAVO_WGMMA_MIXED(n, "f16", OCTAVO_WGMMA_##count##_NAMES, OCTAVO_WGMMA_##count##_OPERANDS,  \
                         at0, at1, at2, at3, b_at, accumulate_at);                                 \
    }                                                                                              \
  }
OCTAVO_WGMMA_MIXED_OF(4, 8, 4, 5, 6, 7, 8, 9)
OCTAVO_WGMMA_MIXED_OF(8, 16, 8, 9, 10, 11, 12, 13)
OCTAVO_WGMMA_MIXED_OF(16, 32, 16, 17, 18, 19, 20, 21)
OCTAVO_WGMMA_MIXED_OF(32, 64, 32, 33, 34, 35, 36, 37)

// d += a b: a [64, 16] in registers, b [16, N] in shared memory, contiguous along N.
#define OCTAVO_WGMMA_REGISTERS_128(type)                                       \
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type    \
               " " OCTAVO_WGMMA_64_NAMES "{%64,%65,%66,%67}, %68, 1, 1, 1, 1;" \
               : OCTAVO_WGMMA_64_OPERANDS                                      \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define OCTAVO_WGMMA_REGISTERS_64(type)                                        \
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type     \
               " " OCTAVO_WGMMA_32_NAMES "{%32,%33,%34,%35}, %36, 1, 1, 1, 1;" \
               : OCTAVO_WGMMA_32_OPERANDS                                      \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

template <typename T>
__device__ inline void wgmma_registers(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
  if constexpr (std::is_same_v<T, bf16>) {
    OCTAVO_WGMMA_REGISTERS_128("bf16");
  } else {
    OCTAVO_WGMMA_REGISTERS_128("f16");
  }
}
template <typename T>
__device__ inline void wgmma_registers(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
  if constexpr (std::is_same_v<T, bf16>) {
    OCTAVO_WGMMA_REGISTERS_64("bf16");
  } else {
    OCTAVO_WGMMA_REGISTERS_64("f16");
  }
}

// Ordinary shared-memory writes of this thread become visible to wgmma and the copy engine.
__device__ inline void fence_shared_for_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

template <int kRegisters>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace octavo::cuda
