// A thread for 16 columns of a row. Bound: memory.
#include "base/check.h"
#include "cuda/common/launch.cuh"
#include "cuda/float8_rows.h"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256;

struct PackArgs {
  const uint8_t* rows;  // blocks: a scale, then the values
  uint4* matrix;
  float* scales;
  int64_t row_begin;
  int64_t num_rows;
  int num_groups;      // of 16 columns in a row
  int block_elements;  // columns of a block
};

__global__ void __launch_bounds__(kThreads) pack_kernel(const PackArgs args) {
  const int64_t index = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (index >= args.num_rows * args.num_groups) return;
  const int64_t row = index / args.num_groups, column = index % args.num_groups * 16;
  const int64_t blocks = args.num_groups * 16 / args.block_elements;
  const auto* block = reinterpret_cast<const uint32_t*>(
      args.rows + (row * blocks + column / args.block_elements) * (4 + args.block_elements));
  const uint32_t* w = block + 1 + column % args.block_elements / 4;
  const int64_t target = args.row_begin + row;
  args.matrix[target * args.num_groups + index % args.num_groups] =
      make_uint4(__byte_perm(w[0], w[2], 0x5410), __byte_perm(w[0], w[2], 0x7632),
                 __byte_perm(w[1], w[3], 0x5410), __byte_perm(w[1], w[3], 0x7632));
  if (column == 0) args.scales[target] = __uint_as_float(*block);
}

}  // namespace

void pack_float8_rows(const DeviceContext& context, TensorView rows, int64_t row_begin,
                      TensorView matrix, float* scales) {
  check(rows.dtype == DType::kFloat8Rows && matrix.dtype == DType::kFloat8E4M3 &&
            rows.cols() == matrix.cols() && row_begin >= 0 &&
            row_begin + rows.rows() <= matrix.rows(),
        "pack_float8_rows: shape");
  if (rows.rows() == 0) return;
  const PackArgs args{rows.as<const uint8_t>(),
                      matrix.as<uint4>(),
                      scales,
                      row_begin,
                      rows.rows(),
                      static_cast<int>(rows.cols() / 16),
                      dtype_info(rows.dtype).block_elements};
  const int64_t threads = args.num_rows * args.num_groups;
  launch(pack_kernel,
         {.grid = dim3(static_cast<unsigned>((threads + kThreads - 1) / kThreads)),
          .block = dim3(kThreads),
          .overlap = false},
         context.stream, args);
}

}  // namespace octavo::cuda
