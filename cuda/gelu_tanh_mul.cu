// Eight elements a thread, computed in float32. gelu(g) = g / (1 + e^-2y) with
// y = sqrt(2 / pi) (g + 0.044715 g^3). Bytes: 3 * T * intermediate * 2.
#include "cuda/common/element.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/gelu_tanh_mul.h"

namespace octavo::cuda {
namespace {

__device__ float gelu_tanh(float g) {
  constexpr float kSlope = -1.5957691216057308f;  // -2 sqrt(2 / pi)
  return __fdividef(g, 1.0f + __expf(kSlope * g * (1.0f + 0.044715f * g * g)));
}

template <typename T>
__global__ void gelu_tanh_mul_kernel(const T* gate_up, T* out, int intermediate,
                                     int64_t num_vectors) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= num_vectors) return;
  const int64_t row = i * 8 / intermediate;
  const T* gate = gate_up + i * 8 + row * intermediate;
  float g[8];
  float u[8];
  load8(gate, g);
  load8(gate + intermediate, u);
#pragma unroll
  for (int k = 0; k < 8; ++k) g[k] = gelu_tanh(g[k]) * u[k];
  store8(out + i * 8, g);
}

}  // namespace

void gelu_tanh_mul(const DeviceContext& context, TensorView gate_up, TensorView out) {
  const int intermediate = static_cast<int>(out.cols());
  check(intermediate % 8 == 0 && gate_up.cols() == 2 * intermediate, "gelu_tanh_mul: shape");
  const int64_t vectors = out.rows() * intermediate / 8;
  if (vectors == 0) return;
  constexpr int kThreads = 256;
  const LaunchShape shape{.grid = dim3((vectors + kThreads - 1) / kThreads),
                          .block = dim3(kThreads)};
  dispatch_half(out.dtype, [&]<typename T>(T) {
    launch(gelu_tanh_mul_kernel<T>, shape, context.stream, gate_up.as<T>(), out.as<T>(),
           intermediate, vectors);
  });
}

}  // namespace octavo::cuda
