// One block a row; the row stays in registers between the sum of squares and the scaling, so each
// element is read and written once. Bytes: T * hidden times those of an element of x and one of out
// (rms_norm), or twice that (add_rms_norm): with a float32 residual 6 and 12, else 4 and 8.
#include "cuda/common/element.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/rms_norm.h"

namespace octavo::cuda {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kMaxHidden = 16384;

template <typename X, typename Out>
struct NormArgs {
  X* x;              // residual when delta is given, else only read
  const Out* delta;  // may be null
  const float* weight;
  Out* out;
  int64_t x_stride;
  int hidden;
  float eps;
};

// Eight consecutive elements, or four, as floats.
template <typename T, int kWidth>
__device__ void load(const T* p, float (&v)[kWidth]) {
  if constexpr (kWidth == 8) {
    load8(p, v);
  } else if constexpr (std::is_same_v<T, float>) {
    const float4 a = *reinterpret_cast<const float4*>(p);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
  } else {
    const uint2 words = *reinterpret_cast<const uint2*>(p);
    const float2 low = unpack2<T>(words.x), high = unpack2<T>(words.y);
    v[0] = low.x, v[1] = low.y, v[2] = high.x, v[3] = high.y;
  }
}

template <typename T, int kWidth>
__device__ void store(T* p, const float (&v)[kWidth]) {
  if constexpr (kWidth == 8) {
    store8(p, v);
  } else if constexpr (std::is_same_v<T, float>) {
    *reinterpret_cast<float4*>(p) = make_float4(v[0], v[1], v[2], v[3]);
  } else {
    *reinterpret_cast<uint2*>(p) = make_uint2(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]));
  }
}

// Block t handles row t; kVectors times eight elements a thread, in runs of 16 bytes of x that
// adjoin across a warp, so that each access is to whole sectors. Bounded to 32 registers where it
// can be: with 4,096 elements a row, four blocks an SM overlap their loads and stores.
template <typename X, typename Out, bool kAdd, int kVectors>
__global__ void __launch_bounds__(kMaxThreads, kVectors == 1 ? 2 : 1)
    rms_norm_kernel(NormArgs<X, Out> args) {
  __shared__ float scratch[kMaxThreads / kWarpSize];
  constexpr int kWidth = 16 / sizeof(X), kRuns = kVectors * 8 / kWidth;
  const int first =
      threadIdx.x / kWarpSize * (kWarpSize * kVectors * 8) + threadIdx.x % kWarpSize * kWidth;
  const int left = args.hidden - first;  // below 0: none
  allow_next_kernel();
  float w[kRuns][kWidth];  // loaded before the wait: weights do not depend on the previous kernel
#pragma unroll
  for (int j = 0; j < kRuns; ++j) {
    const int i = j * kWarpSize * kWidth;
    if (i < left) load(args.weight + first + i, w[j]);
  }
  wait_for_previous_kernel();
  X* x = args.x + blockIdx.x * args.x_stride + first;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * args.hidden + first;
  float v[kRuns][kWidth];
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < kRuns; ++j) {  // all loads come before the first store: none waits for it
    const int i = j * kWarpSize * kWidth;
    if (i >= left) continue;
    load(x + i, v[j]);
    if constexpr (kAdd) {
      float d[kWidth];
      load(args.delta + row + i, d);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) v[j][k] = round_to<X>(v[j][k] + d[k]);
    }
  }
#pragma unroll
  for (int j = 0; j < kRuns; ++j) {
    const int i = j * kWarpSize * kWidth;
    if (i >= left) continue;
    if constexpr (kAdd) store(x + i, v[j]);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) sum += v[j][k] * v[j][k];
  }
  const float scale = rsqrtf(block_reduce(sum, Sum{}, scratch) / args.hidden + args.eps);
#pragma unroll
  for (int j = 0; j < kRuns; ++j) {
    const int i = j * kWarpSize * kWidth;
    if (i >= left) continue;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) v[j][k] *= scale * w[j][k];
    store(args.out + row + i, v[j]);
  }
}

template <typename X, typename Out, bool kAdd>
void launch_norm(cudaStream_t stream, int64_t rows, const NormArgs<X, Out>& args) {
  check(args.hidden % 8 == 0 && args.hidden <= kMaxHidden, "rms_norm: hidden size");
  const int vectors = args.hidden / 8;
  const int per_thread = vectors > kMaxThreads ? 2 : 1;
  const int threads = (vectors / per_thread + vectors % per_thread + 31) / 32 * 32;
  const LaunchShape shape{.grid = dim3(rows), .block = dim3(threads)};
  launch(per_thread == 1 ? rms_norm_kernel<X, Out, kAdd, 1> : rms_norm_kernel<X, Out, kAdd, 2>,
         shape, stream, args);
}

template <bool kAdd>
void dispatch_norm(cudaStream_t stream, TensorView x, const void* delta, const float* weight,
                   float eps, TensorView out) {
  if (x.rows() == 0) return;
  const int hidden = static_cast<int>(x.cols());
  dispatch_half(out.dtype, [&]<typename Out>(Out) {
    const auto run = [&]<typename X>(X) {
      launch_norm<X, Out, kAdd>(stream, x.rows(),
                                {x.as<X>(), static_cast<const Out*>(delta), weight, out.as<Out>(),
                                 x.row_stride, hidden, eps});
    };
    if (x.dtype == DType::kFloat32) {
      run(float{});
    } else {
      check(x.dtype == out.dtype, "rms_norm: one half type");
      run(Out{});
    }
  });
}

template <typename X, typename T>
__global__ void add_kernel(X* residual, const T* delta, int64_t num_vectors) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= num_vectors) return;
  float a[8];
  float b[8];
  load8(residual + i * 8, a);
  load8(delta + i * 8, b);
#pragma unroll
  for (int k = 0; k < 8; ++k) a[k] += b[k];
  store8(residual + i * 8, a);
}

}  // namespace

void rms_norm(const DeviceContext& context, TensorView x, const float* weight, float eps,
              TensorView out) {
  dispatch_norm<false>(context.stream, x, nullptr, weight, eps, out);
}

void add_rms_norm(const DeviceContext& context, TensorView residual, TensorView delta,
                  const float* weight, float eps, TensorView out) {
  check(delta.dtype == out.dtype, "add_rms_norm: delta has the type of out");
  dispatch_norm<true>(context.stream, residual, delta.data, weight, eps, out);
}

void add(const DeviceContext& context, TensorView residual, TensorView delta) {
  const int64_t vectors = residual.num_elements() / 8;
  check(vectors * 8 == residual.num_elements(), "add: size is a multiple of 8");
  if (vectors == 0) return;
  constexpr int kThreads = 256;
  const LaunchShape shape{.grid = dim3((vectors + kThreads - 1) / kThreads),
                          .block = dim3(kThreads)};
  dispatch_half(delta.dtype, [&]<typename T>(T) {
    if (residual.dtype == DType::kFloat32) {
      launch(add_kernel<float, T>, shape, context.stream, residual.as<float>(), delta.as<T>(),
             vectors);
    } else {
      launch(add_kernel<T, T>, shape, context.stream, residual.as<T>(), delta.as<T>(), vectors);
    }
  });
}

}  // namespace octavo::cuda
