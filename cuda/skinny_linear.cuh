// y = x W^T + b for up to 16 rows of x, at the speed of reading W.
//
// One block an SM streams its tiles of W (16 or 32 rows) through a ring in shared memory: a warp
// feeds it with bulk copies of 1 KiB row pieces, eight warps multiply, each its own 64 of the 512
// values of a piece, and sum their parts in warp order at the end of a tile: the result is the same
// each time. The order of the inner dimension is free as long as W and x agree, so a lane takes 8
// consecutive values of a row at once and feeds two instructions with them.
// The ring starts to fill before the previous kernel has finished, since weights do not depend on
// it, and is half of an SM's shared memory, so that the next layer's block can do the same: memory
// stays busy from kernel to kernel.
// Bound: memory, N * K * 2 bytes.
#pragma once

#include <cstdint>

#include "cuda/common/barrier.cuh"
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

// Column tiles of 8 rows of x, row tiles of 16 rows of W, pieces in flight.
template <int kColumnTilesV, int kRowTilesV, int kStagesV>
struct SkinnyShape {
  static constexpr int kColumnTiles = kColumnTilesV;
  static constexpr int kRowTiles = kRowTilesV;
  static constexpr int kStages = kStagesV;
  static constexpr int kWarps = 8;  // that multiply
  static constexpr int kThreads = (kWarps + 1) * kWarpSize;
  static constexpr int kColumns = 8 * kColumnTiles;
  static constexpr int kRows = 16 * kRowTiles;

  static constexpr int kWarpValues = 64;
  static constexpr int kPieceValues = kWarps * kWarpValues;
  static constexpr int kPitchBytes = kPieceValues * 2 + 64;  // rows spread over the banks
  static constexpr int kStageBytes = 16 * kPitchBytes;
  static constexpr int kPartsAt = kStages * kStageBytes;
  static constexpr int kBarriersAt = kPartsAt + kWarps * kRows * kColumns * 4;
  static constexpr int kSharedBytes = kBarriersAt + 2 * kStages * 8;
};

// Counts stages around the ring.
template <int kStages>
struct RingCursor {
  int stage = 0;
  int parity = 0;
  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

template <typename T, typename Out, typename Shape>
struct SkinnyBlock {
  const SkinnyArgs<T, Out>& args;
  char* shared;
  int lane;
  int warp;

  __device__ int num_tiles() const { return (args.out_features + Shape::kRows - 1) / Shape::kRows; }
  __device__ int num_pieces() const {
    return (args.in_features + Shape::kPieceValues - 1) / Shape::kPieceValues;
  }
  __device__ uint32_t full(int stage) const {
    return shared_address(shared + Shape::kBarriersAt) + stage * 8;
  }
  __device__ uint32_t empty(int stage) const { return full(Shape::kStages + stage); }

  __device__ void init_barriers() const {
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      barrier_init(full(stage), 1);
      barrier_init(empty(stage), Shape::kWarps);
    }
    barrier_init_fence();
  }

  // One warp: copies every piece of the block's tiles, a row a lane.
  __device__ void produce() const {
    RingCursor<Shape::kStages> ring;
    for (int tile = blockIdx.x; tile < num_tiles(); tile += gridDim.x) {
      for (int piece = 0; piece < num_pieces(); ++piece) {
        const int k = piece * Shape::kPieceValues;
        const int bytes = min(Shape::kPieceValues, args.in_features - k) * 2;
        for (int sub = 0; sub < Shape::kRowTiles; ++sub) {
          barrier_wait(empty(ring.stage), ring.parity ^ 1);
          if (lane == 0) barrier_expect(full(ring.stage), 16 * bytes);
          __syncwarp();
          if (lane < 16) {
            const int row = min(tile * Shape::kRows + sub * 16 + lane, args.out_features - 1);
            copy_bulk(shared_address(shared) + ring.stage * Shape::kStageBytes +
                          lane * Shape::kPitchBytes,
                      args.weight + static_cast<int64_t>(row) * args.in_features + k, bytes,
                      full(ring.stage));
          }
          ring.advance();
        }
      }
    }
  }

  using Columns = uint4[Shape::kColumnTiles][2];
  using Sums = float[Shape::kRowTiles][Shape::kColumnTiles][4];

  __device__ int inner(int piece) const {
    return piece * Shape::kPieceValues + warp * Shape::kWarpValues + lane % 4 * 8;
  }

  __device__ void load_x(Columns& x, int piece) const {
    const int k = inner(piece);
#pragma unroll
    for (int c = 0; c < Shape::kColumnTiles; ++c) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int column = c * 8 + lane / 4;
        const bool valid = column < args.num_rows && k + h * 32 < args.in_features;
        x[c][h] =
            valid ? *reinterpret_cast<const uint4*>(args.x + column * args.x_stride + k + h * 32)
                  : make_uint4(0, 0, 0, 0);
      }
    }
  }

  __device__ void multiply(const Columns& x, int piece, int stage,
                           float (&sums)[Shape::kColumnTiles][4]) const {
    const char* row = shared + stage * Shape::kStageBytes + lane / 4 * Shape::kPitchBytes +
                      warp * Shape::kWarpValues * 2 + lane % 4 * 16;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      uint4 low = *reinterpret_cast<const uint4*>(row + h * 64);
      uint4 high = *reinterpret_cast<const uint4*>(row + 8 * Shape::kPitchBytes + h * 64);
      if (inner(piece) + h * 32 >= args.in_features) {  // not written, perhaps NaN
        low = make_uint4(0, 0, 0, 0);
        high = low;
      }
      const uint32_t a0[4] = {low.x, high.x, low.y, high.y};
      const uint32_t a1[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
      for (int c = 0; c < Shape::kColumnTiles; ++c) {
        mma_16x8x16<T>(sums[c], a0, x[c][h].x, x[c][h].y);
        mma_16x8x16<T>(sums[c], a1, x[c][h].z, x[c][h].w);
      }
    }
  }

  // Adds the warps' parts, [warp][column][row], and writes the tile.
  __device__ void finish_tile(int tile, const Sums& sums) const {
    constexpr int kConsumerThreads = Shape::kWarps * kWarpSize;
    auto* parts = reinterpret_cast<float*>(shared + Shape::kPartsAt);
    float* mine = parts + warp * Shape::kColumns * Shape::kRows;
#pragma unroll
    for (int r = 0; r < Shape::kRowTiles; ++r) {
#pragma unroll
      for (int c = 0; c < Shape::kColumnTiles; ++c) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int column = c * 8 + lane % 4 * 2 + i % 2;
          mine[column * Shape::kRows + r * 16 + lane / 4 + i / 2 * 8] = sums[r][c][i];
        }
      }
    }
    named_barrier(1, kConsumerThreads);
    for (int i = threadIdx.x; i < args.num_rows * Shape::kRows; i += kConsumerThreads) {
      float sum = parts[i];
#pragma unroll
      for (int w = 1; w < Shape::kWarps; ++w) sum += parts[w * Shape::kColumns * Shape::kRows + i];
      const int row = tile * Shape::kRows + i % Shape::kRows;
      if (row >= args.out_features) continue;
      if (args.bias != nullptr) sum += to_float(args.bias[row]);
      args.out[i / Shape::kRows * args.out_stride + row] = from_float<Out>(sum);
    }
    named_barrier(1, kConsumerThreads);
  }

  __device__ void consume() const {
    RingCursor<Shape::kStages> ring;
    Columns next;
    load_x(next, 0);
    for (int tile = blockIdx.x; tile < num_tiles(); tile += gridDim.x) {
      Sums sums = {};
      for (int piece = 0; piece < num_pieces(); ++piece) {
        Columns x;
#pragma unroll
        for (int c = 0; c < Shape::kColumnTiles; ++c) {
          x[c][0] = next[c][0];
          x[c][1] = next[c][1];
        }
        load_x(next, piece + 1 < num_pieces() ? piece + 1 : 0);
#pragma unroll
        for (int sub = 0; sub < Shape::kRowTiles; ++sub) {
          barrier_wait(full(ring.stage), ring.parity);
          multiply(x, piece, ring.stage, sums[sub]);
          __syncwarp();
          if (lane == 0) barrier_arrive(empty(ring.stage));
          ring.advance();
        }
      }
      finish_tile(tile, sums);
    }
  }
};

template <typename T, typename Out, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, 2) skinny_kernel(SkinnyArgs<T, Out> args) {
  extern __shared__ __align__(128) char shared[];
  const SkinnyBlock<T, Out, Shape> block{.args = args,
                                         .shared = shared,
                                         .lane = static_cast<int>(threadIdx.x) % kWarpSize,
                                         .warp = static_cast<int>(threadIdx.x) / kWarpSize};
  allow_next_kernel();
  if (threadIdx.x == 0) block.init_barriers();
  __syncthreads();
  if (block.warp == Shape::kWarps) {
    block.produce();
  } else {
    wait_for_previous_kernel();
    block.consume();
  }
}

template <typename Shape, typename T, typename Out>
void launch_skinny(const SkinnyArgs<T, Out>& args, int num_sms, cudaStream_t stream) {
  const int tiles = (args.out_features + Shape::kRows - 1) / Shape::kRows;
  launch(skinny_kernel<T, Out, Shape>,
         {.grid = dim3(tiles < num_sms ? tiles : num_sms),
          .block = dim3(Shape::kThreads),
          .shared_bytes = Shape::kSharedBytes},
         stream, args);
}

}  // namespace octavo::cuda
