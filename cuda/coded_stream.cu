// y = x W^T + b for up to 64 rows of x with W in codes, at the speed of reading W.
//
// As stream_linear.cu: tiles of 128 rows of W times all rows of x, slices along the columns divided
// evenly among the SMs, a ring in shared memory filled by the bulk copy engine. With a quarter of
// the bytes there is a quarter of the time for the same arithmetic, so four warpgroups share a
// slice of 256 columns: 64 rows of W and 128 columns each, one unit of coded_units.h. A unit is one
// run of memory in the order of the registers, so its copy needs no tensor map and a lane's words
// no shuffling. Up to 32 rows of x multiply by mma.sync, warp by warp: with its operand in
// registers wgmma takes as long for 8 columns as for many, and a warpgroup that waits for it
// unpacks nothing. More by wgmma. Codes (of four bits: less their zeros) are exact in half
// precision. Products are summed group by group and scaled as float32: no rounding of a weight
// comes between. Gated: a tile is 64 rows of gates and the 64 of their ups; these pass through
// shared memory. Bound: memory; of four bits up to some 40 rows, then arithmetic.
#include <algorithm>

#include "cuda/coded_ring.cuh"
#include "cuda/coded_stream.h"
#include "cuda/coded_units.cuh"
#include "cuda/common/tensor_map.h"

namespace octavo::cuda {
namespace {

constexpr int kConsumers = 2 * kFinishers;
constexpr int kThreads = kConsumers + kWarpSize;
constexpr int kSliceDepth = 2 * kUnitDepth;
constexpr int kSteps = kUnitDepth / 16;

template <typename TV, typename UnitsV, int kColumnsV, bool kIsGatedV>
struct CodedVariant {
  using T = TV;
  using Units = UnitsV;
  static constexpr int kColumns = kColumnsV;
  static constexpr bool kIsGated = kIsGatedV;
  static constexpr int kSums = kColumns / 2;
  static constexpr int kConsumerWarps = kConsumers / kWarpSize;
  static constexpr int kUnitBytes = Units::kUnitBytes;
  static constexpr int kWeightBytes = 4 * kUnitBytes;
  static constexpr int kSpanBytesOfX = kColumns * kSpanBytes;  // 64 inner values
  static constexpr int kStageBytes = kWeightBytes + 4 * kSpanBytesOfX;
  // Behind the stages: sums of the second half of the columns, then the ups of gates.
  static constexpr int kSumBytes = kSums * kFinishers * 4;
  static constexpr int kOtherBytes = kSumBytes + (kIsGated ? kSumBytes / 2 : 0);
  static constexpr bool kUsesWgmma = kColumns == 64;
  // Of wgmma, what is summed before it is scaled: a group, or half a unit where registers are
  // short. And how many of them are under way at once.
  static constexpr int kParts = kColumns == 64 ? std::max(Units::kGroups, 2) : Units::kGroups;
  static constexpr int kAtOnce = std::clamp(32 / kSums, 1, kParts);
};

template <typename T>
struct CodedArgs {
  Target<T> target;
  const T* bias;
  const uint8_t* units;
  float* partials;
  int32_t* flags;
  int64_t row_block_bytes;
  int first_up_block;  // gated: row block of the first ups
  StreamShape shape;
};

// One thread: copies the block's slices of W and of x.
template <typename V>
__device__ void produce(const CodedArgs<typename V::T>& args, const CUtensorMap& x_map,
                        Ring<V> ring) {
  const StreamShape& shape = args.shape;
  const int begin = first_slice(shape, blockIdx.x);
  const int end = first_slice(shape, blockIdx.x + 1);
  const auto copy_weights = [&](int slice) {
    barrier_expect(ring.full(), V::kStageBytes);
    const int tile = slice / shape.num_slices;
    const int64_t at = int64_t{slice - tile * shape.num_slices} * (2 * V::kUnitBytes);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int block = V::kIsGated ? tile + half * args.first_up_block : 2 * tile + half;
      copy_bulk(ring.weights() + half * (2 * V::kUnitBytes),
                args.units + block * args.row_block_bytes + at, 2 * V::kUnitBytes, ring.full());
    }
  };
  const auto copy_x = [&](int slice) {
    const int column = slice % shape.num_slices * kSliceDepth;
#pragma unroll
    for (int span = 0; span < 4; ++span) {
      copy_box(ring.x() + span * V::kSpanBytesOfX, &x_map, ring.full(), column + span * 64, 0);
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

// Warpgroups 0 and 1 have the first half of a slice's columns, 2 and 3 the second; 0 and 2 have the
// tile's first 64 rows.
template <typename V>
struct Consumer {
  using T = typename V::T;
  using Units = typename V::Units;
  static constexpr int kSums = V::kSums;

  const CodedArgs<T>& args;
  Ring<V> ring;
  float4* other;  // V::kOtherBytes of shared memory
  int thread;
  float sums[kSums];

  __device__ int row_half() const { return thread / 128 % 2; }
  __device__ int column_half() const { return thread / kFinishers; }

  __device__ uint32_t unit() const {
    return ring.weights() + (row_half() * 2 + column_half()) * V::kUnitBytes;
  }
  __device__ uint32_t x() const { return ring.x() + column_half() * (2 * V::kSpanBytesOfX); }

  // The warpgroup's unit by mma.sync, every warp for itself.
  __device__ void add_by_warps() {
    const int lane = thread % kWarpSize;
    const uint32_t row = x() + lane % 8 * kSpanBytes;
    add_unit<T, Units>(
        unit(), thread % 128,
        [&](uint32_t(&b)[4], int n, int pair) {
          const int chunk = (pair % 2 * 4 + lane / 8) ^ (lane % 8);
          ldmatrix_x4(b, row + pair / 2 * V::kSpanBytesOfX + n * kAtomBytes + chunk * 16);
        },
        sums);
  }

  // The warpgroup's unit by wgmma, kAtOnce parts after the other.
  __device__ void add_by_warpgroup() {
    uint32_t words[Units::kLaneWords];
    load_lane_words(unit(), thread % 128, words);
#pragma unroll
    for (int part = 0; part < V::kParts; part += V::kAtOnce) {
      add_parts(part, words + part * (Units::kLaneWords / V::kParts), unit() + Units::kCodeBytes);
    }
  }

  __device__ void add_parts(int first_part, const uint32_t* words, uint32_t terms) {
    constexpr int kStepsOfPart = kSteps / V::kParts;
    const int row = thread / kWarpSize % 4 * 16 + thread % kWarpSize / 4;
    float products[V::kAtOnce][kSums];
    float scales[V::kAtOnce][2];
    uint32_t a[V::kAtOnce * kStepsOfPart][4];
#pragma unroll
    for (int j = 0; j < V::kAtOnce; ++j) {
      const int group = (first_part + j) * Units::kGroups / V::kParts;
      const uint32_t term = terms + group * kTermBytes + row * 4;
      const typename Units::template Terms<T> first(load_shared(term));
      const typename Units::template Terms<T> second(load_shared(term + 32));
      scales[j][0] = first.scale;
      scales[j][1] = second.scale;
#pragma unroll
      for (int i = 0; i < kStepsOfPart; ++i) {
        const int step = j * kStepsOfPart + i;
        Units::template operand<T>(words + step * Units::kStepWords, first, second, a[step]);
      }
      pin_registers(products[j]);
    }
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < V::kAtOnce * kStepsOfPart; ++i) {
      const int step = first_part * kStepsOfPart + i;
      const uint32_t at = x() + step / 4 * V::kSpanBytesOfX + step % 4 * 32;
      wgmma_mixed<T>(products[i / kStepsOfPart], a[i], wgmma_operand(at, 16, kAtomBytes),
                     i % kStepsOfPart > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
#pragma unroll
    for (int j = 0; j < V::kAtOnce; ++j) {
      pin_registers(products[j]);
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        sums[i] = fmaf(products[j][i], scales[j][i / 2 % 2], sums[i]);
      }
    }
  }

  __device__ void sum_slices(int count) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] = 0.0f;
    for (int i = 0; i < count; ++i) {
      barrier_wait(ring.full(), ring.parity);
      if constexpr (V::kUsesWgmma) {
        add_by_warpgroup();
      } else {
        add_by_warps();
        __syncwarp();
      }
      if (thread % kWarpSize == 0) barrier_arrive(ring.empty());
      ring.advance();
    }
  }

  // Adds the sums of the second half of the columns to those of the first.
  __device__ void join_columns() {
    float4* shared = other + thread % kFinishers;
    if (column_half() == 1) {
#pragma unroll
      for (int i = 0; i < kSums; i += 4) {
        shared[i / 4 * kFinishers] = make_float4(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]);
      }
    }
    named_barrier(2 + row_half(), 256);
    if (column_half() == 0) {
#pragma unroll
      for (int i = 0; i < kSums; i += 4) {
        const float4 v = shared[i / 4 * kFinishers];
        sums[i] += v.x;
        sums[i + 1] += v.y;
        sums[i + 2] += v.z;
        sums[i + 3] += v.w;
      }
    }
    named_barrier(2 + row_half(), 256);
  }

  // Adds the bias of rows `row` and `row` + 8 of W.
  __device__ void add_bias(int row, int num_rows) {
    if (args.bias == nullptr) return;
    const float bias[2] = {row < num_rows ? to_float(args.bias[row]) : 0.0f,
                           row + 8 < num_rows ? to_float(args.bias[row + 8]) : 0.0f};
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] += bias[i / 2 % 2];
  }

  __device__ void write_rows(int row) const {
#pragma unroll
    for (int i = 0; i < kSums; i += 2) {
      args.target.write_eight(row + i / 2 % 2 * 8, i / 4 * 8, make_float2(sums[i], sums[i + 1]));
    }
  }

  __device__ void write_tile(int tile) {
    const int group_row = thread / kWarpSize * 16, lane_row = thread % kWarpSize / 4;
    const int out_features = args.target.out_features;
    if constexpr (V::kIsGated) {
      const int row = tile * kUnitRows + group_row % kUnitRows;
      add_bias(row_half() * out_features + row + lane_row, 2 * out_features);
      auto* ups = reinterpret_cast<float*>(other) + V::kSumBytes / 4 + thread % 128;
      if (row_half() == 1) {
#pragma unroll
        for (int i = 0; i < kSums; ++i) ups[i * 128] = sums[i];
      }
      named_barrier(1, kFinishers);
      if (row_half() == 0) {
#pragma unroll
        for (int i = 0; i < kSums; ++i) sums[i] = gated<T>(sums[i], ups[i * 128]);
        write_rows(row);
      }
      named_barrier(1, kFinishers);
    } else {
      const int row = tile * kTileRows + group_row;
      add_bias(row + lane_row, out_features);
      write_rows(row);
    }
  }

  __device__ void run() {
    wait_for_previous_kernel();
    const StreamShape& shape = args.shape;
    const Partials<kSums> partials{args.partials, args.flags, thread};
    const int end = first_slice(shape, blockIdx.x + 1);
    int slice = first_slice(shape, blockIdx.x);
    while (slice < end) {
      const int tile = slice / shape.num_slices;
      const int tile_end = (tile + 1) * shape.num_slices;
      const int stop = min(end, tile_end);
      sum_slices(stop - slice);
      join_columns();
      if (column_half() == 0) {
        if (slice > tile * shape.num_slices) {
          partials.give(sums);
        } else {
          if (stop < tile_end) partials.take(shape, tile_end, sums);
          write_tile(tile);
        }
      }
      slice = stop;
    }
  }
};

template <typename V>
__global__ void __launch_bounds__(kThreads, 1)
    coded_stream_kernel(const CodedArgs<typename V::T> args,
                        const __grid_constant__ CUtensorMap x) {
#ifdef OCTAVO_SM90A
  extern __shared__ char unaligned[];
  const uint32_t offset = shared_address(unaligned) % kAtomBytes;
  char* aligned = unaligned + (offset == 0 ? 0 : kAtomBytes - offset);
  const int num_stages = args.shape.num_stages;
  const Ring<V> ring{.shared = shared_address(aligned), .num_stages = num_stages};
  allow_next_kernel();
  if (threadIdx.x == 0) ring.init_barriers();
  __syncthreads();
  if (threadIdx.x == kConsumers) {
    produce(args, x, ring);
  } else if (threadIdx.x < kConsumers) {
    char* other = aligned + kAtomBytes + num_stages * V::kStageBytes;
    Consumer<V> consumer{.args = args,
                         .ring = ring,
                         .other = reinterpret_cast<float4*>(other),
                         .thread = static_cast<int>(threadIdx.x)};
    consumer.run();
  }
#endif
}

template <typename V>
void launch_coded(const DeviceContext& context, CodedArgs<typename V::T> args,
                  const CUtensorMap& x_map) {
  StreamShape& shape = args.shape;
  shape.num_stages = stages_beside<V>(V::kOtherBytes);
  shape.num_blocks = std::min(shape.num_tiles * shape.num_slices, context.num_sms);
  launch(coded_stream_kernel<V>,
         {.grid = dim3(shape.num_blocks),
          .block = dim3(kThreads),
          .shared_bytes = shared_bytes_of<V>(shape.num_stages, V::kOtherBytes)},
         context.stream, args, x_map);
}

}  // namespace

CodedStream::CodedStream(const DeviceContext& context)
    : partials_(context.num_sms * kTileRows * kMaxRows * sizeof(float)),
      flags_(context.num_sms * sizeof(int32_t)) {
  check_cuda(cudaMemsetAsync(flags_.data(), 0, flags_.size_bytes(), context.stream));
}

bool CodedStream::accepts(TensorView x) {
  return x.rows() <= kMaxRows && x.cols() % 8 == 0 && x.row_stride % 8 == 0 &&
         reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
}

const CUtensorMap& CodedStream::find_map(TensorView x) {
  const std::tuple key{static_cast<const void*>(x.data), x.rows(), x.cols(), x.row_stride};
  const auto found = maps_.find(key);
  if (found != maps_.end()) return found->second;
  TensorBox tensor{.data = x.data, .dtype = x.dtype};
  tensor.sizes = {x.cols(), x.rows()};
  tensor.strides = {1, x.row_stride};
  dispatch_columns(static_cast<int>(x.rows()), [&](int columns) {
    tensor.box = {kSpanBytes / 2, columns};
  });
  const auto map = make_tensor_map(tensor);
  check(map.has_value(), "coded_stream: tensor map");
  return maps_.emplace(key, *map).first->second;
}

struct CodedStream::Call {
  const LinearOperand& weight;
  TensorView x;
  TensorView out;
  bool is_gated;
};

void CodedStream::run_call(const DeviceContext& context, const Call& call) {
  const auto& [weight, x, out, is_gated] = call;
  check(accepts(x) && has_units(weight.matrix.dtype) && weight.matrix.cols() == x.cols() &&
            out.row_stride % 2 == 0 && out.dtype == x.dtype,
        "coded_stream: shape");
  if (x.rows() == 0) return;
  const CUtensorMap& x_map = find_map(x);
  const UnitLayout layout = unit_layout(weight.matrix);
  const int64_t num_tiles = is_gated ? out.cols() / kUnitRows : layout.num_row_blocks() / 2;
  dispatch_half(x.dtype, [&]<typename T>(T) {
    const CodedArgs<T> args{
        .target = {out.as<T>(), out.row_stride, static_cast<int>(x.rows()),
                   static_cast<int>(out.cols())},
        .bias = static_cast<const T*>(weight.bias),
        .units = weight.matrix.as<const uint8_t>(),
        .partials = partials_.as<float>(),
        .flags = flags_.as<int32_t>(),
        .row_block_bytes = layout.row_block_bytes(),
        .first_up_block = static_cast<int>(out.cols() / kUnitRows),
        .shape = {.num_tiles = static_cast<int>(num_tiles),
                  .num_slices = static_cast<int>(layout.units_per_row_block() / 2),
                  .num_stages = 0,
                  .num_blocks = 0}};
    dispatch_units(weight.matrix.dtype, [&]<typename Units>(Units) {
      dispatch_columns(
          static_cast<int>(x.rows()), [&]<int kColumns>(std::integral_constant<int, kColumns>) {
            if (is_gated) {
              launch_coded<CodedVariant<T, Units, kColumns, true>>(context, args, x_map);
            } else {
              launch_coded<CodedVariant<T, Units, kColumns, false>>(context, args, x_map);
            }
          });
    });
  });
}

void CodedStream::run(const DeviceContext& context, const LinearOperand& weight, TensorView x,
                      TensorView out) {
  check(weight.matrix.rows() == out.cols() && out.cols() % 2 == 0, "coded_stream: width of out");
  run_call(context, {weight, x, out, false});
}

void CodedStream::run_gated(const DeviceContext& context, const LinearOperand& weight, TensorView x,
                            TensorView out) {
  check(weight.matrix.rows() == 2 * out.cols() && out.cols() % kUnitRows == 0,
        "coded_stream: gated shape");
  run_call(context, {weight, x, out, true});
}

}  // namespace octavo::cuda
