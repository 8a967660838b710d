// One element a thread and turn, computed in float32. Bytes: twice the size of x.
#include "cuda/common/element.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/scale.h"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 8;

struct Scale {
  float factor;
  __device__ float operator()(float x) const { return x * factor; }
};
struct SoftCap {
  float cap;
  __device__ float operator()(float x) const { return cap * tanhf(x / cap); }
};

template <typename T, typename Op>
__global__ void __launch_bounds__(kThreads) map_kernel(T* x, int64_t size, Op op) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads * kPerThread + threadIdx.x;
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) {
    const int64_t i = first + k * kThreads;
    if (i < size) x[i] = from_float<T>(op(to_float(x[i])));
  }
}

template <typename T, typename Op>
void map(const DeviceContext& context, TensorView x, Op op) {
  const int64_t size = x.num_elements();
  check(x.row_stride == x.cols(), "scale: x is contiguous");
  if (size == 0) return;
  constexpr int kPerBlock = kThreads * kPerThread;
  const LaunchShape shape{.grid = dim3((size + kPerBlock - 1) / kPerBlock),
                          .block = dim3(kThreads)};
  launch(map_kernel<T, Op>, shape, context.stream, x.as<T>(), size, op);
}

}  // namespace

void scale(const DeviceContext& context, TensorView x, float factor) {
  dispatch_float(x.dtype, [&]<typename T>(T) { map<T>(context, x, Scale{factor}); });
}

void soft_cap(const DeviceContext& context, TensorView x, float cap) {
  check(x.dtype == DType::kFloat32, "soft_cap: x is float32");
  map<float>(context, x, SoftCap{cap});
}

}  // namespace octavo::cuda
