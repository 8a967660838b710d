// The sums of tiles of W times x, by two warpgroups with 64 rows of W each, and their exchange
// where several blocks share a tile. For stream_linear.cu; included there only.
#pragma once

#include "cuda/stream_ring.cuh"

namespace octavo::cuda {
namespace {

template <typename V>
struct TileSums {
  using T = typename V::T;
  static constexpr bool kIsFp8 = sizeof(typename V::W) == 1;
  static constexpr int kSums = V::kColumns / 2;

  Ring<V> ring;
  int thread;
  float* partials;  // see StreamArgs
  int32_t* flags;
  float sums[kSums];

  __device__ uint64_t x_operand(int step) const {
    return wgmma_operand(ring.x() + step / 4 * V::kSpanBytesOfX + step % 4 * 32, 16, kAtomBytes);
  }

  __device__ void multiply(bool is_first) {
    const uint32_t rows = ring.weights() + thread / 128 * (64 * kSpanBytes);
    pin_registers(sums);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < V::kSliceValues / 16; ++step) {
      wgmma_shared<T>(sums, wgmma_operand(rows + step * 32, 16, kAtomBytes), x_operand(step),
                      !is_first || step > 0);
    }
    wgmma_commit();
  }

  // Eight steps of 16 inner values; a lane's four bytes of a matrix are those of one operand row.
  __device__ void multiply_fp8(bool is_first) {
    const int lane = thread % kWarpSize;
    const int row = lane / 8 % 2 * 8 + lane % 8;
    const uint32_t rows = ring.weights() + (thread / kWarpSize * 16 + row) * kSpanBytes;
    uint32_t a[8][4];
#pragma unroll
    for (int step = 0; step < 8; step += 2) {
      uint32_t quads[4];  // rows 0 - 7 and 8 - 15 of this step, then of the next
      ldmatrix_x4(quads, rows + (((step + lane / 16) ^ (lane % 8)) * 16));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint2 low = fp8x4_to_words<T>(quads[2 * i]);
        const uint2 high = fp8x4_to_words<T>(quads[2 * i + 1]);
        a[step + i][0] = low.x;
        a[step + i][1] = high.x;
        a[step + i][2] = low.y;
        a[step + i][3] = high.y;
      }
    }
    pin_registers(sums);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 8; ++step) {
      wgmma_mixed<T>(sums, a[step], x_operand(step), !is_first || step > 0);
    }
    wgmma_commit();
  }

  // The products of the next `count` slices. With few columns the products of a stage are soon
  // done, and it is given back at once; else when those of the stage after it have been issued.
  __device__ void sum_slices(int count) {
    constexpr int kPending = kIsFp8 || V::kColumns <= 16 ? 0 : 1;
    uint32_t previous = 0;
    for (int i = 0; i < count; ++i) {
      barrier_wait(ring.full(), ring.parity);
      if constexpr (kIsFp8) {
        multiply_fp8(i == 0);
      } else {
        multiply(i == 0);
      }
      wgmma_wait<kPending>();
      if (kPending == 0) release(ring.empty());
      if (kPending == 1 && i > 0) release(previous);
      previous = ring.empty();
      ring.advance();
    }
    wgmma_wait<0>();
    pin_registers(sums);
    if (kPending == 1) release(previous);
  }

  __device__ void release(uint32_t barrier) const {
    if (thread % kWarpSize == 0) barrier_arrive(barrier);
  }

  __device__ float4* partial_of(int block) const {
    return reinterpret_cast<float4*>(partials) + block * (kSums / 4) * kConsumers + thread;
  }

  __device__ void give_partial() const {
    float4* partial = partial_of(blockIdx.x);
#pragma unroll
    for (int i = 0; i < kSums; i += 4) {
      partial[i / 4 * kConsumers] = make_float4(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]);
    }
    __threadfence();
    named_barrier(1, kConsumers);
    if (thread == 0) store_release(flags + blockIdx.x, 1);
  }

  // Adds the sums of the blocks that have the tile's other slices.
  __device__ void take_partials(const StreamShape& shape, int tile_end) {
    const int first = blockIdx.x + 1;
    int last = first;
    while (last < shape.num_blocks && first_slice(shape, last) < tile_end) ++last;
    for (int block = first + thread; block < last; block += kConsumers) {
      while (load_acquire(flags + block) == 0) {
      }
      flags[block] = 0;
    }
    named_barrier(1, kConsumers);
    for (int block = first; block < last; block += kTogether) add_partials(block, last);
  }

  // Those of at most kTogether blocks, asked for at the same time, in their order.
  static constexpr int kTogether = kSums <= 32 ? 4 : 2;
  __device__ void add_partials(int first, int last) {
#pragma unroll
    for (int i = 0; i < kSums; i += 4) {
      float4 v[kTogether];
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        v[j] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (first + j < last) v[j] = __ldcg(partial_of(first + j) + i / 4 * kConsumers);
      }
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        sums[i] += v[j].x;
        sums[i + 1] += v[j].y;
        sums[i + 2] += v[j].z;
        sums[i + 3] += v[j].w;
      }
    }
  }
};

// What turns a sum of a row of W into a result.
struct RowTerms {
  float scale = 1.0f;
  float bias = 0.0f;
  __device__ float apply(float sum) const { return fmaf(sum, scale, bias); }
};

// Those of row `row`. `scales` and `bias` may be null.
template <typename T>
__device__ RowTerms terms_of(const float* scales, const T* bias, int row, int out_features) {
  RowTerms terms;
  if (row >= out_features) return terms;
  if (scales != nullptr) terms.scale = scales[row];
  if (bias != nullptr) terms.bias = to_float(bias[row]);
  return terms;
}

}  // namespace
}  // namespace octavo::cuda
