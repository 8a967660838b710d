// One block a row, copied 16 bytes a thread and turn whatever the element type.
#include "cuda/common/launch.cuh"
#include "cuda/gather_rows.h"

namespace octavo::cuda {
namespace {

__global__ void gather_kernel(const uint4* x, const int32_t* indices, uint4* out, int vectors) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const uint4* source = x + static_cast<int64_t>(indices[blockIdx.x]) * vectors;
  uint4* target = out + static_cast<int64_t>(blockIdx.x) * vectors;
  for (int i = threadIdx.x; i < vectors; i += blockDim.x) target[i] = source[i];
}

}  // namespace

void gather_rows(const DeviceContext& context, TensorView x, const int32_t* indices,
                 TensorView out) {
  const int64_t row_bytes = dtype_bytes(x.dtype, x.cols());
  check(x.dtype == out.dtype && x.cols() == out.cols() && row_bytes % 16 == 0, "gather: shape");
  if (out.rows() == 0) return;
  const LaunchShape shape{.grid = dim3(out.rows()), .block = dim3(128)};
  launch(gather_kernel, shape, context.stream, x.as<uint4>(), indices, out.as<uint4>(),
         static_cast<int>(row_bytes / 16));
}

}  // namespace octavo::cuda
