// One block a run of one token, eight elements a thread and turn; the second reading finds the run
// in the cache. Bytes: 2 * T * (q width + k width) * 2.
#include <algorithm>

#include "cuda/common/element.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/qk_norm.h"

namespace octavo::cuda {
namespace {

constexpr int kMaxThreads = 512;

struct QkNormShape {
  int64_t row_stride;
  int q_runs;
  int k_runs;
};

template <typename T>
__global__ void __launch_bounds__(kMaxThreads)
    qk_norm_kernel(T* qkv, QkNorm norm, QkNormShape shape) {
  __shared__ float scratch[kMaxThreads / kWarpSize];
  allow_next_kernel();
  wait_for_previous_kernel();
  const int num_runs = shape.q_runs + shape.k_runs;
  const int64_t token = blockIdx.x / num_runs;
  const int run = static_cast<int>(blockIdx.x % num_runs);
  const bool is_q = run < shape.q_runs;
  const int size = static_cast<int>(is_q ? norm.q_run : norm.k_run);
  const float* weight = is_q ? norm.q_weight : norm.k_weight;
  const int64_t begin =
      is_q ? run * norm.q_run : shape.q_runs * norm.q_run + (run - shape.q_runs) * norm.k_run;
  T* x = qkv + token * shape.row_stride + begin;
  float v[8];
  float sum = 0.0f;
  for (int i = threadIdx.x * 8; i < size; i += blockDim.x * 8) {
    load8(x + i, v);
#pragma unroll
    for (int k = 0; k < 8; ++k) sum += v[k] * v[k];
  }
  const float scale = rsqrtf(block_reduce(sum, Sum{}, scratch) / size + norm.eps);
  for (int i = threadIdx.x * 8; i < size; i += blockDim.x * 8) {
    float w[8];
    load8(x + i, v);
    load8(weight + i, w);
#pragma unroll
    for (int k = 0; k < 8; ++k) v[k] *= scale * w[k];
    store8(x + i, v);
  }
}

}  // namespace

void qk_norm(const DeviceContext& context, TensorView qkv, const QkNorm& norm,
             const AttentionParams& params) {
  const int64_t q_size = params.num_q_heads * params.head_dim;
  const int64_t k_size = params.num_kv_heads * params.head_dim;
  check(q_size % norm.q_run == 0 && k_size % norm.k_run == 0 && norm.q_run % 8 == 0 &&
            norm.k_run % 8 == 0 && qkv.row_stride % 8 == 0,
        "qk_norm: runs");
  if (qkv.rows() == 0) return;
  const QkNormShape shape{qkv.row_stride, static_cast<int>(q_size / norm.q_run),
                          static_cast<int>(k_size / norm.k_run)};
  const auto longest = static_cast<int>(std::max(norm.q_run, norm.k_run) / 8);
  const int threads = std::min((longest + kWarpSize - 1) / kWarpSize * kWarpSize, kMaxThreads);
  const LaunchShape launch_shape{.grid = dim3(qkv.rows() * (shape.q_runs + shape.k_runs)),
                                 .block = dim3(threads)};
  dispatch_half(qkv.dtype, [&]<typename T>(T) {
    launch(qk_norm_kernel<T>, launch_shape, context.stream, qkv.as<T>(), norm, shape);
  });
}

}  // namespace octavo::cuda
