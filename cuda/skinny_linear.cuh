// y = x W^T + b for up to 16 rows of x, at the speed of reading W.
//
// A warp multiplies 16 rows of W by all columns with m16n8k16. The order of the inner dimension is
// free as long as W and x agree, so each lane takes 8 consecutive values of a row in one 16-byte
// load and feeds two instructions with them: no shared memory, no shuffles. The warps of a block
// share the inner dimension in steps of 64, which gives each row contiguous pieces of 1 KiB, and
// sum their parts in warp order at the end: the result is the same each time.
// Every warp keeps kDepth steps (2 KiB each) in flight, across the tiles of its block, and before
// the previous kernel has finished: weights do not depend on it.
// Bound: memory, N * K * 2 bytes.
#pragma once

#include <cstdint>

#include "cuda/common/launch.cuh"
#include "cuda/common/mma.cuh"
#include "cuda/common/reduce.cuh"

namespace octavo::cuda {

template <typename T, typename Out>
struct SkinnyArgs {
  const T* weight;  // [out_features, in_features]
  const T* x;       // [num_rows, x_stride]
  const T* bias;    // [out_features] or null
  Out* out;         // [num_rows, out_stride]
  int64_t x_stride;
  int64_t out_stride;
  int num_rows;
  int in_features;  // multiple of 8
  int out_features;
};

// Tuning: column tiles of 8 rows of x, warps of a block, steps in flight.
template <int kColumnTilesV, int kWarpsV, int kDepthV>
struct SkinnyShape {
  static constexpr int kColumnTiles = kColumnTilesV;
  static constexpr int kWarps = kWarpsV;
  static constexpr int kDepth = kDepthV;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kBlocksPerSm = 512 / kThreads;
  static constexpr int kColumns = 8 * kColumnTiles;
};

inline constexpr int kSkinnyTileRows = 16;  // of W
inline constexpr int kSkinnyStep = 64;      // of the inner dimension

// A streaming read: the line is used once. Volatile, so that it stays before the wait.
__device__ inline uint4 load_weight_16(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

// What a lane holds of one step: halves of 32 values, rows g and g + 8.
struct SkinnyStepData {
  uint4 w[2][2];
};

template <typename T, typename Out, typename Shape>
struct SkinnyWarp {
  const SkinnyArgs<T, Out>& args;
  int lane;
  int warp;
  int steps;  // of a tile, a multiple of kDepth
  int num_tiles;
  const T* rows[2] = {};  // of the tile that is being loaded, at this lane's first value
  int next_tile = 0;
  int next_step = 0;
  float acc[Shape::kColumnTiles][4];

  __device__ int inner(int step) const {
    return (step * Shape::kWarps + warp) * kSkinnyStep + lane % 4 * 8;
  }

  // The loads that follow come from the start of `tile`.
  __device__ void point_at(int tile) {
    next_tile = tile;
    next_step = 0;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = min(tile * kSkinnyTileRows + r * 8 + lane / 4, args.out_features - 1);
      rows[r] = args.weight + static_cast<int64_t>(row) * args.in_features + inner(0);
    }
  }

  // Loads step next_step + j.
  __device__ void load(SkinnyStepData& data, int j) const {
    const int offset = (next_step + j) * Shape::kWarps * kSkinnyStep;
    const int limit = next_tile < num_tiles ? args.in_features - inner(0) : 0;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        data.w[h][r] = offset + h * 32 < limit ? load_weight_16(rows[r] + offset + h * 32)
                                               : make_uint4(0, 0, 0, 0);
      }
    }
  }

  // kDepth steps have been loaded.
  __device__ void advance() {
    next_step += Shape::kDepth;
    if (next_step == steps) point_at(next_tile + static_cast<int>(gridDim.x));
  }

  __device__ void multiply(const SkinnyStepData& data, int step) {
    const int k = inner(step);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint4 low = data.w[h][0];
      const uint4 high = data.w[h][1];
      const uint32_t a0[4] = {low.x, high.x, low.y, high.y};
      const uint32_t a1[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
      for (int c = 0; c < Shape::kColumnTiles; ++c) {
        const int column = c * 8 + lane / 4;
        uint4 x = make_uint4(0, 0, 0, 0);
        if (column < args.num_rows && k + h * 32 < args.in_features) {
          x = *reinterpret_cast<const uint4*>(args.x + column * args.x_stride + k + h * 32);
        }
        mma_16x8x16<T>(acc[c], a0, x.x, x.y);
        mma_16x8x16<T>(acc[c], a1, x.z, x.w);
      }
    }
  }

  __device__ void clear() {
#pragma unroll
    for (int c = 0; c < Shape::kColumnTiles; ++c) acc[c][0] = acc[c][1] = acc[c][2] = acc[c][3] = 0;
  }

  // Adds the warps' parts and writes the tile. `parts` [kWarps][kColumns][16].
  __device__ void finish_tile(int tile, float* parts) {
    float* mine = parts + warp * Shape::kColumns * kSkinnyTileRows;
#pragma unroll
    for (int c = 0; c < Shape::kColumnTiles; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = c * 8 + lane % 4 * 2 + i % 2;
        mine[column * kSkinnyTileRows + lane / 4 + i / 2 * 8] = acc[c][i];
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < args.num_rows * kSkinnyTileRows; i += Shape::kThreads) {
      float sum = parts[i];
#pragma unroll
      for (int w = 1; w < Shape::kWarps; ++w) {
        sum += parts[w * Shape::kColumns * kSkinnyTileRows + i];
      }
      const int row = tile * kSkinnyTileRows + i % kSkinnyTileRows;
      if (row >= args.out_features) continue;
      if (args.bias != nullptr) sum += to_float(args.bias[row]);
      args.out[i / kSkinnyTileRows * args.out_stride + row] = from_float<Out>(sum);
    }
    __syncthreads();
  }
};

template <typename T, typename Out, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocksPerSm)
    skinny_kernel(SkinnyArgs<T, Out> args) {
  __shared__ float parts[Shape::kWarps * Shape::kColumns * kSkinnyTileRows];
  constexpr int kDepth = Shape::kDepth;
  const int per_round = kSkinnyStep * Shape::kWarps * kDepth;
  const int num_tiles = (args.out_features + kSkinnyTileRows - 1) / kSkinnyTileRows;
  SkinnyWarp<T, Out, Shape> state{.args = args,
                                  .lane = static_cast<int>(threadIdx.x) % kWarpSize,
                                  .warp = static_cast<int>(threadIdx.x) / kWarpSize,
                                  .steps = (args.in_features + per_round - 1) / per_round * kDepth,
                                  .num_tiles = num_tiles};
  allow_next_kernel();
  SkinnyStepData ring[kDepth];
  state.point_at(blockIdx.x);
#pragma unroll
  for (int j = 0; j < kDepth; ++j) state.load(ring[j], j);
  state.advance();
  wait_for_previous_kernel();
  for (int tile = blockIdx.x; tile < num_tiles; tile += gridDim.x) {
    state.clear();
    for (int step = 0; step < state.steps; step += kDepth) {
#pragma unroll
      for (int j = 0; j < kDepth; ++j) {
        state.multiply(ring[j], step + j);
        state.load(ring[j], j);
      }
      state.advance();
    }
    state.finish_tile(tile, parts);
  }
}

template <typename Shape, typename T, typename Out>
void launch_skinny(const SkinnyArgs<T, Out>& args, int num_sms, cudaStream_t stream) {
  const int tiles = (args.out_features + kSkinnyTileRows - 1) / kSkinnyTileRows;
  const int blocks = num_sms * Shape::kBlocksPerSm;
  launch(skinny_kernel<T, Out, Shape>,
         {.grid = dim3(tiles < blocks ? tiles : blocks), .block = dim3(Shape::kThreads)}, stream,
         args);
}

}  // namespace octavo::cuda
