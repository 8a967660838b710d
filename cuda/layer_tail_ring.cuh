// What the blocks of fused_layer_tail.cu are given, and the two warps that feed their ring.
// Included there only.
#pragma once

#include "cuda/stream_ring.cuh"

namespace octavo::cuda {
namespace {

constexpr int kMaxPhases = 4;
constexpr int kTailThreads = kConsumers + 2 * kWarpSize;
constexpr int kMaxHidden = 16384;

template <typename T>
struct TailPhase {
  const T* bias;
  const float* scales;  // of the rows of an fp8 W
  StreamShape shape;
};

template <typename T>
struct TailArgs {
  TailPhase<T> phases[kMaxPhases];
  int num_phases;
  int num_stages;
  int num_rows;
  int hidden;
  float eps;
  T* residual;
  T* normed;
  T* gated;
  T* next_out;
  const float* norms[2];  // of phases 0 and 2
  float* partials;        // see StreamArgs
  int32_t* flags;
  float* squares;     // [tiles of hidden, columns]: sums over a tile's rows
  int32_t* counters;  // [kMaxPhases + 1], zero between launches: blocks done with each phase, all
};

struct TailMaps {
  CUtensorMap weights[kMaxPhases];
  CUtensorMap x[kMaxPhases];
};

// Orders ordinary writes and the copy engine's reads of global memory.
__device__ inline void fence_global_for_async() { asm volatile("fence.proxy.async;" ::: "memory"); }

__device__ inline void add_release(int32_t* counter) {
  asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(counter) : "memory");
}

__device__ inline void wait_for_blocks(const int32_t* counter) {
  while (load_acquire(counter) < static_cast<int32_t>(gridDim.x)) {
  }
}

// One thread: copies the block's slices of W, phase after phase. Weights depend on no kernel.
template <typename V>
__device__ void produce_weights(const TailArgs<typename V::T>& args, const TailMaps& maps,
                                Ring<V> ring) {
  for (int p = 0; p < args.num_phases; ++p) prefetch_map(&maps.weights[p]);
  for (int p = 0; p < args.num_phases; ++p) {
    const StreamShape& shape = args.phases[p].shape;
    const int end = first_slice(shape, blockIdx.x + 1);
    for (int i = first_slice(shape, blockIdx.x); i < end; ++i) {
      const int tile = i / shape.num_slices;
      const int column = (i - tile * shape.num_slices) * V::kSliceValues;
      barrier_wait(ring.empty(), ring.parity ^ 1);
      barrier_expect(ring.full(), kWeightBytes);
      if (p == 1) {
        copy_box_4d(ring.weights(), &maps.weights[p], ring.full(), column, tile * (kTileRows / 16));
      } else {
        copy_box(ring.weights(), &maps.weights[p], ring.full(), column, tile * kTileRows);
      }
      ring.advance();
    }
  }
}

// One thread: copies the slices of x that go with them, each phase's when there is one.
template <typename V>
__device__ void produce_x(const TailArgs<typename V::T>& args, const TailMaps& maps, Ring<V> ring) {
  for (int p = 0; p < args.num_phases; ++p) prefetch_map(&maps.x[p]);
  wait_for_previous_kernel();
  for (int p = 0; p < args.num_phases; ++p) {
    const StreamShape& shape = args.phases[p].shape;
    const int begin = first_slice(shape, blockIdx.x);
    const int end = first_slice(shape, blockIdx.x + 1);
    if (p > 0 && begin < end) {
      wait_for_blocks(args.counters + p - 1);
      fence_global_for_async();
    }
    for (int i = begin; i < end; ++i) {
      const int column = i % shape.num_slices * V::kSliceValues;
      barrier_wait(ring.empty(), ring.parity ^ 1);
      barrier_expect(ring.full(), V::kSpansOfX * V::kSpanBytesOfX);
#pragma unroll
      for (int span = 0; span < V::kSpansOfX; ++span) {
        copy_box(ring.x() + span * V::kSpanBytesOfX, &maps.x[p], ring.full(), column + span * 64,
                 0);
      }
      ring.advance();
    }
  }
}

}  // namespace
}  // namespace octavo::cuda
