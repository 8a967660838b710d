// The second product of adapters, added to a weight's output. A block takes a tile of rows and 256
// or 512 output features of one part: the shares of the first product are added up in order and
// become fragments of mma.sync m16n8k16 through shared memory, B comes straight from memory, also
// while the kernel before still runs. The depth of a fragment and the columns of a pair of them are
// permuted so that a lane moves 8 bytes at a time. In tiles of 16 rows the warps divide the
// columns, in tiles of 64 the rows. Bytes: B of the step's adapters once a tile, the output twice.
// Bound: latency at decode sizes.
#include "cuda/common/element.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/mma.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/lora_plan.cuh"

namespace octavo::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kPieceCols = 64;   // output features of a warp at a time
constexpr int kRankPadding = 8;  // of a row in shared memory
constexpr int kWideRows = 8192;  // more output features: blocks of twice the size

struct ExpandArgs {
  LoraOperand lora;
  PlanView plan;
  const float* products;
  void* out;
  int64_t out_stride;
  int num_shares;
  int num_pieces;  // of kPieceCols output features, of a block
};

// The part and the first output feature of a block.
struct Columns {
  int part;
  int begin;
};

__device__ Columns find_columns(const LoraOperand& lora, int block, int block_cols) {
  Columns columns{0, block * block_cols};
#pragma unroll
  for (int p = 0; p + 1 < kMaxLoraParts; ++p) {
    const int blocks = (static_cast<int>(lora.parts[p].num_rows) + block_cols - 1) / block_cols;
    if (columns.part == p && p + 1 < lora.num_parts && columns.begin >= blocks * block_cols) {
      columns.begin -= blocks * block_cols;
      ++columns.part;
    }
  }
  return columns;
}

// The tile's first product of one part as T in shared memory [kRows][rank + kRankPadding]: the sum
// over the shares, those with an even index first. Two threads an element of four.
template <typename T, int kRows>
__device__ void sum_shares(const ExpandArgs& args, const LoraTile& tile, int part, int rank,
                           T* shared) {
  const int64_t row_floats = static_cast<int64_t>(args.lora.num_parts) * args.lora.max_rank;
  const int64_t share_floats = args.plan.num_rows * row_floats;
  const int quads = rank / 4;
  for (int i = threadIdx.x / 2; i < kRows * quads; i += kThreads / 2) {
    const int row = i / quads;
    const int col = i % quads * 4;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (row < tile.count) {
      const float* source = args.products + (tile.first + row) * row_floats +
                            part * args.lora.max_rank + col + threadIdx.x % 2 * share_floats;
#pragma unroll 4
      for (int share = threadIdx.x % 2; share < args.num_shares; share += 2) {
        const float4 v = *reinterpret_cast<const float4*>(source);
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
        source += 2 * share_floats;
      }
    }
    const uint32_t pair = 3u << (threadIdx.x % kWarpSize / 2 * 2);
    sum.x += __shfl_xor_sync(pair, sum.x, 1);
    sum.y += __shfl_xor_sync(pair, sum.y, 1);
    sum.z += __shfl_xor_sync(pair, sum.z, 1);
    sum.w += __shfl_xor_sync(pair, sum.w, 1);
    if (threadIdx.x % 2 == 0) {
      *reinterpret_cast<uint2*>(shared + row * (rank + kRankPadding) + col) =
          make_uint2(pack2<T>(sum.x, sum.y), pack2<T>(sum.z, sum.w));
    }
  }
}

// B fragments of a piece at depth k: of pair i the lane's columns are 4 (g / 2) + 2 t + g % 2 of
// the 16, t = 0 and 1, and its depths 4q .. 4q + 3.
template <typename T>
__device__ void load_b(const T* b, int rank, int col, int num_cols, int k,
                       uint2 (&words)[kPieceCols / 16][2]) {
  const int lane = threadIdx.x % kWarpSize;
  const int g = lane / 4;
#pragma unroll
  for (int i = 0; i < kPieceCols / 16; ++i) {
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      const int c = col + i * 16 + g / 2 * 4 + t * 2 + g % 2;
      words[i][t] = c < num_cols ? *reinterpret_cast<const uint2*>(
                                       b + static_cast<int64_t>(c) * rank + k + lane % 4 * 4)
                                 : make_uint2(0, 0);
    }
  }
}

// target += scale * (c0[at], c0[at + 1], c1[at], c1[at + 1]): four columns of one row.
template <typename T>
__device__ void add_four(T* target, uint2 before, const float (&c0)[4], const float (&c1)[4],
                         int at, float scale) {
  const float2 low = unpack2<T>(before.x);
  const float2 high = unpack2<T>(before.y);
  *reinterpret_cast<uint2*>(target) =
      make_uint2(pack2<T>(low.x + scale * c0[at], low.y + scale * c0[at + 1]),
                 pack2<T>(high.x + scale * c1[at], high.y + scale * c1[at + 1]));
}

template <typename T, int kRows>
__global__ void __launch_bounds__(kThreads) expand_kernel(ExpandArgs args) {
  extern __shared__ uint4 memory[];
  T* shrunk = reinterpret_cast<T*>(memory);
  allow_next_kernel();
  const LoraTile tile = args.plan.tiles[blockIdx.x];
  const Columns columns = find_columns(args.lora, blockIdx.y, args.num_pieces * kPieceCols);
  const LoraPart& part = args.lora.parts[columns.part];
  const LoraPartInfo info = args.lora.infos[tile.slot * args.lora.num_parts + columns.part];
  if (tile.count == 0 || info.rank == 0) {
    wait_for_previous_kernel();
    return;
  }
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  const int num_cols = static_cast<int>(part.num_rows);
  const T* b =
      static_cast<const T*>(args.lora.b) +
      (static_cast<int64_t>(tile.slot) * args.lora.out_rows + part.row_begin) * args.lora.max_rank;
  // In tiles of 16 rows the warps divide the columns, else the rows.
  const int first_row = kRows == 16 ? 0 : warp * 16;
  const int first_piece = kRows == 16 ? warp : 0;
  const int piece_step = kRows == 16 ? kWarps : 1;
  T* rows[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = first_row + lane / 4 + i * 8;
    const int row = args.plan.rows[tile.first + min(r, tile.count - 1)];
    rows[i] = r < tile.count ? static_cast<T*>(args.out) + row * args.out_stride + part.row_begin
                             : nullptr;
  }
  uint2 words[kPieceCols / 16][2];
  load_b(b, info.rank, columns.begin + first_piece * kPieceCols, num_cols, 0, words);
  wait_for_previous_kernel();
  sum_shares<T, kRows>(args, tile, columns.part, info.rank, shrunk);
  __syncthreads();
  const int pitch = info.rank + kRankPadding;
  for (int piece = first_piece; piece < args.num_pieces; piece += piece_step) {
    const int col = columns.begin + piece * kPieceCols;
    if (col >= num_cols) break;
    uint2 before[kPieceCols / 16][2];
#pragma unroll
    for (int i = 0; i < kPieceCols / 16; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int c = col + i * 16 + lane % 4 * 4;
        if (rows[half] != nullptr && c < num_cols) {
          before[i][half] = *reinterpret_cast<const uint2*>(rows[half] + c);
        }
      }
    }
    float acc[kPieceCols / 16][2][4] = {};
    for (int k = 0; k < info.rank; k += 16) {
      if (piece != first_piece || k > 0) load_b(b, info.rank, col, num_cols, k, words);
      const T* source = shrunk + (first_row + lane / 4) * pitch + k + lane % 4 * 4;
      const uint2 upper = *reinterpret_cast<const uint2*>(source);
      const uint2 lower = *reinterpret_cast<const uint2*>(source + 8 * pitch);
      const uint32_t a[4] = {upper.x, lower.x, upper.y, lower.y};
#pragma unroll
      for (int i = 0; i < kPieceCols / 16; ++i) {
        mma_16x8x16<T>(acc[i][0], a, words[i][0].x, words[i][0].y);
        mma_16x8x16<T>(acc[i][1], a, words[i][1].x, words[i][1].y);
      }
    }
#pragma unroll
    for (int i = 0; i < kPieceCols / 16; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int c = col + i * 16 + lane % 4 * 4;
        if (rows[half] == nullptr || c >= num_cols) continue;
        add_four(rows[half] + c, before[i][half], acc[i][0], acc[i][1], half * 2, info.scale);
      }
    }
  }
}

int64_t column_blocks(const LoraOperand& lora, int64_t block_cols) {
  int64_t blocks = 0;
  for (int p = 0; p < lora.num_parts; ++p) {
    blocks += (lora.parts[p].num_rows + block_cols - 1) / block_cols;
  }
  return blocks;
}

int pieces_of(const LoraOperand& lora) {
  constexpr int kPieces = 4;
  return lora.out_rows > kWideRows ? 2 * kPieces : kPieces;
}

}  // namespace

void LoraLinear::expand(const DeviceContext& context, const LoraOperand& lora, const LoraPlan& plan,
                        TensorView out) const {
  check(out.rows() == plan.num_rows && out.cols() == lora.out_rows && out.row_stride % 4 == 0,
        "add_lora: output");
  if (plan.num_rows == 0) return;
  const ExpandArgs args{
      lora,
      plan_view(context, plan),
      products_.back().as<const float>(),
      out.data,
      out.row_stride,
      static_cast<int>(lora_shares(context, plan.num_rows, lora.in_features).count),
      pieces_of(lora)};
  const dim3 grid(args.plan.num_tiles, column_blocks(lora, args.num_pieces * kPieceCols));
  const size_t row_bytes = (lora.max_rank + kRankPadding) * sizeof(uint16_t);
  dispatch_half(out.dtype, [&]<typename T>(T) {
    if (args.plan.tile_rows == 16) {
      launch(expand_kernel<T, 16>,
             {.grid = grid, .block = dim3(kThreads), .shared_bytes = 16 * row_bytes},
             context.stream, args);
    } else {
      launch(expand_kernel<T, 64>,
             {.grid = grid, .block = dim3(kThreads), .shared_bytes = 64 * row_bytes},
             context.stream, args);
    }
  });
}

}  // namespace octavo::cuda
