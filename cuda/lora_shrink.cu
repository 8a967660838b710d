// The first product of adapters, x A^T, for the tiles of a plan and the parts of a weight together.
// A block takes a tile, 64 of the ranks and a share of the input features, which pass through
// shared memory by cp.async to mma.sync m16n8k16; in tiles of 16 rows the warps divide the depth,
// in tiles of 64 the rows. What the blocks of different shares have is added up by the second
// product. A is read while the kernel before still runs. Bytes: A of the step's adapters, once a
// tile. Bound: latency at decode sizes.
#include <type_traits>

#include "cuda/common/element.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/mma.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/lora_plan.cuh"

namespace octavo::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kRanks = 64;          // of a block
constexpr int kDepth = 64;          // of a stage
constexpr int kPitch = kDepth + 8;  // elements between rows: no bank conflicts in ldmatrix
constexpr int kStages = 4;

// The padded ranks of a slot's parts, one behind the other: the columns of the first product.
struct Ranks {
  int of[kMaxLoraParts];
  int num_parts;

  __device__ int total() const {
    int sum = 0;
#pragma unroll
    for (int p = 0; p < kMaxLoraParts; ++p) sum += of[p];
    return sum;
  }
  // The part that column j belongs to; j becomes the rank inside it. Requires: j < total().
  __device__ int part_of(int& j) const {
    int part = 0;
#pragma unroll
    for (int p = 0; p + 1 < kMaxLoraParts; ++p) {
      if (part == p && j >= of[p]) {
        j -= of[p];
        ++part;
      }
    }
    return part;
  }
};

__device__ Ranks ranks_of(const LoraOperand& lora, int slot) {
  Ranks ranks;
  ranks.num_parts = lora.num_parts;
#pragma unroll
  for (int p = 0; p < kMaxLoraParts; ++p) {
    ranks.of[p] = p < lora.num_parts ? lora.infos[slot * lora.num_parts + p].rank : 0;
  }
  return ranks;
}

struct ShrinkArgs {
  LoraOperand lora;
  PlanView plan;
  const void* x;
  int64_t x_stride;
  float* products;  // [shares, num_rows, num_parts, max_rank]
  int share_depth;
};

template <typename T, int kRows>
struct ShrinkShared {
  T x[kStages][kRows][kPitch];
  T a[kStages][kRanks][kPitch];
};

// Rows in memory that a thread copies vectors of: row threadIdx.x / 8 of each 16.
template <typename T, int kGroups>
struct Sources {
  const T* row[kGroups];
  bool is_row[kGroups];  // else zeros stand for it
};

// Copies rows of 8-element vectors into a stage; what lies beyond `end` becomes zero.
template <typename T, int kRows>
__device__ void load_stage(T (&stage)[kRows][kPitch], const Sources<T, kRows / 16>& sources, int k,
                           int end) {
  const int at = k + threadIdx.x % 8 * 8;
#pragma unroll
  for (int i = 0; i < kRows / 16; ++i) {
    const bool valid = sources.is_row[i] && at < end;
    copy_async_16(shared_address(&stage[threadIdx.x / 8 + i * 16][threadIdx.x % 8 * 8]),
                  sources.row[i] + (valid ? at : 0), valid);
  }
}

// The rows of A of a block, and those of x of a tile.
template <typename T>
__device__ Sources<T, kRanks / 16> find_a(const LoraOperand& lora, int slot, const Ranks& ranks,
                                          int first_rank, int num_groups) {
  Sources<T, kRanks / 16> sources;
#pragma unroll
  for (int i = 0; i < kRanks / 16; ++i) {
    sources.is_row[i] = i < num_groups;
    int rank = first_rank + (i < num_groups ? static_cast<int>(threadIdx.x) / 8 + i * 16 : 0);
    const int part = ranks.part_of(rank);
    const int64_t row = (static_cast<int64_t>(slot) * lora.num_parts + part) * lora.max_rank + rank;
    sources.row[i] = static_cast<const T*>(lora.a) + row * lora.in_features;
  }
  return sources;
}

template <typename T, int kRows>
__device__ Sources<T, kRows / 16> find_x(const ShrinkArgs& args, const LoraTile& tile) {
  Sources<T, kRows / 16> sources;
#pragma unroll
  for (int i = 0; i < kRows / 16; ++i) {
    const int r = threadIdx.x / 8 + i * 16;
    sources.is_row[i] = r < tile.count;
    const int64_t row = args.plan.rows[tile.first + min(r, tile.count - 1)];
    sources.row[i] = static_cast<const T*>(args.x) + row * args.x_stride;
  }
  return sources;
}

// One stage. In tiles of 16 rows a warp takes a quarter of the depth, else 16 rows.
template <typename T, int kRows>
__device__ void multiply_stage(const ShrinkShared<T, kRows>& shared, int stage, int num_groups,
                               float (&acc)[kRanks / 16][2][4]) {
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  const int row = kRows == 16 ? 0 : warp * 16;
  const int begin = kRows == 16 ? warp * 16 : 0;
  const int end = kRows == 16 ? begin + 16 : kDepth;
  for (int k = begin; k < end; k += 16) {
    uint32_t a[4];
    ldmatrix_x4(a, shared_address(&shared.x[stage][row + lane % 16][k + lane / 16 * 8]));
#pragma unroll
    for (int n = 0; n < kRanks / 16; ++n) {
      if (n >= num_groups) break;
      uint32_t b[4];
      ldmatrix_x4(b,
                  shared_address(
                      &shared.a[stage][n * 16 + lane / 16 * 8 + lane % 8][k + lane / 8 % 2 * 8]));
      mma_16x8x16<T>(acc[n][0], a, b[0], b[1]);
      mma_16x8x16<T>(acc[n][1], a, b[2], b[3]);
    }
  }
}

// Adds up what the warps of a tile of 16 rows have; the sums end in warp 0.
__device__ void add_warps(float4* scratch, int num_groups, float (&acc)[kRanks / 16][2][4]) {
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  constexpr int kFragments = kRanks / 8;
  __syncthreads();
#pragma unroll
  for (int f = 0; f < kFragments; ++f) {
    const float(&c)[4] = acc[f / 2][f % 2];
    if (f < 2 * num_groups) {
      scratch[(warp * kFragments + f) * kWarpSize + lane] = make_float4(c[0], c[1], c[2], c[3]);
    }
  }
  __syncthreads();
  if (warp != 0) return;
#pragma unroll
  for (int f = 0; f < kFragments; ++f) {
    if (f >= 2 * num_groups) break;
    float(&c)[4] = acc[f / 2][f % 2];
    for (int w = 1; w < kWarps; ++w) {
      const float4 v = scratch[(w * kFragments + f) * kWarpSize + lane];
      c[0] += v.x, c[1] += v.y, c[2] += v.z, c[3] += v.w;
    }
  }
}

template <typename T, int kRows>
__device__ void store_products(const ShrinkArgs& args, const LoraTile& tile, const Ranks& ranks,
                               int first_rank, const float (&acc)[kRanks / 16][2][4]) {
  const int lane = threadIdx.x % kWarpSize;
  const int row = (kRows == 16 ? 0 : threadIdx.x / kWarpSize * 16) + lane / 4;
  const int64_t row_floats = static_cast<int64_t>(args.lora.num_parts) * args.lora.max_rank;
  float* products = args.products + blockIdx.y * args.plan.num_rows * row_floats;
#pragma unroll
  for (int n = 0; n < kRanks / 16; ++n) {
    int rank = first_rank + n * 16;
    if (rank >= ranks.total()) break;
    const int part = ranks.part_of(rank);
    const int col = part * args.lora.max_rank + rank + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // the halves of the columns, of the rows
      const int r = row + i / 2 * 8;
      if (r >= tile.count) continue;
      const float* pair = &acc[n][i % 2][i / 2 * 2];
      *reinterpret_cast<float2*>(products + (tile.first + r) * row_floats + col + i % 2 * 8) =
          make_float2(pair[0], pair[1]);
    }
  }
}

template <typename T, int kRows>
__global__ void __launch_bounds__(kThreads) shrink_kernel(ShrinkArgs args) {
  extern __shared__ uint4 memory[];
  auto& shared = *reinterpret_cast<ShrinkShared<T, kRows>*>(memory);
  allow_next_kernel();
  const LoraTile tile = args.plan.tiles[blockIdx.x];
  const Ranks ranks = ranks_of(args.lora, tile.slot);
  const int first_rank = blockIdx.z * kRanks;
  const int num_groups = min(kRanks, ranks.total() - first_rank) / 16;
  if (tile.count == 0 || num_groups <= 0) {
    wait_for_previous_kernel();
    return;
  }
  const int in = args.lora.in_features;
  const int begin = blockIdx.y * args.share_depth;
  const int end = min(in, begin + args.share_depth);
  const int steps = (end - begin + kDepth - 1) / kDepth;

  const auto a_rows = find_a<T>(args.lora, tile.slot, ranks, first_rank, num_groups);
  const auto x_rows = find_x<T, kRows>(args, tile);
  for (int s = 0; s < min(kStages, steps); ++s) {
    load_stage<T, kRanks>(shared.a[s], a_rows, begin + s * kDepth, end);
  }
  wait_for_previous_kernel();
  for (int s = 0; s < kStages; ++s) {
    if (s < steps) load_stage<T, kRows>(shared.x[s], x_rows, begin + s * kDepth, end);
    copy_async_commit();
  }
  float acc[kRanks / 16][2][4] = {};
  for (int step = 0; step < steps; ++step) {
    const int stage = step % kStages;
    copy_async_wait<kStages - 1>();
    __syncthreads();
    multiply_stage<T, kRows>(shared, stage, num_groups, acc);
    __syncthreads();
    if (step + kStages < steps) {
      const int k = begin + (step + kStages) * kDepth;
      load_stage<T, kRanks>(shared.a[stage], a_rows, k, end);
      load_stage<T, kRows>(shared.x[stage], x_rows, k, end);
    }
    copy_async_commit();
  }
  if constexpr (kRows == 16) {
    add_warps(reinterpret_cast<float4*>(memory), num_groups, acc);
    if (threadIdx.x >= kWarpSize) return;
  }
  store_products<T, kRows>(args, tile, ranks, first_rank, acc);
}

}  // namespace

void LoraLinear::shrink(const DeviceContext& context, const LoraOperand& lora, const LoraPlan& plan,
                        TensorView x) {
  check(x.rows() == plan.num_rows && x.cols() == lora.in_features && x.row_stride % 8 == 0,
        "add_lora: input");
  if (plan.num_rows == 0) return;
  const LoraShares shares = lora_shares(context, plan.num_rows, lora.in_features);
  const int64_t row_floats = static_cast<int64_t>(lora.num_parts) * lora.max_rank;
  const int64_t size_bytes = shares.count * plan.num_rows * row_floats * sizeof(float);
  if (products_.empty() || products_.back().size_bytes() < size_bytes) {
    products_.emplace_back(size_bytes);
  }
  const ShrinkArgs args{lora,         plan_view(context, plan),     x.data,
                        x.row_stride, products_.back().as<float>(), static_cast<int>(shares.depth)};
  const dim3 grid(args.plan.num_tiles, shares.count, (row_floats + kRanks - 1) / kRanks);
  dispatch_half(x.dtype, [&]<typename T>(T) {
    const auto run = [&]<int kRows>(std::integral_constant<int, kRows>) {
      launch(
          shrink_kernel<T, kRows>,
          {.grid = grid, .block = dim3(kThreads), .shared_bytes = sizeof(ShrinkShared<T, kRows>)},
          context.stream, args);
    };
    if (args.plan.tile_rows == 16) {
      run(std::integral_constant<int, 16>{});
    } else {
      run(std::integral_constant<int, 64>{});
    }
  });
}

}  // namespace octavo::cuda
