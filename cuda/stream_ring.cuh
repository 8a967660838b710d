// The ring of shared memory that the warpgroups of stream_linear.cu are fed from.
// Included there only.
#pragma once

#include "cuda/common/barrier.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/wgmma.cuh"

namespace octavo::cuda {
namespace {

constexpr int kTileRows = 128;   // of W
constexpr int kSpanBytes = 128;  // of the swizzle: a row of a slice
constexpr int kAtomBytes = 8 * kSpanBytes;
constexpr int kWeightBytes = kTileRows * kSpanBytes;
constexpr int kConsumers = 256;
constexpr int kConsumerWarps = kConsumers / kWarpSize;
constexpr int kThreads = kConsumers + kWarpSize;
constexpr int kMaxStages = 12;              // that there are barriers for
constexpr int kMaxSharedBytes = 227 << 10;  // of a block

struct StreamShape {
  int num_tiles;
  int num_slices;  // of a tile
  int num_blocks;  // that have slices: each at least one
  int num_stages;
  int num_rows;  // of x
  int out_features;
};

// Types of activations, result and weights; columns: rows of x, padded.
template <typename TV, typename OutV, typename WV, int kColumnsV, bool kIsGatedV>
struct Variant {
  using T = TV;
  using Out = OutV;
  using W = WV;
  static constexpr int kColumns = kColumnsV;
  static constexpr bool kIsGated = kIsGatedV;
  static constexpr int kSliceValues = kSpanBytes / static_cast<int>(sizeof(W));
  static constexpr int kSpanBytesOfX = kColumns * kSpanBytes;  // 64 inner values
  static constexpr int kSpansOfX = kSliceValues * 2 / kSpanBytes;
  static constexpr int kStageBytes = kWeightBytes + kSpansOfX * kSpanBytesOfX;
};

template <typename T, typename Out>
struct StreamArgs {
  Out* out;  // [num_rows, out_stride]
  const T* bias;
  const float* scales;  // of the rows of an fp8 W
  float* partials;      // a tile's sums a block
  int32_t* flags;       // set where a block's partial sums are written; zero between launches
  int64_t out_stride;
  StreamShape shape;
};

__device__ inline int32_t load_acquire(const int32_t* p) {
  int32_t value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}
__device__ inline void store_release(int32_t* p, int32_t value) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}

// First slice of block `block`, counted over all tiles; blocks past num_blocks have none.
__device__ inline int first_slice(const StreamShape& shape, int block) {
  const int64_t total = int64_t{shape.num_tiles} * shape.num_slices;
  return static_cast<int>(total * min(block, shape.num_blocks) / shape.num_blocks);
}

template <typename V>
struct Ring {
  uint32_t shared;  // barriers first, then the stages
  int num_stages;
  int stage = 0;
  int parity = 0;

  __device__ uint32_t full() const { return shared + stage * 8; }
  __device__ uint32_t empty() const { return shared + (kMaxStages + stage) * 8; }
  __device__ uint32_t weights() const { return shared + kAtomBytes + stage * V::kStageBytes; }
  __device__ uint32_t x() const { return weights() + kWeightBytes; }
  __device__ void advance() {
    if (++stage == num_stages) {
      stage = 0;
      parity ^= 1;
    }
  }
  // `producers`: arrivals that make a stage full.
  __device__ void init_barriers(int producers) const {
    for (int i = 0; i < num_stages; ++i) {
      barrier_init(shared + i * 8, producers);
      barrier_init(shared + (kMaxStages + i) * 8, kConsumerWarps);
    }
    barrier_init_fence();
  }
};

struct StreamMaps {
  CUtensorMap weight;
  CUtensorMap x;
};

// One thread: copies the block's slices of W and of x.
template <typename V>
__device__ void produce(const StreamShape& shape, const StreamMaps& maps, Ring<V> ring) {
  const int begin = first_slice(shape, blockIdx.x);
  const int end = first_slice(shape, blockIdx.x + 1);
  const auto copy_weights = [&](int slice) {
    barrier_expect(ring.full(), V::kStageBytes);
    const int tile = slice / shape.num_slices;
    const int column = (slice - tile * shape.num_slices) * V::kSliceValues;
    if constexpr (V::kIsGated) {
      copy_box_4d(ring.weights(), &maps.weight, ring.full(), column, tile * (kTileRows / 16));
    } else {
      copy_box(ring.weights(), &maps.weight, ring.full(), column, tile * kTileRows);
    }
  };
  const auto copy_x = [&](int slice) {
    const int column = slice % shape.num_slices * V::kSliceValues;
#pragma unroll
    for (int span = 0; span < V::kSpansOfX; ++span) {
      copy_box(ring.x() + span * V::kSpanBytesOfX, &maps.x, ring.full(), column + span * 64, 0);
    }
  };
  const Ring<V> start = ring;
  const int ahead = min(end, begin + shape.num_stages);
  for (int i = begin; i < ahead; ++i) {
    copy_weights(i);
    ring.advance();
  }
  ring = start;
  wait_for_previous_kernel();
  for (int i = begin; i < ahead; ++i) {
    copy_x(i);
    ring.advance();
  }
  for (int i = ahead; i < end; ++i) {
    barrier_wait(ring.empty(), ring.parity ^ 1);
    copy_weights(i);
    copy_x(i);
    ring.advance();
  }
}

}  // namespace
}  // namespace octavo::cuda
