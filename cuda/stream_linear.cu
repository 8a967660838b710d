// y = x W^T + b for up to 128 rows of x, at the speed of reading W.
//
// W is the wide operand of wgmma: tiles of 128 rows of W times all rows of x, padded to 8 .. 128
// columns. The tiles' slices of 64 inner values, one after the other, are divided evenly among the
// SMs, so that every SM reads the same number of bytes; a tile may so belong to several blocks. The
// block that has its first slice collects the sums of the others in their order: the result does
// not depend on timing. One warp feeds a ring in shared memory through the bulk tensor copy engine,
// two warpgroups multiply, 64 rows of W each.
// The ring starts to fill before the previous kernel has finished, since weights do not depend on
// it, and takes all of an SM's shared memory: the block of the next linear starts to fill its own
// as soon as this one has left the SM, and holds enough to keep memory busy while the short kernels
// between the two run.
// Gated: gate and up rows take turns of eight in a tile, so that a thread holds both of a pair.
// Bound: memory, N * K * 2 bytes.
#include <algorithm>

#include "cuda/common/barrier.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/tensor_map.h"
#include "cuda/common/wgmma.cuh"
#include "cuda/stream_linear.h"

namespace octavo::cuda {
namespace {

constexpr int kTileRows = 128;  // of W
constexpr int kSliceValues = 64;
constexpr int kSpanBytes = 128;  // of the swizzle: a row of a slice
constexpr int kAtomBytes = 8 * kSpanBytes;
constexpr int kWeightBytes = kTileRows * kSpanBytes;
constexpr int kConsumers = 256;
constexpr int kConsumerWarps = kConsumers / kWarpSize;
constexpr int kThreads = kConsumers + kWarpSize;
constexpr int kMaxStages = 8;               // more gain nothing
constexpr int kMaxSharedBytes = 227 << 10;  // of a block

struct StreamShape {
  int num_tiles;
  int num_slices;  // of a tile
  int num_stages;
  int num_rows;  // of x
  int out_features;
};

template <typename T, typename Out>
struct StreamArgs {
  Out* out;  // [num_rows, out_stride]
  const T* bias;
  float* partials;  // a tile's sums a block
  int32_t* flags;   // set where a block's partial sums are written; zero between launches
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

// First slice of block `block`, counted over all tiles.
__device__ inline int first_slice(const StreamShape& shape, int block) {
  const int64_t total = int64_t{shape.num_tiles} * shape.num_slices;
  return static_cast<int>(total * block / gridDim.x);
}

template <int kColumns>
struct Ring {
  static constexpr int kStageBytes = kWeightBytes + kColumns * kSpanBytes;
  uint32_t shared;  // barriers first, then the stages
  int num_stages;
  int stage = 0;
  int parity = 0;

  __device__ uint32_t full() const { return shared + stage * 8; }
  __device__ uint32_t empty() const { return shared + (kMaxStages + stage) * 8; }
  __device__ uint32_t weights() const { return shared + kAtomBytes + stage * kStageBytes; }
  __device__ uint32_t x() const { return weights() + kWeightBytes; }
  __device__ void advance() {
    if (++stage == num_stages) {
      stage = 0;
      parity ^= 1;
    }
  }
  __device__ void init_barriers() const {
    for (int i = 0; i < num_stages; ++i) {
      barrier_init(shared + i * 8, 1);
      barrier_init(shared + (kMaxStages + i) * 8, kConsumerWarps);
    }
    barrier_init_fence();
  }
};

// One thread: copies the block's slices of W and of x.
template <int kColumns, bool kIsGated>
__device__ void produce(const StreamShape& shape, const CUtensorMap* weight_map,
                        const CUtensorMap* x_map, Ring<kColumns> ring) {
  const int begin = first_slice(shape, blockIdx.x);
  const int end = first_slice(shape, blockIdx.x + 1);
  const auto copy_weights = [&](int slice) {
    barrier_expect(ring.full(), Ring<kColumns>::kStageBytes);
    const int tile = slice / shape.num_slices;
    const int column = (slice - tile * shape.num_slices) * kSliceValues;
    if constexpr (kIsGated) {
      copy_box_4d(ring.weights(), weight_map, ring.full(), column, tile * (kTileRows / 16));
    } else {
      copy_box(ring.weights(), weight_map, ring.full(), column, tile * kTileRows);
    }
  };
  const auto copy_x = [&](int slice) {
    copy_box(ring.x(), x_map, ring.full(), slice % shape.num_slices * kSliceValues, 0);
  };
  const Ring<kColumns> start = ring;
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

// Two warpgroups, 64 rows of a tile each.
template <typename T, typename Out, int kColumns, bool kIsGated>
struct Consumer {
  static constexpr int kSums = kColumns / 2;

  const StreamArgs<T, Out>& args;
  Ring<kColumns> ring;
  int thread;
  float sums[kSums];

  __device__ void multiply(bool is_first) {
    const uint32_t rows = ring.weights() + thread / 128 * (64 * kSpanBytes);
    pin_registers(sums);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kSliceValues / 16; ++k) {
      wgmma_shared<T>(sums, wgmma_operand(rows + k * 32, 16, kAtomBytes),
                      wgmma_operand(ring.x() + k * 32, 16, kAtomBytes), !is_first || k > 0);
    }
    wgmma_commit();
  }

  // The products of the next `count` slices. With few columns the products of a stage are soon
  // done, and it is given back at once; else when those of the stage after it have been issued.
  __device__ void sum_slices(int count) {
    constexpr int kPending = kColumns <= 16 ? 0 : 1;
    uint32_t previous = 0;
    for (int i = 0; i < count; ++i) {
      barrier_wait(ring.full(), ring.parity);
      multiply(i == 0);
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
    return reinterpret_cast<float4*>(args.partials) + block * (kSums / 4) * kConsumers + thread;
  }

  __device__ void give_partial() const {
    float4* partial = partial_of(blockIdx.x);
#pragma unroll
    for (int i = 0; i < kSums; i += 4) {
      partial[i / 4 * kConsumers] = make_float4(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]);
    }
    __threadfence();
    named_barrier(1, kConsumers);
    if (thread == 0) store_release(args.flags + blockIdx.x, 1);
  }

  // Adds the sums of the blocks that have the tile's other slices.
  __device__ void take_partials(int tile_end) {
    const int first = blockIdx.x + 1;
    int last = first;
    while (last < gridDim.x && first_slice(args.shape, last) < tile_end) ++last;
    for (int block = first + thread; block < last; block += kConsumers) {
      while (load_acquire(args.flags + block) == 0) {
      }
      args.flags[block] = 0;
    }
    named_barrier(1, kConsumers);
#pragma unroll(kSums <= 8 ? 4 : 1)
    for (int block = first; block < last; ++block) {
      const float4* partial = partial_of(block);
#pragma unroll
      for (int i = 0; i < kSums; i += 4) {
        const float4 v = __ldcg(partial + i / 4 * kConsumers);
        sums[i] += v.x;
        sums[i + 1] += v.y;
        sums[i + 2] += v.z;
        sums[i + 3] += v.w;
      }
    }
  }

  __device__ float bias_at(int row, int out_features) const {
    return args.bias != nullptr && row < out_features ? to_float(args.bias[row]) : 0.0f;
  }

  // Writes rows [row, row + 8) of the tile's result: lane 4 g + q holds v, columns 2 q and 2 q + 1
  // of row g, where `first` is the first of eight columns.
  __device__ void write_eight(int row, int first, float v0, float v1, int out_features) const {
    const int lane = thread % kWarpSize;
    if constexpr (sizeof(Out) == 4) {
      const int r = row + lane / 4;
      const int column = first + lane % 4 * 2;
      if (r >= out_features) return;
      Out* out = args.out + column * args.out_stride + r;
      if (column < args.shape.num_rows) out[0] = v0;
      if (column + 1 < args.shape.num_rows) out[args.out_stride] = v1;
    } else {
      const uint32_t pair = transpose_8x8(pack2<T>(v0, v1));
      const int r = row + lane % 4 * 2;
      const int column = first + lane / 4;
      if (r >= out_features || column >= args.shape.num_rows) return;
      *reinterpret_cast<uint32_t*>(args.out + column * args.out_stride + r) = pair;
    }
  }

  __device__ void write_tile(int tile) const {
    const int group = thread / kWarpSize;  // of 16 rows
    const int lane_row = thread % kWarpSize / 4;
    if constexpr (kIsGated) {
      const int out_features = args.shape.out_features / 2;
      const int row = tile * (kTileRows / 2) + group * 8;
      const float gate_bias = bias_at(row + lane_row, out_features);
      const float up_bias = row + lane_row < out_features
                                ? bias_at(out_features + row + lane_row, 2 * out_features)
                                : 0.0f;
#pragma unroll
      for (int i = 0; i < kSums; i += 4) {
        float v[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float gate = round_to<T>(sums[i + j] + gate_bias);  // as if it had been stored
          const float up = round_to<T>(sums[i + 2 + j] + up_bias);
          v[j] = __fdividef(gate, 1.0f + __expf(-gate)) * up;
        }
        write_eight(row, i * 2, v[0], v[1], out_features);
      }
    } else {
      const int row = tile * kTileRows + group * 16;
      const float bias[2] = {bias_at(row + lane_row, args.shape.out_features),
                             bias_at(row + 8 + lane_row, args.shape.out_features)};
#pragma unroll
      for (int i = 0; i < kSums; i += 2) {
        const int half = i / 2 % 2;
        write_eight(row + half * 8, i / 4 * 8, sums[i] + bias[half], sums[i + 1] + bias[half],
                    args.shape.out_features);
      }
    }
  }

  __device__ void run() {
    wait_for_previous_kernel();
    const StreamShape& shape = args.shape;
    const int end = first_slice(shape, blockIdx.x + 1);
    int slice = first_slice(shape, blockIdx.x);
    while (slice < end) {
      const int tile = slice / shape.num_slices;
      const int tile_end = (tile + 1) * shape.num_slices;
      const int stop = min(end, tile_end);
      sum_slices(stop - slice);
      if (slice > tile * shape.num_slices) {
        give_partial();
      } else {
        if (stop < tile_end) take_partials(tile_end);
        write_tile(tile);
      }
      slice = stop;
    }
  }
};

template <typename T, typename Out, int kColumns, bool kIsGated>
__global__ void __launch_bounds__(kThreads, 1)
    stream_kernel(const StreamArgs<T, Out> args, const __grid_constant__ CUtensorMap weight_map,
                  const __grid_constant__ CUtensorMap x_map) {
  extern __shared__ char unaligned[];
  const uint32_t base = (shared_address(unaligned) + kAtomBytes - 1) / kAtomBytes * kAtomBytes;
  const Ring<kColumns> ring{.shared = base, .num_stages = args.shape.num_stages};
  allow_next_kernel();
  if (threadIdx.x == 0) ring.init_barriers();
  __syncthreads();
  if (threadIdx.x == kConsumers) {
    produce<kColumns, kIsGated>(args.shape, &weight_map, &x_map, ring);
  } else if (threadIdx.x < kConsumers) {
    Consumer<T, Out, kColumns, kIsGated> consumer{
        .args = args, .ring = ring, .thread = static_cast<int>(threadIdx.x)};
    consumer.run();
  }
}

template <int kColumns>
int shared_bytes(int stages) {
  return 2 * kAtomBytes + stages * Ring<kColumns>::kStageBytes;  // alignment, barriers, stages
}

struct StreamMaps {
  const CUtensorMap& weight;
  const CUtensorMap& x;
};

template <int kColumns, bool kIsGated, typename T, typename Out>
void launch_stream(const DeviceContext& context, StreamArgs<T, Out> args, const StreamMaps& maps) {
  while (args.shape.num_stages > 1 &&
         shared_bytes<kColumns>(args.shape.num_stages) > kMaxSharedBytes) {
    --args.shape.num_stages;
  }
  const int slices = args.shape.num_tiles * args.shape.num_slices;
  launch(stream_kernel<T, Out, kColumns, kIsGated>,
         {.grid = dim3(std::min(slices, context.num_sms)),
          .block = dim3(kThreads),
          .shared_bytes = static_cast<size_t>(shared_bytes<kColumns>(args.shape.num_stages))},
         context.stream, args, maps.weight, maps.x);
}

// Calls f with the number of columns, a power of two, that holds `rows` rows of x.
template <typename F>
void dispatch_columns(int64_t rows, F&& f) {
  if (rows <= 8) return f(std::integral_constant<int, 8>{});
  if (rows <= 16) return f(std::integral_constant<int, 16>{});
  if (rows <= 32) return f(std::integral_constant<int, 32>{});
  if (rows <= 64) return f(std::integral_constant<int, 64>{});
  f(std::integral_constant<int, 128>{});
}

StreamShape make_shape(TensorView weight, TensorView x) {
  return {.num_tiles = static_cast<int>((weight.rows() + kTileRows - 1) / kTileRows),
          .num_slices = static_cast<int>((weight.cols() + kSliceValues - 1) / kSliceValues),
          .num_stages = kMaxStages,
          .num_rows = static_cast<int>(x.rows()),
          .out_features = static_cast<int>(weight.rows())};
}

}  // namespace

StreamLinear::StreamLinear(const DeviceContext& context)
    : partials_(context.num_sms * kTileRows * kMaxRows * sizeof(float)),
      flags_(context.num_sms * sizeof(int32_t)) {
  check_cuda(cudaMemsetAsync(flags_.data(), 0, flags_.size_bytes(), context.stream));
}

bool StreamLinear::accepts(TensorView x) {
  return x.rows() <= kMaxRows && x.cols() % 8 == 0 && x.row_stride % 8 == 0 &&
         reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
}

const CUtensorMap& StreamLinear::find_map(TensorView matrix, int64_t box_rows, bool is_gated) {
  const MapKey key{matrix.data,       matrix.rows(), matrix.cols(),
                   matrix.row_stride, box_rows,      is_gated};
  const auto found = maps_.find(key);
  if (found != maps_.end()) return found->second;
  TensorBox tensor{.data = matrix.data, .dtype = matrix.dtype};
  if (is_gated) {
    const int64_t half = matrix.rows() / 2;
    tensor.rank = 4;
    tensor.sizes = {matrix.cols(), 8, 2, half / 8};
    tensor.strides = {1, matrix.row_stride, half * matrix.row_stride, 8 * matrix.row_stride};
    tensor.box = {kSliceValues, 8, 2, box_rows / 16};
  } else {
    tensor.sizes = {matrix.cols(), matrix.rows()};
    tensor.strides = {1, matrix.row_stride};
    tensor.box = {kSliceValues, box_rows};
  }
  const auto map = make_tensor_map(tensor);
  check(map.has_value(), "stream_linear: tensor map");
  return maps_.emplace(key, *map).first->second;
}

void StreamLinear::run(const DeviceContext& context, TensorView weight, const void* bias,
                       TensorView x, TensorView out) {
  check(accepts(x) && weight.cols() == x.cols() && weight.rows() == out.cols() &&
            out.cols() % 2 == 0 && out.row_stride % 2 == 0,
        "stream_linear: shape");
  if (x.rows() == 0) return;
  dispatch_columns(x.rows(), [&](auto columns) {
    const StreamMaps maps{find_map(weight, kTileRows, false), find_map(x, columns, false)};
    dispatch_half(x.dtype, [&]<typename T>(T) {
      const auto launch_to = [&]<typename Out>(Out* target) {
        const StreamArgs<T, Out> args{target,
                                      static_cast<const T*>(bias),
                                      partials_.as<float>(),
                                      flags_.as<int32_t>(),
                                      out.row_stride,
                                      make_shape(weight, x)};
        launch_stream<columns, false>(context, args, maps);
      };
      if (out.dtype == DType::kFloat32) {
        launch_to(out.as<float>());
      } else {
        launch_to(out.as<T>());
      }
    });
  });
}

void StreamLinear::run_gated(const DeviceContext& context, TensorView weight, const void* bias,
                             TensorView x, TensorView out) {
  check(accepts(x) && weight.cols() == x.cols() && weight.rows() == 2 * out.cols() &&
            out.cols() % 8 == 0 && out.row_stride % 2 == 0,
        "stream_linear: gated shape");
  if (x.rows() == 0) return;
  dispatch_columns(x.rows(), [&](auto columns) {
    const StreamMaps maps{find_map(weight, kTileRows, true), find_map(x, columns, false)};
    dispatch_half(x.dtype, [&]<typename T>(T) {
      const StreamArgs<T, T> args{out.as<T>(),           static_cast<const T*>(bias),
                                  partials_.as<float>(), flags_.as<int32_t>(),
                                  out.row_stride,        make_shape(weight, x)};
      launch_stream<columns, true>(context, args, maps);
    });
  });
}

}  // namespace octavo::cuda
