// y = x W^T + b for up to 64 rows of x, at the speed of reading W.
//
// W is the wide operand of wgmma: tiles of 128 rows of W times all rows of x, padded to 8 .. 64
// columns. The tiles' slices of 128 bytes a row, one after the other, are divided evenly among the
// SMs, so that every SM reads the same number of bytes; a tile may so belong to several blocks. The
// block that has its first slice collects the sums of the others in their order: the result does
// not depend on timing. One warp feeds a ring in shared memory through the bulk tensor copy engine,
// two warpgroups multiply, 64 rows of W each.
// The ring starts to fill before the previous kernel has finished, since weights do not depend on
// it. It takes most of an SM's shared memory: steps were slower with room for two blocks, and with
// the next linear's weights fetched into the L2 cache (bench/results/2026-11-22-cuda-kernels.md).
// fp8 weights are widened on their way from shared memory to the matrix units, where they are the
// operand in registers; their scales, a row each, apply to the sums.
// Gated: gate and up rows take turns of eight in a tile, so that a thread holds both of a pair.
// Bound: memory, N * K * 2 bytes.
#include <algorithm>

#include "cuda/common/tensor_map.h"
#include "cuda/stream_linear.h"
#include "cuda/stream_ring.cuh"

namespace octavo::cuda {
namespace {

// Two warpgroups, 64 rows of a tile each.
template <typename V>
struct Consumer {
  using T = typename V::T;
  using Out = typename V::Out;
  static constexpr bool kIsFp8 = sizeof(typename V::W) == 1;
  static constexpr int kSums = V::kColumns / 2;

  const StreamArgs<T, Out>& args;
  Ring<V> ring;
  int thread;
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

  // What turns a sum of row `row` into a result.
  struct RowTerms {
    float scale = 1.0f;
    float bias = 0.0f;
    __device__ float apply(float sum) const { return fmaf(sum, scale, bias); }
  };
  __device__ RowTerms terms_of(int row) const {
    RowTerms terms;
    if (row >= args.shape.out_features) return terms;
    if (kIsFp8) terms.scale = args.scales[row];
    if (args.bias != nullptr) terms.bias = to_float(args.bias[row]);
    return terms;
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
    if constexpr (V::kIsGated) {
      const int out_features = args.shape.out_features / 2;
      const int row = tile * (kTileRows / 2) + group * 8;
      const RowTerms gate_terms = terms_of(row + lane_row);
      const RowTerms up_terms = terms_of(out_features + row + lane_row);
#pragma unroll
      for (int i = 0; i < kSums; i += 4) {
        float v[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float gate = round_to<T>(gate_terms.apply(sums[i + j]));  // as if it were stored
          const float up = round_to<T>(up_terms.apply(sums[i + 2 + j]));
          v[j] = __fdividef(gate, 1.0f + __expf(-gate)) * up;
        }
        write_eight(row, i * 2, v[0], v[1], out_features);
      }
    } else {
      const int row = tile * kTileRows + group * 16;
      const RowTerms terms[2] = {terms_of(row + lane_row), terms_of(row + 8 + lane_row)};
#pragma unroll
      for (int i = 0; i < kSums; i += 2) {
        const int half = i / 2 % 2;
        write_eight(row + half * 8, i / 4 * 8, terms[half].apply(sums[i]),
                    terms[half].apply(sums[i + 1]), args.shape.out_features);
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

template <typename V>
__global__ void __launch_bounds__(kThreads, 1)
    stream_kernel(const StreamArgs<typename V::T, typename V::Out> args,
                  const __grid_constant__ StreamMaps maps) {
  extern __shared__ char unaligned[];
  const uint32_t base = (shared_address(unaligned) + kAtomBytes - 1) / kAtomBytes * kAtomBytes;
  const Ring<V> ring{.shared = base, .num_stages = args.shape.num_stages};
  allow_next_kernel();
  if (threadIdx.x == 0) ring.init_barriers();
  __syncthreads();
  if (threadIdx.x == kConsumers) {
    produce(args.shape, maps, ring);
  } else if (threadIdx.x < kConsumers) {
    Consumer<V> consumer{.args = args, .ring = ring, .thread = static_cast<int>(threadIdx.x)};
    consumer.run();
  }
}

template <typename V, typename Args>
void launch_stream(const DeviceContext& context, Args args, const StreamMaps& maps) {
  constexpr int kOverheadBytes = 2 * kAtomBytes;  // alignment and barriers
  args.shape.num_stages = std::min(kMaxStages, (kMaxSharedBytes - kOverheadBytes) / V::kStageBytes);
  const int slices = args.shape.num_tiles * args.shape.num_slices;
  launch(stream_kernel<V>,
         {.grid = dim3(std::min(slices, context.num_sms)),
          .block = dim3(kThreads),
          .shared_bytes =
              static_cast<size_t>(kOverheadBytes + args.shape.num_stages * V::kStageBytes)},
         context.stream, args, maps);
}

// Rows of x rounded up to a number of columns that the kernel is made for.
int columns_for(int64_t rows) {
  int columns = 8;
  while (columns < rows) columns *= 2;
  return columns;
}

template <typename T, typename Out, typename W, bool kIsGated>
void launch_columns(const DeviceContext& context, const StreamArgs<T, Out>& args,
                    const StreamMaps& maps) {
  switch (columns_for(args.shape.num_rows)) {
    case 8:
      return launch_stream<Variant<T, Out, W, 8, kIsGated>>(context, args, maps);
    case 16:
      return launch_stream<Variant<T, Out, W, 16, kIsGated>>(context, args, maps);
    case 32:
      return launch_stream<Variant<T, Out, W, 32, kIsGated>>(context, args, maps);
    default:
      return launch_stream<Variant<T, Out, W, 64, kIsGated>>(context, args, maps);
  }
}

int slice_values(DType dtype) { return dtype == DType::kFloat8E4M3 ? kSpanBytes : kSpanBytes / 2; }

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
  const int64_t box_columns = slice_values(matrix.dtype);
  if (is_gated) {
    const int64_t half = matrix.rows() / 2;
    tensor.rank = 4;
    tensor.sizes = {matrix.cols(), 8, 2, half / 8};
    tensor.strides = {1, matrix.row_stride, half * matrix.row_stride, 8 * matrix.row_stride};
    tensor.box = {box_columns, 8, 2, box_rows / 16};
  } else {
    tensor.sizes = {matrix.cols(), matrix.rows()};
    tensor.strides = {1, matrix.row_stride};
    tensor.box = {box_columns, box_rows};
  }
  const auto map = make_tensor_map(tensor);
  check(map.has_value(), "stream_linear: tensor map");
  return maps_.emplace(key, *map).first->second;
}

struct StreamLinear::Call {
  const LinearOperand& weight;
  TensorView x;
  TensorView out;
  bool is_gated;
};

void StreamLinear::run_call(const DeviceContext& context, const Call& call) {
  const auto& [weight, x, out, is_gated] = call;
  const bool is_fp8 = weight.matrix.dtype == DType::kFloat8E4M3;
  check(accepts(x) && weight.matrix.cols() == x.cols() && out.row_stride % 2 == 0 &&
            is_fp8 == (weight.scales != nullptr) && (is_fp8 || weight.matrix.dtype == x.dtype),
        "stream_linear: shape");
  if (x.rows() == 0) return;
  const int64_t values = slice_values(weight.matrix.dtype);
  const StreamMaps maps{find_map(weight.matrix, kTileRows, is_gated),
                        find_map(x, columns_for(x.rows()), false)};
  dispatch_half(x.dtype, [&]<typename T>(T) {
    const auto launch_to = [&]<typename Out>(Out* target) {
      const StreamArgs<T, Out> args{
          .out = target,
          .bias = static_cast<const T*>(weight.bias),
          .scales = weight.scales,
          .partials = partials_.as<float>(),
          .flags = flags_.as<int32_t>(),
          .out_stride = out.row_stride,
          .shape = {
              .num_tiles = static_cast<int>((weight.matrix.rows() + kTileRows - 1) / kTileRows),
              .num_slices = static_cast<int>((weight.matrix.cols() + values - 1) / values),
              .num_stages = 0,
              .num_rows = static_cast<int>(x.rows()),
              .out_features = static_cast<int>(weight.matrix.rows())}};
      const auto launch_weight = [&]<typename W>(W) {
        if constexpr (std::is_same_v<Out, T>) {
          if (is_gated) return launch_columns<T, Out, W, true>(context, args, maps);
        }
        launch_columns<T, Out, W, false>(context, args, maps);
      };
      if (is_fp8) {
        launch_weight(fp8{});
      } else {
        launch_weight(T{});
      }
    };
    if (out.dtype == DType::kFloat32) {
      launch_to(out.as<float>());
    } else {
      launch_to(out.as<T>());
    }
  });
}

void StreamLinear::run(const DeviceContext& context, const LinearOperand& weight, TensorView x,
                       TensorView out) {
  check(weight.matrix.rows() == out.cols() && out.cols() % 2 == 0, "stream_linear: width of out");
  run_call(context, {weight, x, out, false});
}

void StreamLinear::run_gated(const DeviceContext& context, const LinearOperand& weight,
                             TensorView x, TensorView out) {
  check(weight.matrix.rows() == 2 * out.cols() && out.cols() % 8 == 0 && out.dtype == x.dtype,
        "stream_linear: gated shape");
  run_call(context, {weight, x, out, true});
}

}  // namespace octavo::cuda
