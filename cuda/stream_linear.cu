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

#include "cuda/stream_consumer.cuh"
#include "cuda/stream_linear.h"

namespace octavo::cuda {
namespace {

// Two warpgroups, 64 rows of a tile each.
template <typename V>
struct Consumer {
  using T = typename V::T;
  using Out = typename V::Out;
  static constexpr int kSums = TileSums<V>::kSums;

  const StreamArgs<T, Out>& args;
  TileSums<V> tile;

  __device__ RowTerms terms(int row) const {
    return terms_of(args.scales, args.bias, row, args.shape.out_features);
  }

  // Writes rows [row, row + 8) of the tile's result: lane 4 g + q holds v, columns 2 q and 2 q + 1
  // of row g, where `first` is the first of eight columns.
  __device__ void write_eight(int row, int first, float v0, float v1, int out_features) const {
    const int lane = tile.thread % kWarpSize;
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

  __device__ void write_tile(int index) const {
    const int group = tile.thread / kWarpSize;  // of 16 rows
    const int lane_row = tile.thread % kWarpSize / 4;
    if constexpr (V::kIsGated) {
      const int out_features = args.shape.out_features / 2;
      const int row = index * (kTileRows / 2) + group * 8;
      const RowTerms gate_terms = terms(row + lane_row);
      const RowTerms up_terms = terms(out_features + row + lane_row);
#pragma unroll
      for (int i = 0; i < kSums; i += 4) {
        float v[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float gate =
              round_to<T>(gate_terms.apply(tile.sums[i + j]));  // as if it were stored
          const float up = round_to<T>(up_terms.apply(tile.sums[i + 2 + j]));
          v[j] = __fdividef(gate, 1.0f + __expf(-gate)) * up;
        }
        write_eight(row, i * 2, v[0], v[1], out_features);
      }
    } else {
      const int row = index * kTileRows + group * 16;
      const RowTerms both[2] = {terms(row + lane_row), terms(row + 8 + lane_row)};
#pragma unroll
      for (int i = 0; i < kSums; i += 2) {
        const int half = i / 2 % 2;
        write_eight(row + half * 8, i / 4 * 8, both[half].apply(tile.sums[i]),
                    both[half].apply(tile.sums[i + 1]), args.shape.out_features);
      }
    }
  }

  __device__ void run() {
    wait_for_previous_kernel();
    const StreamShape& shape = args.shape;
    const int end = first_slice(shape, blockIdx.x + 1);
    int slice = first_slice(shape, blockIdx.x);
    while (slice < end) {
      const int index = slice / shape.num_slices;
      const int tile_end = (index + 1) * shape.num_slices;
      const int stop = min(end, tile_end);
      tile.sum_slices(stop - slice);
      if (slice > index * shape.num_slices) {
        tile.give_partial();
      } else {
        if (stop < tile_end) tile.take_partials(shape, tile_end);
        write_tile(index);
      }
      slice = stop;
    }
  }
};

template <typename V>
__global__ void __launch_bounds__(kThreads, 1)
    stream_kernel(const StreamArgs<typename V::T, typename V::Out> args,
                  const __grid_constant__ StreamMaps maps) {
#ifdef OCTAVO_SM90A
  extern __shared__ char unaligned[];
  const uint32_t base = (shared_address(unaligned) + kAtomBytes - 1) / kAtomBytes * kAtomBytes;
  const Ring<V> ring{.shared = base, .num_stages = args.shape.num_stages};
  allow_next_kernel();
  if (threadIdx.x == 0) ring.init_barriers(1);
  __syncthreads();
  if (threadIdx.x == kConsumers) {
    produce(args.shape, maps, ring);
  } else if (threadIdx.x < kConsumers) {
    Consumer<V> consumer{.args = args,
                         .tile = {.ring = ring,
                                  .thread = static_cast<int>(threadIdx.x),
                                  .partials = args.partials,
                                  .flags = args.flags}};
    consumer.run();
  }
#endif
}

template <typename V, typename Args>
void launch_stream(const DeviceContext& context, Args args, const StreamMaps& maps) {
  constexpr int kStages = 8;                      // more gain nothing
  constexpr int kOverheadBytes = 2 * kAtomBytes;  // alignment and barriers
  args.shape.num_stages = std::min(kStages, (kMaxSharedBytes - kOverheadBytes) / V::kStageBytes);
  args.shape.num_blocks = std::min(args.shape.num_tiles * args.shape.num_slices, context.num_sms);
  launch(stream_kernel<V>,
         {.grid = dim3(args.shape.num_blocks),
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

}  // namespace

StreamLinear::StreamLinear(const DeviceContext& context)
    : partials_(context.num_sms * kTileRows * kMaxRows * sizeof(float)),
      flags_(context.num_sms * sizeof(int32_t)) {
  check_cuda(cudaMemsetAsync(flags_.data(), 0, flags_.size_bytes(), context.stream));
}

bool StreamLinear::accepts(TensorView x) { return x.rows() <= kMaxRows && can_stream(x); }

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
  const int64_t values = stream_slice_values(weight.matrix.dtype);
  const StreamMaps maps{maps_.find(weight.matrix, kTileRows, is_gated),
                        maps_.find(x, columns_for(x.rows()), false)};
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
              .num_blocks = 0,
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
