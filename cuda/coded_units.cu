// Packing: a thread a word of codes, then a thread a group's terms. A word of four-bit codes is of
// two rows; where only one of them is at hand, it is merged in, so that tensors of any number of
// rows can follow each other. Unpacking: a block a unit, through shared memory. Bound: memory.
#include "cuda/coded_units.cuh"
#include "cuda/coded_units.h"
#include "cuda/common/element.cuh"
#include "cuda/common/launch.cuh"

namespace octavo::cuda {
namespace {

constexpr int kPackThreads = 256;
constexpr int kUnpackThreads = 128;

struct PackArgs {
  const uint8_t* rows;  // blocks: a word of terms, then the codes
  uint8_t* units;
  UnitLayout layout;
  int64_t num_rows;
  int64_t row_begin;
  int64_t first_word;  // of the row block that row_begin lies in
  int64_t num_words;
  int64_t block_size;  // columns of a block of `rows`

  __device__ const uint8_t* block(int64_t row, int64_t column) const {
    const int64_t block_bytes = 4 + block_size * layout.code_bits / 8;
    return rows + (row * (layout.cols / block_size) + column / block_size) * block_bytes;
  }
  // The codes of `column` and `column` + 1; zero outside of the matrix.
  __device__ uint32_t two_codes(int64_t row, int64_t column) const {
    if (column >= layout.cols) return 0;
    const uint8_t* codes = block(row, column) + 4 + column % block_size * layout.code_bits / 8;
    return layout.code_bits == 4 ? codes[0] : codes[0] | codes[1] << 8;
  }
};

// Where a word of codes lies: its unit, and the first row and column of what it holds.
struct CodeWord {
  int64_t unit;
  int word;     // of the unit
  int64_t row;  // of the rows at hand
  int64_t column;

  __device__ CodeWord(const PackArgs& args, int64_t index) {
    const auto words_per_unit = static_cast<int>(args.layout.code_bytes() / 4);
    const int64_t at = args.first_word + index;
    unit = at / words_per_unit;
    word = static_cast<int>(at % words_per_unit);
    const int lane = word / 4 % 32, warp = word / 128 % 4, run = word / 512;
    const bool is_int4 = args.layout.code_bits == 4;
    const int step = is_int4 ? run * 4 + word % 4 : run * 2 + word % 4 / 2;
    const int second = is_int4 ? 0 : word % 2 * 8;
    const int64_t units = args.layout.units_per_row_block();
    row = unit / units * kUnitRows + warp * 16 + lane / 4 + second - args.row_begin;
    column = unit % units * kUnitDepth + step * 16 + lane % 4 * 2;
  }
};

__global__ void __launch_bounds__(kPackThreads) pack_codes_kernel(const PackArgs args) {
  const int64_t index = blockIdx.x * int64_t{kPackThreads} + threadIdx.x;
  if (index >= args.num_words) return;
  const CodeWord at(args, index);
  auto* target = reinterpret_cast<uint32_t*>(args.units + at.unit * args.layout.unit_bytes());
  const bool has_first = at.row >= 0 && at.row < args.num_rows;
  if (args.layout.code_bits == 8) {
    if (!has_first) return;
    target[at.word] = args.two_codes(at.row, at.column) | args.two_codes(at.row, at.column + 8)
                                                              << 16;
    return;
  }
  const bool has_second = at.row + 8 >= 0 && at.row + 8 < args.num_rows;
  if (!has_first && !has_second) return;
  uint32_t value = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (!(i % 2 == 0 ? has_first : has_second)) continue;
    const uint32_t pair = args.two_codes(at.row + i % 2 * 8, at.column + i / 2 * 8);
    value |= (pair & 15) << (4 * i) | (pair >> 4) << (4 * i + 16);
  }
  if (has_first && has_second) {
    target[at.word] = value;
  } else {
    atomicOr(target + at.word, value);
  }
}

__global__ void __launch_bounds__(kPackThreads) pack_terms_kernel(const PackArgs args) {
  const int64_t groups = args.layout.cols / args.layout.group_size;
  const int64_t index = blockIdx.x * int64_t{kPackThreads} + threadIdx.x;
  if (index >= args.num_rows * groups) return;
  const int64_t row = args.row_begin + index / groups, group = index % groups;
  const int64_t per_unit = args.layout.groups_per_unit();
  const int64_t unit = row / kUnitRows * args.layout.units_per_row_block() + group / per_unit;
  auto* terms = reinterpret_cast<uint32_t*>(args.units + unit * args.layout.unit_bytes() +
                                            args.layout.code_bytes());
  terms[group % per_unit * kUnitRows + row % kUnitRows] = *reinterpret_cast<const uint32_t*>(
      args.block(index / groups, group * args.layout.group_size));
}

template <typename T>
struct UnpackArgs {
  const uint8_t* units;
  T* out;
  int64_t units_per_row_block;
  int64_t cols;
  int64_t first_block;  // of rows
  int64_t num_rows;
};

template <typename T, typename Units>
__global__ void __launch_bounds__(kUnpackThreads) unpack_kernel(const UnpackArgs<T> args) {
  constexpr int kPitch = kUnitDepth / 2 + 4;  // words of a row: no bank conflicts
  constexpr int kStepsOfRun = 4 / Units::kStepWords;
  __shared__ uint32_t tile[kUnitRows][kPitch];
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t index = (args.first_block + blockIdx.y) * args.units_per_row_block + blockIdx.x;
  const uint8_t* unit = args.units + index * Units::kUnitBytes;
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
  const auto* terms = reinterpret_cast<const uint32_t*>(unit + Units::kCodeBytes);
#pragma unroll
  for (int run = 0; run < Units::kLaneWords / 4; ++run) {
    const uint4 four = reinterpret_cast<const uint4*>(unit)[run * kUnpackThreads + threadIdx.x];
    const uint32_t words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int j = 0; j < kStepsOfRun; ++j) {
      const int step = run * kStepsOfRun + j;
      const uint32_t* group = terms + step * Units::kGroups / 8 * kUnitRows + row;
      const typename Units::template Terms<T> first(group[0]), second(group[8]);
      uint32_t a[4];
      Units::template operand<T>(words + j * Units::kStepWords, first, second, a);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 v = unpack2<T>(a[i]);
        const float scale = i % 2 == 0 ? first.scale : second.scale;
        tile[row + i % 2 * 8][step * 8 + i / 2 * 4 + lane % 4] = pack2<T>(v.x * scale, v.y * scale);
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kUnitRows * 16; i += kUnpackThreads) {
    const int r = i / 16, chunk = i % 16;
    const int64_t out_row = blockIdx.y * int64_t{kUnitRows} + r;
    const int64_t column = blockIdx.x * int64_t{kUnitDepth} + chunk * 8;
    if (out_row >= args.num_rows || column >= args.cols) continue;
    *reinterpret_cast<uint4*>(args.out + out_row * args.cols + column) =
        *reinterpret_cast<const uint4*>(&tile[r][chunk * 4]);
  }
}

unsigned blocks_for(int64_t threads) {
  return static_cast<unsigned>((threads + kPackThreads - 1) / kPackThreads);
}

}  // namespace

void pack_units(const DeviceContext& context, TensorView rows, TensorView matrix,
                int64_t row_begin) {
  const bool spreads_rows =
      matrix.dtype == DType::kFloat8Blocks && rows.dtype == DType::kFloat8Rows;
  check(has_units(matrix.dtype) && (rows.dtype == matrix.dtype || spreads_rows) &&
            rows.cols() == matrix.cols() && row_begin >= 0 &&
            row_begin + rows.rows() <= matrix.rows(),
        "pack_units: shape");
  if (rows.rows() == 0) return;
  const UnitLayout layout = unit_layout(matrix);
  const int64_t first_block = row_begin / kUnitRows;
  const int64_t last_block = (row_begin + rows.rows() - 1) / kUnitRows;
  const int64_t words_per_block = layout.units_per_row_block() * layout.code_bytes() / 4;
  const PackArgs args{rows.as<const uint8_t>(),
                      matrix.as<uint8_t>(),
                      layout,
                      rows.rows(),
                      row_begin,
                      first_block * words_per_block,
                      (last_block - first_block + 1) * words_per_block,
                      dtype_info(rows.dtype).block_elements};
  const auto launch_for = [&](void (*kernel)(PackArgs), int64_t threads) {
    launch(kernel,
           {.grid = dim3(blocks_for(threads)), .block = dim3(kPackThreads), .overlap = false},
           context.stream, args);
  };
  launch_for(pack_codes_kernel, args.num_words);
  launch_for(pack_terms_kernel, rows.rows() * layout.cols / layout.group_size);
}

void unpack_units(const DeviceContext& context, TensorView matrix, int64_t row_begin,
                  TensorView out) {
  check(row_begin % kUnitRows == 0 && row_begin + out.rows() <= matrix.rows() &&
            out.cols() == matrix.cols() && out.row_stride == out.cols(),
        "unpack_units: shape");
  if (out.rows() == 0) return;
  const int64_t units = unit_layout(matrix).units_per_row_block();
  dispatch_half(out.dtype, [&]<typename T>(T) {
    dispatch_units(matrix.dtype, [&]<typename Units>(Units) {
      const UnpackArgs<T> args{matrix.as<const uint8_t>(), out.as<T>(), units, out.cols(),
                               row_begin / kUnitRows,      out.rows()};
      const LaunchShape shape{
          .grid = dim3(static_cast<unsigned>((out.cols() + kUnitDepth - 1) / kUnitDepth),
                       static_cast<unsigned>((out.rows() + kUnitRows - 1) / kUnitRows)),
          .block = dim3(kUnpackThreads)};
      launch(unpack_kernel<T, Units>, shape, context.stream, args);
    });
  });
}

}  // namespace octavo::cuda
