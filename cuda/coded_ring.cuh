// What coded_stream.cu and grouped_stream.cu share: the ring of shared memory that their warps are
// fed from, the exchange of partial sums between blocks, and the writing of results. Included there
// only.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/coded_units.cuh"
#include "cuda/common/barrier.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/wgmma.cuh"

namespace octavo::cuda {
namespace {

constexpr int kTileRows = 128;   // of W
constexpr int kSpanBytes = 128;  // of the swizzle: a row of a slice
constexpr int kAtomBytes = 8 * kSpanBytes;
constexpr int kFinishers = 256;  // threads that hold a tile's sums in the end, 64 rows a warpgroup
constexpr int kMaxStages = 8;    // more gain nothing
constexpr int kMaxSharedBytes = 227 << 10;  // of a block

// How a product's slices are shared out.
struct StreamShape {
  int num_tiles;
  int num_slices;  // of a tile
  int num_stages;
  int num_blocks;  // that share the slices, each has one at least
};

__device__ inline int32_t load_acquire(const int32_t* p) {
  int32_t value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}
__device__ inline void store_release(int32_t* p, int32_t value) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}

__device__ inline uint32_t load_shared(uint32_t address) {
  uint32_t word;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(address) : "memory");
  return word;
}
// Requires: a multiple of 16.
__device__ inline uint4 load_shared_16(uint32_t address) {
  uint4 words;
  asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "r"(address)
               : "memory");
  return words;
}

// The words of a unit that are lane `lane`'s of a warpgroup; see coded_units.h.
template <int kCount>
__device__ inline void load_lane_words(uint32_t unit, int lane, uint32_t (&words)[kCount]) {
#pragma unroll
  for (int run = 0; run < kCount / 4; ++run) {
    const uint4 four = load_shared_16(unit + (run * 128 + lane) * 16);
    words[4 * run] = four.x;
    words[4 * run + 1] = four.y;
    words[4 * run + 2] = four.z;
    words[4 * run + 3] = four.w;
  }
}

// Adds a warp's 16 rows of a unit, those of thread `thread` of 128, times up to 64 rows of x, by
// mma.sync: group by group, each scaled when it is summed. load_x(b, n, pair) gives the B operands
// of steps 2 `pair` and 2 `pair` + 1 for rows 8 n to 8 n + 7 of x. sums: [kSums / 4][4], fragments.
template <typename T, typename Units, int kSums, typename LoadX>
__device__ inline void add_unit(uint32_t unit, int thread, const LoadX& load_x,
                                float (&sums)[kSums]) {
  using Terms = typename Units::template Terms<T>;
  constexpr int kPairsOfGroup = kUnitDepth / 32 / Units::kGroups;
  const int row = thread / kWarpSize * 16 + thread % kWarpSize / 4;
  const uint32_t terms = unit + Units::kCodeBytes + row * 4;
  uint32_t words[Units::kLaneWords];
  load_lane_words(unit, thread, words);
#pragma unroll
  for (int group = 0; group < Units::kGroups; ++group) {
    const Terms first(load_shared(terms + group * kTermBytes));
    const Terms second(load_shared(terms + group * kTermBytes + 32));
    float products[kSums] = {};
#pragma unroll
    for (int p = 0; p < kPairsOfGroup; ++p) {
      const int pair = group * kPairsOfGroup + p;
      const uint32_t* steps = words + 2 * pair * Units::kStepWords;
      uint32_t a[2][4];
      Units::template operand<T>(steps, first, second, a[0]);
      Units::template operand<T>(steps + Units::kStepWords, first, second, a[1]);
#pragma unroll
      for (int n = 0; n < kSums / 4; ++n) {
        uint32_t b[4];
        load_x(b, n, pair);
        auto& sum = reinterpret_cast<float(&)[4]>(products[n * 4]);
        mma_16x8x16<T>(sum, a[0], b[0], b[1]);
        mma_16x8x16<T>(sum, a[1], b[2], b[3]);
      }
    }
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      sums[i] = fmaf(products[i], i / 2 % 2 == 0 ? first.scale : second.scale, sums[i]);
    }
  }
}

// First slice of block `block`, counted over all tiles.
__device__ inline int first_slice(const StreamShape& shape, int block) {
  const int64_t total = int64_t{shape.num_tiles} * shape.num_slices;
  return static_cast<int>(total * block / shape.num_blocks);
}

// V has kStageBytes, kWeightBytes (of them, ahead of x) and kConsumerWarps.
template <typename V>
struct Ring {
  uint32_t shared;  // barriers first, then the stages
  int num_stages;
  int stage = 0;
  int parity = 0;

  __device__ uint32_t full() const { return shared + stage * 8; }
  __device__ uint32_t empty() const { return shared + (kMaxStages + stage) * 8; }
  __device__ uint32_t weights() const { return shared + kAtomBytes + stage * V::kStageBytes; }
  __device__ uint32_t x() const { return weights() + V::kWeightBytes; }
  __device__ void advance() {
    if (++stage == num_stages) {
      stage = 0;
      parity ^= 1;
    }
  }
  __device__ void init_barriers() const {
    for (int i = 0; i < num_stages; ++i) {
      barrier_init(shared + i * 8, 1);
      barrier_init(shared + (kMaxStages + i) * 8, V::kConsumerWarps);
    }
    barrier_init_fence();
  }
};

// The sums of a tile whose slices several blocks have. kSums: of a thread, a multiple of 4.
template <int kSums>
struct Partials {
  float* partials;  // a tile's sums a block
  int32_t* flags;   // set where a block's sums are written; zero between launches
  int thread;       // of kFinishers

  __device__ float4* of(int block) const {
    return reinterpret_cast<float4*>(partials) + block * (kSums / 4) * kFinishers + thread;
  }

  __device__ void give(const float (&sums)[kSums]) const {
    float4* partial = of(blockIdx.x);
#pragma unroll
    for (int i = 0; i < kSums; i += 4) {
      partial[i / 4 * kFinishers] = make_float4(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]);
    }
    __threadfence();
    named_barrier(1, kFinishers);
    if (thread == 0) store_release(flags + blockIdx.x, 1);
  }

  // Adds the sums of the blocks that have the tile's other slices, up to `tile_end`.
  __device__ void take(const StreamShape& shape, int tile_end, float (&sums)[kSums]) const {
    const int first = blockIdx.x + 1;
    int last = first;
    while (last < shape.num_blocks && first_slice(shape, last) < tile_end) ++last;
    for (int block = first + thread; block < last; block += kFinishers) {
      while (load_acquire(flags + block) == 0) {
      }
      flags[block] = 0;
    }
    named_barrier(1, kFinishers);
#pragma unroll(kSums <= 8 ? 4 : 1)
    for (int block = first; block < last; ++block) {
      const float4* partial = of(block);
#pragma unroll
      for (int i = 0; i < kSums; i += 4) {
        const float4 v = __ldcg(partial + i / 4 * kFinishers);
        sums[i] += v.x;
        sums[i + 1] += v.y;
        sums[i + 2] += v.z;
        sums[i + 3] += v.w;
      }
    }
  }
};

// Where results go: [num_rows, stride].
template <typename T>
struct Target {
  T* out;
  int64_t stride;
  int num_rows;  // of x
  int out_features;

  // Writes features [first, first + 8) of rows [row, row + 8): lane 4 g + q holds v, rows 2 q and
  // 2 q + 1 of feature g. What lies outside is left out.
  __device__ void write_eight(int first, int row, float2 v) const {
    const int lane = threadIdx.x % kWarpSize;
    const uint32_t pair = transpose_8x8(pack2<T>(v.x, v.y));
    const int feature = first + lane % 4 * 2;
    row += lane / 4;
    if (feature >= out_features || row >= num_rows) return;
    *reinterpret_cast<uint32_t*>(out + row * stride + feature) = pair;
  }
};

// Calls f with the number of columns that the kernels are made for, `rows` rounded up.
template <typename F>
void dispatch_columns(int rows, F&& f) {
  if (rows <= 8) {
    f(std::integral_constant<int, 8>{});
  } else if (rows <= 16) {
    f(std::integral_constant<int, 16>{});
  } else if (rows <= 32) {
    f(std::integral_constant<int, 32>{});
  } else {
    f(std::integral_constant<int, 64>{});
  }
}

// As many stages as there is room for beside `other_bytes`, alignment and barriers.
template <typename V>
constexpr int stages_beside(int other_bytes) {
  return std::min(kMaxStages, (kMaxSharedBytes - 2 * kAtomBytes - other_bytes) / V::kStageBytes);
}
template <typename V>
constexpr size_t shared_bytes_of(int num_stages, int other_bytes) {
  return static_cast<size_t>(2 * kAtomBytes + num_stages * V::kStageBytes + other_bytes);
}

// silu(gate) * up, both rounded as if they were stored.
template <typename T>
__device__ inline float gated(float gate, float up) {
  gate = round_to<T>(gate);
  return __fdividef(gate, 1.0f + __expf(-gate)) * round_to<T>(up);
}

}  // namespace
}  // namespace octavo::cuda
