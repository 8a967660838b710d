// One matrix product an expert, in one launch. A block computes kRows rows of one expert times 64
// of its output features with mma.sync m16n8k16; both tiles pass through shared memory by cp.async,
// four tiles along k deep. Blocks find their expert from the plan on the device, so a captured
// graph stays right whatever the routing. Bytes: every chosen expert's weights once a 64 rows.
// Bound: memory at decode sizes.
#include <algorithm>

#include "cuda/common/element.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/mma.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/experts.h"

namespace octavo::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kCols = 64;           // output features of a block, 16 a warp
constexpr int kDepth = 64;          // of a tile
constexpr int kPitch = kDepth + 8;  // elements between tile rows: no bank conflicts in ldmatrix
constexpr int kStages = 4;

template <typename T>
struct GroupedArgs {
  const T* x;
  const T* weight;
  T* out;
  const int32_t* tokens;  // of rows; null where x is in their order
  const int32_t* first_row;
  int num_experts;
  int depth;
  int cols;
};

struct Tile {
  int expert;
  int row;
  int num_rows;
};

// The `index`th tile of rows, counted expert by expert; num_rows is 0 when there are fewer.
template <int kRows>
__device__ Tile find_tile(const int32_t* first_row, int num_experts, int index) {
  __shared__ int scratch[kWarps];
  __shared__ Tile found;
  if (threadIdx.x == 0) found = {0, 0, 0};
  __syncthreads();
  for (int first = 0; first < num_experts; first += kThreads) {
    const int expert = first + threadIdx.x;
    const int begin = expert < num_experts ? first_row[expert] : 0;
    const int rows = expert < num_experts ? first_row[expert + 1] - begin : 0;
    const int tiles = (rows + kRows - 1) / kRows;
    int total = 0;
    const int tile = index - block_exclusive_scan(tiles, scratch, &total);
    if (tile >= 0 && tile < tiles) {
      found = {expert, begin + tile * kRows, min(kRows, rows - tile * kRows)};
    }
    index -= total;
  }
  __syncthreads();
  return found;
}

template <typename T, int kRows>
struct Shared {
  T x[kStages][kRows][kPitch];
  T weight[kStages][kCols][kPitch];
};

// Starts the copies of one tile along k; what lies outside becomes zero.
template <typename T, int kRows>
__device__ void load_tiles(Shared<T, kRows>& shared, int stage, const GroupedArgs<T>& args,
                           const Tile& tile, int col, int k) {
  constexpr int kChunks = kDepth / 8;
  for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
    const int r = i / kChunks;
    const int at = k + i % kChunks * 8;
    const bool valid = r < tile.num_rows && at < args.depth;
    const int row = tile.row + (valid ? r : 0);
    const int64_t source = args.tokens == nullptr ? row : args.tokens[row];
    copy_async_16(shared_address(&shared.x[stage][r][i % kChunks * 8]),
                  args.x + source * args.depth + (valid ? at : 0), valid);
  }
  for (int i = threadIdx.x; i < kCols * kChunks; i += kThreads) {
    const int c = i / kChunks;
    const int at = k + i % kChunks * 8;
    const bool valid = col + c < args.cols && at < args.depth;
    const int64_t row = static_cast<int64_t>(tile.expert) * args.cols + (valid ? col + c : 0);
    copy_async_16(shared_address(&shared.weight[stage][c][i % kChunks * 8]),
                  args.weight + row * args.depth + (valid ? at : 0), valid);
  }
  copy_async_commit();
}

template <typename T, int kRows>
__device__ void multiply_tiles(const Shared<T, kRows>& shared, int stage,
                               float (&acc)[kRows / 16][2][4]) {
  const int lane = threadIdx.x % kWarpSize;
  const int col = threadIdx.x / kWarpSize * 16;
#pragma unroll
  for (int k = 0; k < kDepth; k += 16) {
    uint32_t b[4];
    ldmatrix_x4(b,
                shared_address(
                    &shared.weight[stage][col + lane / 16 * 8 + lane % 8][k + lane / 8 % 2 * 8]));
#pragma unroll
    for (int m = 0; m < kRows / 16; ++m) {
      uint32_t a[4];
      ldmatrix_x4(a, shared_address(&shared.x[stage][m * 16 + lane % 16][k + lane / 16 * 8]));
      mma_16x8x16<T>(acc[m][0], a, b[0], b[1]);
      mma_16x8x16<T>(acc[m][1], a, b[2], b[3]);
    }
  }
}

template <typename T, int kRows>
__global__ void __launch_bounds__(kThreads) grouped_kernel(GroupedArgs<T> args) {
  extern __shared__ uint4 memory[];
  auto& shared = *reinterpret_cast<Shared<T, kRows>*>(memory);
  allow_next_kernel();
  wait_for_previous_kernel();
  const Tile tile = find_tile<kRows>(args.first_row, args.num_experts, blockIdx.y);
  if (tile.num_rows == 0) return;
  const int first_col = blockIdx.x * kCols;
  float acc[kRows / 16][2][4] = {};
  const int steps = (args.depth + kDepth - 1) / kDepth;
  // Past the last tile come groups of no copies, so that one number of groups stays in flight.
  const auto load = [&](int step) {
    if (step < steps) {
      load_tiles(shared, step % kStages, args, tile, first_col, step * kDepth);
    } else {
      copy_async_commit();
    }
  };
  for (int step = 0; step < kStages - 1; ++step) load(step);
  for (int step = 0; step < steps; ++step) {
    copy_async_wait<kStages - 2>();
    __syncthreads();
    load(step + kStages - 1);  // to where the step before was read
    multiply_tiles(shared, step % kStages, acc);
  }
  const int lane = threadIdx.x % kWarpSize;
  const int col = first_col + threadIdx.x / kWarpSize * 16 + lane % 4 * 2;
#pragma unroll
  for (int m = 0; m < kRows / 16; ++m) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = m * 16 + lane / 4 + i / 2 * 8;
      const int at = col + i % 2 * 8;
      if (row >= tile.num_rows || at >= args.cols) continue;
      T* target = args.out + static_cast<int64_t>(tile.row + row) * args.cols + at;
      const float* pair = &acc[m][i % 2][i / 2 * 2];
      *reinterpret_cast<uint32_t*>(target) = pack2<T>(pair[0], pair[1]);
    }
  }
}

template <typename T, int kRows>
void launch_grouped(const DeviceContext& context, const GroupedArgs<T>& args, int num_pairs) {
  const int tiles = num_pairs / kRows + std::min(args.num_experts, num_pairs);
  const LaunchShape shape{.grid = dim3((args.cols + kCols - 1) / kCols, tiles),
                          .block = dim3(kThreads),
                          .shared_bytes = sizeof(Shared<T, kRows>)};
  launch(grouped_kernel<T, kRows>, shape, context.stream, args);
}

}  // namespace

void grouped_linear(const DeviceContext& context, TensorView weight, TensorView x, bool by_token,
                    const ExpertPlan& plan, TensorView out) {
  check(weight.cols() == x.cols() && weight.rows() == plan.num_experts * out.cols() &&
            x.cols() % 8 == 0 && out.cols() % 8 == 0 && x.row_stride == x.cols() &&
            out.row_stride == out.cols() && weight.dtype == x.dtype && out.dtype == x.dtype,
        "grouped_linear: shape");
  if (plan.num_pairs == 0) return;
  // Few rows an expert: a smaller tile wastes less arithmetic. The sum over k has one order in
  // both, so the choice changes no result.
  const bool is_sparse = plan.num_pairs <= 16 * plan.num_experts;
  dispatch_half(x.dtype, [&]<typename T>(T) {
    const GroupedArgs<T> args{x.as<const T>(),
                              weight.as<const T>(),
                              out.as<T>(),
                              by_token ? plan.token_of_row : nullptr,
                              plan.first_row,
                              plan.num_experts,
                              static_cast<int>(x.cols()),
                              static_cast<int>(out.cols())};
    if (is_sparse) {
      launch_grouped<T, 16>(context, args, plan.num_pairs);
    } else {
      launch_grouped<T, 64>(context, args, plan.num_pairs);
    }
  });
}

}  // namespace octavo::cuda
