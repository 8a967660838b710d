// One matrix product an expert for few rows each, in one launch, at the speed of reading weights.
//
// As stream_linear.cu: tiles of 128 rows of an expert's weights times up to 8, 16, 32 or 64 of its
// tokens; their slices, over all experts that have tokens, are divided evenly among the SMs, which
// exchange partial sums where they share a tile. Which tiles there are, each block finds from the
// plan on the device, so a captured graph stays right whatever the routing.
// A slice is 64 columns of weights in half precision, copied as boxes, or 128 of coded ones, two
// units of coded_units.h. One warp feeds the ring: weights by its first lane, the tokens' pieces of
// x by all of them, into rows 16 bytes longer than they are, which ldmatrix reads without bank
// conflicts. Eight warps multiply by mma.sync m16n8k16, 16 rows of the tile each: their few columns
// would leave wgmma no faster, and what a unit holds for its operands is right for this one too.
// Gated: a tile is 64 rows of gates and the 64 of their ups. A warp's 16 rows are eight of each, so
// that a thread holds both of a pair; of coded weights they are not, and pass through shared
// memory. Bound: memory, the chosen experts' weights once for each full set of columns.
#include <algorithm>
#include <type_traits>

#include "cuda/coded_ring.cuh"
#include "cuda/coded_units.cuh"
#include "cuda/common/tensor_map.h"
#include "cuda/grouped_stream.h"

namespace octavo::cuda {
namespace {

constexpr int kConsumers = kFinishers;
constexpr int kThreads = kConsumers + kWarpSize;
constexpr int kBoxRows = kTileRows / 2;

// Weights in half precision; others are one of the units of coded_units.cuh.
struct Plain {};

template <typename WV>
struct Slice {
  static constexpr int kDepth = kUnitDepth;
  static constexpr int kBytes = 2 * WV::kUnitBytes;
};
template <>
struct Slice<Plain> {
  static constexpr int kDepth = 64;
  static constexpr int kBytes = kTileRows * kSpanBytes;
};

template <typename TV, typename WV, int kColumnsV, bool kIsGatedV>
struct GroupedVariant {
  using T = TV;
  using W = WV;
  static constexpr int kColumns = kColumnsV;
  static constexpr bool kIsGated = kIsGatedV;
  static constexpr bool kIsPlain = std::is_same_v<W, Plain>;
  static constexpr int kSums = kColumns / 2;
  static constexpr int kConsumerWarps = kConsumers / kWarpSize;
  static constexpr int kDepth = Slice<W>::kDepth;
  static constexpr int kWeightBytes = Slice<W>::kBytes;
  static constexpr int kXPitch = kDepth * 2 + 16;
  static constexpr int kXBytes = (kColumns * kXPitch + kAtomBytes - 1) / kAtomBytes * kAtomBytes;
  static constexpr int kStageBytes = kWeightBytes + kXBytes;
  static constexpr int kUpBytes = kIsGated && !kIsPlain ? kSums * 128 * 4 : 0;
};

template <typename T>
struct GroupedArgs {
  const T* x;
  T* out;
  const uint8_t* units;  // of coded weights
  ExpertPlan plan;
  float* partials;
  int32_t* flags;
  int64_t x_stride;
  int64_t out_stride;
  int64_t row_block_bytes;  // of coded weights
  int tiles_per_expert;     // of rows of its weights
  int num_slices;           // of a tile
  int num_stages;
  int out_features;  // of an expert
  bool waits_first;
};

// Rows [row, row + num_rows) of the plan, of one expert.
struct RowTile {
  int expert;
  int row;
  int num_rows;
};

// The tiles of rows in their order; a block finds them for itself. Returns their number.
template <int kColumns>
__device__ int find_tiles(const ExpertPlan& plan, RowTile* tiles) {
  __shared__ int scratch[kThreads / kWarpSize];
  int found = 0;
  for (int first = 0; first < plan.num_experts; first += kThreads) {
    const int expert = first + threadIdx.x;
    const bool is_one = expert < plan.num_experts;
    // Not through a cache that may hold what was there before.
    const int begin = is_one ? __ldcg(plan.first_row + expert) : 0;
    const int rows = is_one ? __ldcg(plan.first_row + expert + 1) - begin : 0;
    const int count = (rows + kColumns - 1) / kColumns;
    int total = 0;
    const int place = found + block_exclusive_scan(count, scratch, &total);
    for (int i = 0; i < count; ++i) {
      tiles[place + i] = {expert, begin + i * kColumns, min(kColumns, rows - i * kColumns)};
    }
    found += total;
  }
  __syncthreads();
  return found;
}

// A slice, counted over all tiles, and those after it.
struct Cursor {
  const RowTile* rows;
  int tile;   // of the expert's weights
  int slice;  // of the tile

  template <typename T>
  __device__ Cursor(const GroupedArgs<T>& args, const RowTile* tiles, int index) {
    const int whole = index / args.num_slices;
    slice = index - whole * args.num_slices;
    rows = tiles + whole / args.tiles_per_expert;
    tile = whole % args.tiles_per_expert;
  }
  template <typename T>
  __device__ void advance(const GroupedArgs<T>& args) {
    if (++slice < args.num_slices) return;
    slice = 0;
    if (++tile < args.tiles_per_expert) return;
    tile = 0;
    ++rows;
  }
};

// One warp: copies the block's slices.
template <typename V>
struct Producer {
  using T = typename V::T;
  static constexpr int kRowsOfLane = (V::kColumns + kWarpSize - 1) / kWarpSize;

  const GroupedArgs<T>& args;
  const CUtensorMap& map;
  Ring<V> ring;
  int lane;
  const RowTile* known = nullptr;  // whose rows of x these are
  const T* sources[kRowsOfLane];

  __device__ void copy_weights(const Cursor& at) const {
    if (lane != 0) return;
    barrier_expect(ring.full(), V::kWeightBytes + at.rows->num_rows * V::kDepth * 2);
    const int expert_rows = args.out_features * (V::kIsGated ? 2 : 1);
    const int row = at.rows->expert * expert_rows + at.tile * (V::kIsGated ? kBoxRows : kTileRows);
    const int second = row + (V::kIsGated ? args.out_features : kBoxRows);
    if constexpr (V::kIsPlain) {
      const int column = at.slice * V::kDepth;
      copy_box(ring.weights(), &map, ring.full(), column, row);
      copy_box(ring.weights() + V::kWeightBytes / 2, &map, ring.full(), column, second);
    } else {
      const uint8_t* units = args.units + at.slice * V::W::kUnitBytes;
      copy_bulk(ring.weights(), units + row / kUnitRows * args.row_block_bytes, V::W::kUnitBytes,
                ring.full());
      copy_bulk(ring.weights() + V::W::kUnitBytes,
                units + second / kUnitRows * args.row_block_bytes, V::W::kUnitBytes, ring.full());
    }
  }

  __device__ void copy_x(const Cursor& at) {
    if (at.rows != known) find_sources(*at.rows);
    known = at.rows;
#pragma unroll
    for (int i = 0; i < kRowsOfLane; ++i) {
      const int r = i * kWarpSize + lane;
      if (r >= at.rows->num_rows) continue;
      copy_bulk(ring.x() + r * V::kXPitch, sources[i] + at.slice * V::kDepth, V::kDepth * 2,
                ring.full());
    }
  }

  __device__ void find_sources(const RowTile& rows) {
#pragma unroll
    for (int i = 0; i < kRowsOfLane; ++i) {
      const int row = rows.row + min(i * kWarpSize + lane, rows.num_rows - 1);
      const int64_t source = V::kIsGated ? __ldcg(args.plan.token_of_row + row) : row;
      sources[i] = args.x + source * args.x_stride;
    }
  }

  __device__ void run(const RowTile* tiles, const StreamShape& shape) {
    const int begin = first_slice(shape, blockIdx.x);
    const int end = first_slice(shape, blockIdx.x + 1);
    const int ahead = min(end, begin + shape.num_stages);
    const Ring<V> start = ring;
    Cursor weights(args, tiles, begin);
    Cursor x = weights;
    for (int i = begin; i < ahead; ++i) {
      copy_weights(weights);
      weights.advance(args);
      ring.advance();
    }
    ring = start;
    wait_for_previous_kernel();
    __syncwarp();
    for (int i = begin; i < end; ++i) {
      if (i >= ahead) {
        barrier_wait(ring.empty(), ring.parity ^ 1);
        copy_weights(weights);
        weights.advance(args);
        __syncwarp();
      }
      copy_x(x);
      x.advance(args);
      ring.advance();
    }
  }
};

template <typename V>
struct Consumer {
  using T = typename V::T;
  static constexpr int kSums = V::kSums;
  static constexpr int kEights = V::kColumns / 8;

  const GroupedArgs<T>& args;
  const RowTile* tiles;
  Ring<V> ring;
  float* ups;  // V::kUpBytes of shared memory
  int thread;
  float sums[kSums];  // [kEights][4], fragments of m16n8

  // B operands of two steps of 16, `pair` of the slice, for rows 8 n to 8 n + 7.
  __device__ void load_x(uint32_t (&b)[4], int n, int pair) const {
    const int lane = thread % kWarpSize;
    ldmatrix_x4(b, ring.x() + (n * 8 + lane % 8) * V::kXPitch + lane / 8 * 16 + pair * 64);
  }

  __device__ void multiply_plain() {
    const int lane = thread % kWarpSize, warp = thread / kWarpSize;
    // Lanes 8 to 15 and 24 to 31 address the fragment's second eight rows.
    const int second = lane / 8 % 2;
    const int row =
        V::kIsGated ? second * kBoxRows + warp * 8 + lane % 8 : warp * 16 + second * 8 + lane % 8;
    const uint32_t weights = ring.weights() + row * kSpanBytes;
#pragma unroll
    for (int pair = 0; pair < V::kDepth / 32; ++pair) {
      uint32_t a[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int chunk = pair * 4 + i * 2 + lane / 16;
        ldmatrix_x4(a[i], weights + (chunk ^ (row % 8)) * 16);
      }
#pragma unroll
      for (int n = 0; n < kEights; ++n) {
        uint32_t b[4];
        load_x(b, n, pair);
        auto& sum = reinterpret_cast<float(&)[4]>(sums[n * 4]);
        mma_16x8x16<T>(sum, a[0], b[0], b[1]);
        mma_16x8x16<T>(sum, a[1], b[2], b[3]);
      }
    }
  }

  __device__ void sum_slices(int count) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] = 0.0f;
    for (int i = 0; i < count; ++i) {
      barrier_wait(ring.full(), ring.parity);
      if constexpr (V::kIsPlain) {
        multiply_plain();
      } else {
        add_unit<T, typename V::W>(
            ring.weights() + thread / 128 * V::W::kUnitBytes, thread % 128,
            [&](uint32_t(&b)[4], int n, int pair) { load_x(b, n, pair); }, sums);
      }
      __syncwarp();
      if (thread % kWarpSize == 0) barrier_arrive(ring.empty());
      ring.advance();
    }
  }

  __device__ void write_rows(const Target<T>& target, int first) const {
#pragma unroll
    for (int n = 0; n < kEights; ++n) {
      const float* v = sums + n * 4;
      target.write_eight(first, n * 8, make_float2(v[0], v[1]));
      target.write_eight(first + 8, n * 8, make_float2(v[2], v[3]));
    }
  }

  __device__ void write_tile(const Cursor& at) {
    const int warp = thread / kWarpSize;
    const Target<T> target{args.out + at.rows->row * args.out_stride, args.out_stride,
                           at.rows->num_rows, args.out_features};
    if constexpr (!V::kIsGated) {
      write_rows(target, at.tile * kTileRows + warp * 16);
    } else if constexpr (V::kIsPlain) {
#pragma unroll
      for (int n = 0; n < kEights; ++n) {
        const float* v = sums + n * 4;
        target.write_eight(at.tile * kBoxRows + warp * 8, n * 8,
                           make_float2(gated<T>(v[0], v[2]), gated<T>(v[1], v[3])));
      }
    } else {
      float* mine = ups + thread % 128;
#pragma unroll
      for (int i = 0; thread >= 128 && i < kSums; ++i) mine[i * 128] = sums[i];
      named_barrier(1, kFinishers);
      if (thread < 128) {
#pragma unroll
        for (int i = 0; i < kSums; ++i) sums[i] = gated<T>(sums[i], mine[i * 128]);
        write_rows(target, at.tile * kBoxRows + warp * 16);
      }
      named_barrier(1, kFinishers);
    }
  }

  __device__ void run(const StreamShape& shape) {
    wait_for_previous_kernel();
    const Partials<kSums> partials{args.partials, args.flags, thread};
    const int end = first_slice(shape, blockIdx.x + 1);
    int index = first_slice(shape, blockIdx.x);
    while (index < end) {
      const int tile = index / shape.num_slices;
      const int tile_end = (tile + 1) * shape.num_slices;
      const int stop = min(end, tile_end);
      sum_slices(stop - index);
      if (index > tile * shape.num_slices) {
        partials.give(sums);
      } else {
        if (stop < tile_end) partials.take(shape, tile_end, sums);
        write_tile(Cursor(args, tiles, index));
      }
      index = stop;
    }
  }
};

template <typename V>
__global__ void __launch_bounds__(kThreads, 1)
    grouped_stream_kernel(const GroupedArgs<typename V::T> args,
                          const __grid_constant__ CUtensorMap map) {
#ifdef OCTAVO_SM90A
  extern __shared__ char unaligned[];
  const uint32_t offset = shared_address(unaligned) % kAtomBytes;
  char* aligned = unaligned + (offset == 0 ? 0 : kAtomBytes - offset);
  char* other = aligned + kAtomBytes + args.num_stages * V::kStageBytes;
  auto* tiles = reinterpret_cast<RowTile*>(other + V::kUpBytes);
  const Ring<V> ring{.shared = shared_address(aligned), .num_stages = args.num_stages};
  if (threadIdx.x == 0) ring.init_barriers();
  // The gated product sees the plan made. The kernel after it may start only then, and so need not
  // wait to know its tiles.
  if (args.waits_first) wait_for_previous_kernel();
  allow_next_kernel();
  const int num_tiles = find_tiles<V::kColumns>(args.plan, tiles) * args.tiles_per_expert;
  const StreamShape shape{
      .num_tiles = num_tiles,
      .num_slices = args.num_slices,
      .num_stages = args.num_stages,
      .num_blocks = min(static_cast<int>(gridDim.x), num_tiles * args.num_slices)};
  if (blockIdx.x >= shape.num_blocks) return;
  const auto thread = static_cast<int>(threadIdx.x);
  if (thread >= kConsumers) {
    Producer<V> producer{.args = args, .map = map, .ring = ring, .lane = thread - kConsumers};
    producer.run(tiles, shape);
  } else {
    Consumer<V> consumer{.args = args,
                         .tiles = tiles,
                         .ring = ring,
                         .ups = reinterpret_cast<float*>(other),
                         .thread = thread};
    consumer.run(shape);
  }
#endif
}

template <typename V>
void launch_grouped(const DeviceContext& context, GroupedArgs<typename V::T> args,
                    const CUtensorMap& map) {
  const ExpertPlan& plan = args.plan;
  const int most_tiles = plan.num_pairs / V::kColumns + std::min(plan.num_experts, plan.num_pairs);
  constexpr int kScanBytes = 64;  // static
  const int other_bytes = V::kUpBytes + most_tiles * static_cast<int>(sizeof(RowTile)) + kScanBytes;
  args.num_stages = stages_beside<V>(other_bytes);
  launch(grouped_stream_kernel<V>,
         {.grid = dim3(context.num_sms),
          .block = dim3(kThreads),
          .shared_bytes = shared_bytes_of<V>(args.num_stages, other_bytes)},
         context.stream, args, map);
}

// Rows of a full tile: more than an expert has on the average, so that few read weights twice.
int columns_for(const ExpertPlan& plan) {
  const int average = (plan.num_pairs + plan.num_experts - 1) / plan.num_experts;
  return average <= 2 ? 8 : average <= 8 ? 16 : average <= 20 ? 32 : 64;
}

template <typename T, typename W, bool kIsGated>
void launch_columns(const DeviceContext& context, const GroupedArgs<T>& args,
                    const CUtensorMap& map) {
  dispatch_columns(
      columns_for(args.plan), [&]<int kColumns>(std::integral_constant<int, kColumns>) {
        // Coded weights have two forms for the four.
        constexpr int kMade = std::is_same_v<W, Plain> ? kColumns : kColumns <= 16 ? 16 : 64;
        launch_grouped<GroupedVariant<T, W, kMade, kIsGated>>(context, args, map);
      });
}

}  // namespace

GroupedStream::GroupedStream(const DeviceContext& context)
    : partials_(context.num_sms * kTileRows * 64 * sizeof(float)),
      flags_(context.num_sms * sizeof(int32_t)) {
  check_cuda(cudaMemsetAsync(flags_.data(), 0, flags_.size_bytes(), context.stream));
}

bool GroupedStream::accepts(const ExpertPlan& plan, TensorView weight, TensorView x,
                            int64_t out_features) {
  constexpr int kMostTiles = 4096;  // a list of them is kept in shared memory
  const bool is_coded = has_units(weight.dtype);
  const int64_t depth = is_coded ? kUnitDepth : Slice<Plain>::kDepth;
  return plan.num_pairs / 64 + plan.num_experts <= kMostTiles && x.cols() % depth == 0 &&
         x.row_stride % 8 == 0 && reinterpret_cast<uintptr_t>(x.data) % 16 == 0 &&
         out_features % (is_coded ? kUnitRows : 8) == 0;
}

const CUtensorMap& GroupedStream::find_map(TensorView weight) {
  const std::tuple key{static_cast<const void*>(weight.data), weight.rows(), weight.cols()};
  const auto found = maps_.find(key);
  if (found != maps_.end()) return found->second;
  TensorBox tensor{.data = weight.data, .dtype = weight.dtype};
  tensor.sizes = {weight.cols(), weight.rows()};
  tensor.strides = {1, weight.row_stride};
  tensor.box = {Slice<Plain>::kDepth, kBoxRows};
  const auto map = make_tensor_map(tensor);
  check(map.has_value(), "grouped_stream: tensor map");
  return maps_.emplace(key, *map).first->second;
}

struct GroupedStream::Call {
  TensorView weight;
  TensorView x;
  const ExpertPlan& plan;
  TensorView out;
  bool is_gated;
  bool waits_first;
};

void GroupedStream::run_call(const DeviceContext& context, const Call& call) {
  const auto& [weight, x, plan, out, is_gated, waits_first] = call;
  const bool is_coded = has_units(weight.dtype);
  check(accepts(plan, weight, x, out.cols()) && weight.cols() == x.cols() &&
            (is_coded || weight.dtype == x.dtype) && out.dtype == x.dtype &&
            weight.rows() == plan.num_experts * out.cols() * (is_gated ? 2 : 1),
        "grouped_stream: shape");
  if (plan.num_pairs == 0) return;
  const int tile_features = is_gated ? kBoxRows : kTileRows;
  const int64_t depth = is_coded ? kUnitDepth : Slice<Plain>::kDepth;
  dispatch_half(x.dtype, [&]<typename T>(T) {
    const GroupedArgs<T> args{
        .x = x.as<const T>(),
        .out = out.as<T>(),
        .units = weight.as<const uint8_t>(),
        .plan = plan,
        .partials = partials_.as<float>(),
        .flags = flags_.as<int32_t>(),
        .x_stride = x.row_stride,
        .out_stride = out.row_stride,
        .row_block_bytes = is_coded ? unit_layout(weight).row_block_bytes() : 0,
        .tiles_per_expert = static_cast<int>((out.cols() + tile_features - 1) / tile_features),
        .num_slices = static_cast<int>(x.cols() / depth),
        .num_stages = 0,
        .out_features = static_cast<int>(out.cols()),
        .waits_first = waits_first};
    const auto launch_for = [&]<typename W>(W, const CUtensorMap& map) {
      if (is_gated) {
        launch_columns<T, W, true>(context, args, map);
      } else {
        launch_columns<T, W, false>(context, args, map);
      }
    };
    if (!is_coded) return launch_for(Plain{}, find_map(weight));
    dispatch_units(weight.dtype, [&](auto units) { launch_for(units, CUtensorMap{}); });
  });
}

void GroupedStream::run_gated(const DeviceContext& context, TensorView weight, TensorView x,
                              const ExpertPlan& plan, TensorView out) {
  run_call(context, {weight, x, plan, out, true, true});
}

void GroupedStream::run(const DeviceContext& context, TensorView weight, TensorView x,
                        const ExpertPlan& plan, TensorView out, bool follows_gated) {
  run_call(context, {weight, x, plan, out, false, !follows_gated});
}

}  // namespace octavo::cuda
