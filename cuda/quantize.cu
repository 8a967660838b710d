// One block a row, read twice: for the maximum, then for the division. Bytes: 3 * R * K.
#include "cuda/common/element.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/quantize.h"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256;
constexpr float kMaxFp8 = 448.0f;

template <typename T>
struct QuantizeArgs {
  const T* x;
  uint4* out;
  float* scales;
  int64_t x_stride;
  int num_groups;  // of 16 columns
};

template <typename T>
__device__ void load16(const T* p, float (&v)[16]) {
  float low[8];
  float high[8];
  load8(p, low);
  load8(p + 8, high);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    v[i] = low[i];
    v[i + 8] = high[i];
  }
}

__device__ inline uint32_t pack_fp8(float a, float b, float c, float d) {
  const uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3);
  const uint32_t high = __nv_cvt_float2_to_fp8x2(make_float2(c, d), __NV_SATFINITE, __NV_E4M3);
  return low | high << 16;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) quantize_kernel(QuantizeArgs<T> args) {
  __shared__ float scratch[kThreads / kWarpSize];
  allow_next_kernel();
  wait_for_previous_kernel();
  const T* x = args.x + blockIdx.x * args.x_stride;
  float v[16];
  float maximum = 0.0f;
  for (int group = threadIdx.x; group < args.num_groups; group += kThreads) {
    load16(x + group * 16, v);
#pragma unroll
    for (int i = 0; i < 16; ++i) maximum = fmaxf(maximum, fabsf(v[i]));
  }
  maximum = block_reduce(maximum, Max{}, scratch);
  const float scale = maximum > 0.0f ? maximum / kMaxFp8 : 1.0f;
  const float inverse = 1.0f / scale;
  if (threadIdx.x == 0) args.scales[blockIdx.x] = scale;
  uint4* out = args.out + static_cast<int64_t>(blockIdx.x) * args.num_groups;
  for (int group = threadIdx.x; group < args.num_groups; group += kThreads) {
    load16(x + group * 16, v);  // from a cache by now
    uint32_t words[4];
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      words[q] = pack_fp8(v[2 * q] * inverse, v[2 * q + 1] * inverse, v[2 * q + 8] * inverse,
                          v[2 * q + 9] * inverse);
    }
    out[group] = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

}  // namespace

void quantize_rows(const DeviceContext& context, TensorView x, TensorView out, float* scales) {
  check(x.cols() % 16 == 0 && x.row_stride % 16 == 0 && out.dtype == DType::kFloat8E4M3 &&
            out.rows() == x.rows() && out.cols() == x.cols(),
        "quantize_rows: shape");
  if (x.rows() == 0) return;
  dispatch_half(x.dtype, [&]<typename T>(T) {
    const QuantizeArgs<T> args{x.as<const T>(), static_cast<uint4*>(out.data), scales, x.row_stride,
                               static_cast<int>(x.cols() / 16)};
    launch(quantize_kernel<T>, {.grid = dim3(x.rows()), .block = dim3(kThreads)}, context.stream,
           args);
  });
}

}  // namespace octavo::cuda
