// Transaction barriers, bulk copies and named barriers (sm_90). Source: PTX ISA, "mbarrier" and
// "cp.async.bulk".
#pragma once

#include <cuda.h>

#include <cstdint>

// Kernels that use what follows, or wgmma.cuh, are empty where they are compiled for another
// architecture; DeviceContext::is_hopper says where they can be launched.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define OCTAVO_SM90A 1
#endif

namespace octavo::cuda {

// A barrier in shared memory that counts arrivals and bytes; `parity` is that of the phase.
__device__ inline void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ inline void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ inline void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ inline void barrier_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
__device__ inline void barrier_wait(uint32_t barrier, int parity) {
  asm volatile(
      "{ .reg .pred done;\n"
      "WAIT_%=: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra WAIT_%=; }" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Copies `bytes` bytes to shared memory; the barrier counts them. Requires: all multiples of 16.
__device__ inline void copy_bulk(uint32_t shared, const void* global, int bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared),
      "l"(global), "r"(bytes), "r"(barrier)
      : "memory");
}

// Fetches a descriptor ahead of the first copy that reads it.
__device__ inline void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Copies the box at (column, row) of a matrix to shared memory; the barrier counts its bytes.
__device__ inline void copy_box(uint32_t shared, const CUtensorMap* map, uint32_t barrier,
                                int column, int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(shared),
      "l"(map), "r"(barrier), "r"(column), "r"(row)
      : "memory");
}

// The same of the box at (column, 0, 0, group) of a tensor of four dimensions.
__device__ inline void copy_box_4d(uint32_t shared, const CUtensorMap* map, uint32_t barrier,
                                   int column, int group) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %4, %5}], [%2];" ::"r"(shared),
      "l"(map), "r"(barrier), "r"(column), "r"(0), "r"(group)
      : "memory");
}

// Synchronises `threads` threads on named barrier `id` (1 to 15).
__device__ inline void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Counts this thread among the `threads` that barrier `id` waits for, without waiting.
__device__ inline void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace octavo::cuda
