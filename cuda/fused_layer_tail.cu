// The linears from attention to the next layer's q, k, v as phases of one kernel:
//   0  r += attended Wo^T + b          x = T(r * g1), sums of squares of r by tile
//   1  gated = silu(gate) * up         of s x Wgu^T + b with s = 1 / rms(r), applied to the sums
//   2  r += gated Wd^T + b             x = T(r * g2), sums of squares
//   3  next = s x Wn^T + b             or, without a next linear, normed = T(s * r * g2)
// A row's 1 / rms is a factor of its sums, so no phase needs the norms of whole rows before it
// starts: the norms cost no pass of their own.
//
// Each phase is divided among the blocks as in stream_linear.cu. What is gained over a kernel each
// is that the weights never stop coming: one warp copies the slices of W of all phases into the
// ring, as far ahead as it has room, while the blocks exchange sums and wait for each other at the
// end of a phase. Another warp brings the slices of x once the phase before is done everywhere: its
// results are written, a counter in global memory has all blocks, and fences order them before the
// copy engine's reads. All blocks are resident: there are no more of them than SMs, and what
// overlaps with the kernel before waits for nothing that this one does.
// Bound: memory, the bytes of the weights.
#include <algorithm>

#include "cuda/fused_layer_tail.h"
#include "cuda/layer_tail_ring.cuh"
#include "cuda/stream_consumer.cuh"

namespace octavo::cuda {
namespace {

// Two warpgroups, 64 rows of a tile each.
template <typename V>
struct TailConsumer {
  using T = typename V::T;
  static constexpr int kGroups = V::kColumns / 8;

  const TailArgs<T>& args;
  TileSums<V> tile;
  float* row_scales;   // shared [kColumns]: 1 / rms of the rows of x
  float* row_squares;  // shared [kConsumerWarps, kColumns]

  __device__ int lane() const { return tile.thread % kWarpSize; }
  __device__ int warp() const { return tile.thread / kWarpSize; }

  __device__ RowTerms terms(const TailPhase<T>& phase, int row) const {
    return terms_of(phase.scales, phase.bias, row, phase.shape.out_features);
  }

  // Sets row_scales from the squares that the phase before has left.
  __device__ void load_row_scales() {
    const int tiles = (args.hidden + kTileRows - 1) / kTileRows;
    float sums[kGroups] = {};
    for (int t = lane(); t < tiles; t += kWarpSize) {
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
        sums[i] += __ldcg(args.squares + t * V::kColumns + i * kConsumerWarps + warp());
      }
    }
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      const float sum = warp_reduce(sums[i], Sum{});
      if (lane() == 0) {
        row_scales[i * kConsumerWarps + warp()] =
            rsqrtf(sum / static_cast<float>(args.hidden) + args.eps);
      }
    }
    named_barrier(1, kConsumers);
  }

  // A lane has rows row, row + 1 of W and column 8 g + lane / 4 of a tile's halves of eight rows.
  __device__ bool holds(int row, int g) const {
    return row < args.hidden && g * 8 + lane() / 4 < args.num_rows;
  }
  __device__ int64_t place(int row, int g) const {
    return static_cast<int64_t>(g * 8 + lane() / 4) * args.hidden + row;
  }

  // What the end of a tile needs from memory. It is asked for before the tile's slices are summed:
  // behind the weights of the next phase, which fill the memory's queues, it would come late.
  struct TileEnd {
    uint32_t old[kGroups][2];  // the residual
    float2 weights[2];         // of the norm
    RowTerms terms[2];
  };
  __device__ void ask_for_end(int p, int index, TileEnd& end) const {
    const TailPhase<T>& phase = args.phases[p];
    if (p == 1) {
      const int row = index * (kTileRows / 2) + warp() * 8 + lane() / 4;
      end.terms[0] = terms(phase, row);
      end.terms[1] = terms(phase, phase.shape.out_features / 2 + row);
      return;
    }
    const int base = index * kTileRows + warp() * 16;
    end.terms[0] = terms(phase, base + lane() / 4);
    end.terms[1] = terms(phase, base + 8 + lane() / 4);
    if (p == 3) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = base + half * 8 + lane() % 4 * 2;
      end.weights[half] = row < args.hidden
                              ? *reinterpret_cast<const float2*>(args.norms[p / 2] + row)
                              : make_float2(0.0f, 0.0f);
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        const auto* at = reinterpret_cast<const uint32_t*>(args.residual + place(row, g));
        end.old[g][half] = holds(row, g) ? __ldcg(at) : 0;
      }
    }
  }

  // residual += tile; normed = residual * norm; the rows' squares.
  __device__ void add_tile(int index, const TileEnd& end) {
    const int row = index * kTileRows + warp() * 16 + lane() % 4 * 2;
    float squares[kGroups];
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      squares[g] = 0.0f;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* sums = tile.sums + g * 4 + half * 2;
        const uint32_t delta =
            transpose_8x8(pack2<T>(end.terms[half].apply(sums[0]), end.terms[half].apply(sums[1])));
        squares[g] += add_pair(end.weights[half], row + half * 8, g, end.old[g][half], delta);
      }
    }
    write_squares(index, squares);
  }

  // Two elements of a row of the residual; returns the sum of their squares.
  __device__ float add_pair(float2 w, int row, int g, uint32_t old, uint32_t delta) const {
    if (!holds(row, g)) return 0.0f;
    const float2 a = unpack2<T>(old);
    const float2 b = unpack2<T>(delta);
    const uint32_t sum = pack2<T>(a.x + b.x, a.y + b.y);
    const float2 v = unpack2<T>(sum);
    const int64_t at = place(row, g);
    *reinterpret_cast<uint32_t*>(args.residual + at) = sum;
    *reinterpret_cast<uint32_t*>(args.normed + at) = pack2<T>(v.x * w.x, v.y * w.y);
    return v.x * v.x + v.y * v.y;
  }

  // The barrier before the writes keeps them behind the reads of the tile before.
  __device__ void write_squares(int index, const float (&squares)[kGroups]) {
    named_barrier(1, kConsumers);
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      float sum = squares[g];
      sum += __shfl_xor_sync(kFullMask, sum, 1);
      sum += __shfl_xor_sync(kFullMask, sum, 2);
      if (lane() % 4 == 0) row_squares[warp() * V::kColumns + g * 8 + lane() / 4] = sum;
    }
    named_barrier(1, kConsumers);
    if (tile.thread < V::kColumns) {
      float sum = 0.0f;
#pragma unroll
      for (int w = 0; w < kConsumerWarps; ++w) sum += row_squares[w * V::kColumns + tile.thread];
      args.squares[index * V::kColumns + tile.thread] = sum;
    }
  }

  // Writes eight rows of a tile's result; see StreamLinear's consumer.
  __device__ void write_eight(T* out, int width, int row, int g, float2 v) const {
    const uint32_t pair = transpose_8x8(pack2<T>(v.x, v.y));
    const int r = row + lane() % 4 * 2;
    const int column = g * 8 + lane() / 4;
    if (r >= width || column >= args.num_rows) return;
    *reinterpret_cast<uint32_t*>(out + static_cast<int64_t>(column) * width + r) = pair;
  }

  __device__ float2 scales_of(int g) const {
    return *reinterpret_cast<const float2*>(row_scales + g * 8 + lane() % 4 * 2);
  }

  __device__ void write_gated(int index, int width, const TileEnd& end) const {
    const int row = index * (kTileRows / 2) + warp() * 8;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const float2 s = scales_of(g);
      const float* sums = tile.sums + g * 4;
      const auto result = [&](float gate_sum, float up_sum, float scale) {
        const float gate = round_to<T>(end.terms[0].apply(gate_sum * scale));
        const float up = round_to<T>(end.terms[1].apply(up_sum * scale));
        return __fdividef(gate, 1.0f + __expf(-gate)) * up;
      };
      write_eight(args.gated, width, row, g,
                  make_float2(result(sums[0], sums[2], s.x), result(sums[1], sums[3], s.y)));
    }
  }

  __device__ void write_next(int index, int width, const TileEnd& end) const {
    const int row = index * kTileRows + warp() * 16;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const float2 s = scales_of(g);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* sums = tile.sums + g * 4 + half * 2;
        write_eight(args.next_out, width, row + half * 8, g,
                    make_float2(end.terms[half].apply(sums[0] * s.x),
                                end.terms[half].apply(sums[1] * s.y)));
      }
    }
  }

  __device__ void run_phase(int p) {
    const StreamShape& shape = args.phases[p].shape;
    const int end = first_slice(shape, blockIdx.x + 1);
    int slice = first_slice(shape, blockIdx.x);
    bool has_scales = p % 2 == 0;  // needs none
    // The residual that phase 2 asks for is what phase 0 has left, here or elsewhere.
    if (p == 2 && slice < end) wait_for_blocks(args.counters);
    while (slice < end) {
      const int index = slice / shape.num_slices;
      const int tile_end = (index + 1) * shape.num_slices;
      const int stop = min(end, tile_end);
      if (slice > index * shape.num_slices) {
        tile.sum_slices(stop - slice);
        tile.give_partial();
      } else {
        TileEnd tile_terms;
        ask_for_end(p, index, tile_terms);
        tile.sum_slices(stop - slice);
        if (!has_scales) load_row_scales();
        has_scales = true;
        if (stop < tile_end) tile.take_partials(shape, tile_end);
        finish_tile(p, index, tile_terms);
      }
      slice = stop;
    }
  }

  __device__ void finish_tile(int p, int index, const TileEnd& end) {
    const int out_features = args.phases[p].shape.out_features;
    if (p == 1) {
      write_gated(index, out_features / 2, end);
    } else if (p == 3) {
      write_next(index, out_features, end);
    } else {
      add_tile(index, end);
    }
  }

  // Tells the other blocks that this one's results of phase p are written.
  __device__ void end_phase(int p) {
    __threadfence();
    fence_global_for_async();
    named_barrier(1, kConsumers);
    if (tile.thread == 0) add_release(args.counters + p);
  }

  // normed = norm(residual), a block a row.
  __device__ void normalize() {
    if (blockIdx.x >= args.num_rows) return;
    if (tile.thread == 0) wait_for_blocks(args.counters + 2);
    named_barrier(1, kConsumers);
    load_row_scales();
    for (int row = blockIdx.x; row < args.num_rows; row += gridDim.x) {
      const float scale = row_scales[row];
      for (int i = tile.thread * 2; i < args.hidden; i += kConsumers * 2) {
        const int64_t at = static_cast<int64_t>(row) * args.hidden + i;
        const float2 v = unpack2<T>(__ldcg(reinterpret_cast<const uint32_t*>(args.residual + at)));
        const float2 w = *reinterpret_cast<const float2*>(args.norms[1] + i);
        *reinterpret_cast<uint32_t*>(args.normed + at) =
            pack2<T>(v.x * scale * w.x, v.y * scale * w.y);
      }
    }
  }

  // The last block leaves the counters as they were: all others have passed every wait.
  __device__ void finish() const {
    named_barrier(1, kConsumers);
    if (tile.thread != 0) return;
    __threadfence();
    if (atomicAdd(args.counters + kMaxPhases, 1) != static_cast<int>(gridDim.x) - 1) return;
    __threadfence();
    for (int i = 0; i <= kMaxPhases; ++i) args.counters[i] = 0;
  }

  __device__ void run() {
    wait_for_previous_kernel();
    for (int p = 0; p < args.num_phases; ++p) {
      run_phase(p);
      end_phase(p);
    }
    if (args.num_phases < kMaxPhases) normalize();
    finish();
  }
};

template <typename V>
__global__ void __launch_bounds__(kTailThreads, 1)
    tail_kernel(const __grid_constant__ TailArgs<typename V::T> args,
                const __grid_constant__ TailMaps maps) {
#ifdef OCTAVO_SM90A
  extern __shared__ char unaligned[];
  __shared__ __align__(8) float row_scales[V::kColumns];
  __shared__ float row_squares[kConsumerWarps * V::kColumns];
  const uint32_t base = (shared_address(unaligned) + kAtomBytes - 1) / kAtomBytes * kAtomBytes;
  const Ring<V> ring{.shared = base, .num_stages = args.num_stages};
  allow_next_kernel();
  if (threadIdx.x == 0) ring.init_barriers(2);
  __syncthreads();
  if (threadIdx.x == kConsumers) {
    produce_weights(args, maps, ring);
  } else if (threadIdx.x == kConsumers + kWarpSize) {
    produce_x(args, maps, ring);
  } else if (threadIdx.x < kConsumers) {
    TailConsumer<V> consumer{.args = args,
                             .tile = {.ring = ring,
                                      .thread = static_cast<int>(threadIdx.x),
                                      .partials = args.partials,
                                      .flags = args.flags},
                             .row_scales = row_scales,
                             .row_squares = row_squares};
    consumer.run();
  }
#endif
}

template <typename V, typename Args>
void launch_tail(const DeviceContext& context, Args args, const TailMaps& maps) {
  constexpr int kStaticBytes = (1 + kConsumerWarps) * V::kColumns * 4;
  constexpr int kOverheadBytes = 2 * kAtomBytes;  // alignment and barriers
  constexpr int kStages =
      std::min(kMaxStages, (kMaxSharedBytes - kOverheadBytes - kStaticBytes) / V::kStageBytes);
  args.num_stages = kStages;
  launch(tail_kernel<V>,
         {.grid = dim3(context.num_sms),
          .block = dim3(kTailThreads),
          .shared_bytes = static_cast<size_t>(kOverheadBytes + kStages * V::kStageBytes)},
         context.stream, args, maps);
}

template <typename T, typename W>
void launch_columns(const DeviceContext& context, int columns, const TailArgs<T>& args,
                    const TailMaps& maps) {
  switch (columns) {
    case 8:
      return launch_tail<Variant<T, T, W, 8, false>>(context, args, maps);
    case 16:
      return launch_tail<Variant<T, T, W, 16, false>>(context, args, maps);
    case 32:
      return launch_tail<Variant<T, T, W, 32, false>>(context, args, maps);
    case 64:
      return launch_tail<Variant<T, T, W, 64, false>>(context, args, maps);
    default:
      if constexpr (sizeof(W) == 2) {
        return launch_tail<Variant<T, T, W, 128, false>>(context, args, maps);
      }
  }
}

int columns_for(int64_t rows) {
  int columns = 8;
  while (columns < rows) columns *= 2;
  return columns;
}

int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

template <typename T>
TailPhase<T> make_phase(const LinearOperand& weight, int64_t rows, int num_sms) {
  const TensorView& matrix = weight.matrix;
  StreamShape shape{};
  shape.num_tiles = ceil_div(matrix.rows(), kTileRows);
  shape.num_slices = ceil_div(matrix.cols(), stream_slice_values(matrix.dtype));
  shape.num_blocks = std::min(shape.num_tiles * shape.num_slices, num_sms);
  shape.num_rows = static_cast<int>(rows);
  shape.out_features = static_cast<int>(matrix.rows());
  return {static_cast<const T*>(weight.bias), weight.scales, shape};
}

bool fits(const LinearOperand& weight, TensorView x, TensorView out, int64_t width) {
  const bool is_fp8 = weight.matrix.dtype == DType::kFloat8E4M3;
  return (is_fp8 ? weight.scales != nullptr : weight.matrix.dtype == DType::kBFloat16) &&
         x.dtype == DType::kBFloat16 && out.dtype == DType::kBFloat16 && can_stream(x) &&
         x.rows() == out.rows() && weight.matrix.cols() == x.cols() &&
         weight.matrix.rows() == width && out.cols() % 8 == 0 && out.row_stride == out.cols();
}

}  // namespace

FusedLayerTail::FusedLayerTail(const DeviceContext& context)
    : partials_(context.num_sms * kTileRows * kMaxRows * sizeof(float)),
      squares_(kMaxHidden / kTileRows * kMaxRows * sizeof(float)),
      counters_((kMaxPhases + 1 + context.num_sms) * sizeof(int32_t)) {
  check_cuda(cudaMemsetAsync(counters_.data(), 0, counters_.size_bytes(), context.stream));
}

bool FusedLayerTail::accepts(const LayerTailCall& call) {
  const int64_t rows = call.attended.rows();
  const int64_t hidden = call.residual.cols();
  const DType kind = call.output.matrix.dtype;
  const int64_t most = call.output.scales == nullptr ? kMaxRows : kMaxFp8Rows;
  return rows > 0 && rows <= most && hidden <= kMaxHidden && call.gate_up.matrix.dtype == kind &&
         call.down.matrix.dtype == kind && call.residual.row_stride == hidden &&
         call.residual.dtype == DType::kBFloat16 &&
         fits(call.output, call.attended, call.normed, hidden) &&
         fits(call.gate_up, call.normed, call.gated, 2 * call.gated.cols()) &&
         fits(call.down, call.gated, call.normed, hidden) &&
         (!call.has_next() || (call.next.matrix.dtype == kind &&
                               fits(call.next, call.normed, call.next_out, call.next_out.cols())));
}

void FusedLayerTail::run(const DeviceContext& context, const LayerTailCall& call) {
  check(accepts(call), "layer tail: shape");
  using T = bf16;
  const int64_t rows = call.attended.rows();
  const int columns = columns_for(rows);
  const LinearOperand weights[kMaxPhases] = {call.output, call.gate_up, call.down, call.next};
  const TensorView x[kMaxPhases] = {call.attended, call.normed, call.gated, call.normed};
  TailArgs<T> args{};
  TailMaps maps{};
  args.num_phases = call.has_next() ? kMaxPhases : kMaxPhases - 1;
  for (int p = 0; p < args.num_phases; ++p) {
    args.phases[p] = make_phase<T>(weights[p], rows, context.num_sms);
    maps.weights[p] = maps_.find(weights[p].matrix, kTileRows, p == 1);
    maps.x[p] = maps_.find(x[p], columns, false);
  }
  args.num_rows = static_cast<int>(rows);
  args.hidden = static_cast<int>(call.residual.cols());
  args.eps = call.eps;
  args.residual = call.residual.as<T>();
  args.normed = call.normed.as<T>();
  args.gated = call.gated.as<T>();
  args.next_out = call.has_next() ? call.next_out.as<T>() : nullptr;
  args.norms[0] = call.mlp_norm;
  args.norms[1] = call.next_norm;
  args.partials = partials_.as<float>();
  args.squares = squares_.as<float>();
  args.counters = counters_.as<int32_t>();
  args.flags = args.counters + kMaxPhases + 1;
  if (call.output.scales != nullptr) {
    launch_columns<T, fp8>(context, columns, args, maps);
  } else {
    launch_columns<T, T>(context, columns, args, maps);
  }
}

}  // namespace octavo::cuda
