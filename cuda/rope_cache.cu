// One thread handles a unit of one head of one token: two runs of kWords words, which it rotates
// against each other, or copies. A rotated head has units for its leading part and for the part
// that passes through; the heads of v only pass. Runs are 16 bytes wide where the sizes allow.
// Bytes: read T * width, write T * (q width + 2 k width + v width).
#include "cuda/common/element.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/rope_cache.h"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256;

template <typename T, typename KV>
struct RopeArgs {
  T* qkv;
  const float* cos;
  const float* sin;
  const int32_t* positions;
  const int64_t* slots;
  KV* keys;
  KV* values;
  int64_t num_items;
  int rotary_dim;
  int num_q_heads;
  int num_kv_heads;
  int head_dim;
  int block_size;
};

// kWords consecutive words of two elements.
template <int kWords>
struct alignas(4 * kWords) Run {
  uint32_t words[kWords];
};

template <int kWords, typename T>
__device__ Run<kWords>& run_at(T* head, int at) {
  return *reinterpret_cast<Run<kWords>*>(head + at);
}

// A run at element `at` of a cached head.
template <typename T, int kWords, typename KV>
__device__ void store_cached(KV* head, int at, const Run<kWords>& run) {
  if constexpr (sizeof(KV) == 1) {
    struct alignas(2 * kWords) Narrow {
      uint16_t pairs[kWords];
    } narrow;
#pragma unroll
    for (int i = 0; i < kWords; ++i) narrow.pairs[i] = word_to_fp8x2<T>(run.words[i]);
    *reinterpret_cast<Narrow*>(head + at) = narrow;
  } else {
    run_at<kWords>(head, at) = run;
  }
}

// Where the unit's runs lie in the head, and their new values.
template <int kWords>
struct Unit {
  int at[2];
  Run<kWords> run[2];
};

// The cosines and sines of a unit's 2 * kWords pairs.
template <int kWords>
struct Angles {
  float2 cos[kWords];
  float2 sin[kWords];
};

template <int kWords>
__device__ Angles<kWords> load_angles(const float* cos, const float* sin) {
  Angles<kWords> angles;
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    angles.cos[w] = *reinterpret_cast<const float2*>(cos + 2 * w);
    angles.sin[w] = *reinterpret_cast<const float2*>(sin + 2 * w);
  }
  return angles;
}

// Pairs (i, i + half) for the 2 * kWords elements from unit * 2 * kWords on.
template <int kWords, typename T>
__device__ Unit<kWords> rotate_halves(T* head, int unit, int half, const Angles<kWords>& angles) {
  const int first = unit * 2 * kWords;
  Unit<kWords> u{{first, first + half}, {run_at<kWords>(head, first), {}}};
  u.run[1] = run_at<kWords>(head, first + half);
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    const float2 a = unpack2<T>(u.run[0].words[w]);
    const float2 b = unpack2<T>(u.run[1].words[w]);
    const float2 c = angles.cos[w];
    const float2 s = angles.sin[w];
    u.run[0].words[w] = pack2<T>(a.x * c.x - b.x * s.x, a.y * c.y - b.y * s.y);
    u.run[1].words[w] = pack2<T>(b.x * c.x + a.x * s.x, b.y * c.y + a.y * s.y);
  }
  return u;
}

// Pairs (2i, 2i + 1) of the 4 * kWords elements from unit * 4 * kWords on.
template <int kWords, typename T>
__device__ Unit<kWords> rotate_neighbours(T* head, int unit, const Angles<kWords>& angles) {
  const int first = unit * 4 * kWords;
  Unit<kWords> u{{first, first + 2 * kWords},
                 {run_at<kWords>(head, first), run_at<kWords>(head, first + 2 * kWords)}};
#pragma unroll
  for (int w = 0; w < 2 * kWords; ++w) {
    uint32_t& word = u.run[w / kWords].words[w % kWords];
    const float2 a = unpack2<T>(word);
    const float c = w % 2 == 0 ? angles.cos[w / 2].x : angles.cos[w / 2].y;
    const float s = w % 2 == 0 ? angles.sin[w / 2].x : angles.sin[w / 2].y;
    word = pack2<T>(a.x * c - a.y * s, a.y * c + a.x * s);
  }
  return u;
}

template <typename T, typename KV, bool kInterleaved, int kWords>
__global__ void __launch_bounds__(kThreads) rope_cache_kernel(RopeArgs<T, KV> args) {
  allow_next_kernel();
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= args.num_items) return;
  const int units = args.head_dim / (4 * kWords);
  const int num_heads = args.num_q_heads + 2 * args.num_kv_heads;
  const int64_t token = item / (num_heads * units);
  const int rest = static_cast<int>(item - token * num_heads * units);
  const int head = rest / units;
  const int unit = rest - head * units;
  T* x = args.qkv + (token * num_heads + head) * args.head_dim;

  const bool is_value = head >= args.num_q_heads + args.num_kv_heads;
  const bool rotates = !is_value && unit < args.rotary_dim / (4 * kWords);
  if (!rotates && head < args.num_q_heads) return;
  const int half = args.rotary_dim / 2;
  Angles<kWords> angles;
  if (rotates) {
    const int64_t at = static_cast<int64_t>(args.positions[token]) * half + unit * 2 * kWords;
    angles = load_angles<kWords>(args.cos + at, args.sin + at);
  }
  const int64_t slot = args.slots[token];
  wait_for_previous_kernel();
  Unit<kWords> u;
  if (rotates) {
    u = kInterleaved ? rotate_neighbours<kWords>(x, unit, angles)
                     : rotate_halves<kWords>(x, unit, half, angles);
    run_at<kWords>(x, u.at[0]) = u.run[0];
    run_at<kWords>(x, u.at[1]) = u.run[1];
  } else {
    u.at[0] = unit * 4 * kWords;
    u.at[1] = u.at[0] + 2 * kWords;
    u.run[0] = run_at<kWords>(x, u.at[0]);
    u.run[1] = run_at<kWords>(x, u.at[1]);
  }
  if (head < args.num_q_heads || slot < 0) return;
  const int kv_head = head - args.num_q_heads - (is_value ? args.num_kv_heads : 0);
  const int64_t block = slot / args.block_size;
  const int64_t offset = slot - block * args.block_size;
  KV* cached = (is_value ? args.values : args.keys) +
               ((block * args.num_kv_heads + kv_head) * args.block_size + offset) * args.head_dim;
  store_cached<T>(cached, u.at[0], u.run[0]);
  store_cached<T>(cached, u.at[1], u.run[1]);
}

template <int kWords, typename T, typename KV>
void launch_rope(const RopeArgs<T, KV>& args, bool interleaved, cudaStream_t stream) {
  RopeArgs<T, KV> sized = args;
  sized.num_items /= 4 * kWords;
  launch(interleaved ? rope_cache_kernel<T, KV, true, kWords>
                     : rope_cache_kernel<T, KV, false, kWords>,
         {.grid = dim3((sized.num_items + kThreads - 1) / kThreads), .block = dim3(kThreads)},
         stream, sized);
}

}  // namespace

void rope_and_cache(const DeviceContext& context, TensorView qkv, const RopeTable& rope,
                    const ForwardInputs& inputs, const AttentionParams& params,
                    const KVLayer& layer) {
  const int64_t num_heads = params.num_q_heads + 2 * params.num_kv_heads;
  check(qkv.cols() == num_heads * params.head_dim, "rope: width of qkv");
  check(params.head_dim % 4 == 0 && rope.rotary_dim % 4 == 0 && rope.rotary_dim <= params.head_dim,
        "rope: rotary_dim");
  if (qkv.rows() == 0) return;
  constexpr int kWideWords = 4;
  const bool is_wide =
      rope.rotary_dim % (4 * kWideWords) == 0 && params.head_dim % (4 * kWideWords) == 0;
  dispatch_half(qkv.dtype, [&]<typename T>(T) {
    const auto run = [&]<typename KV>(KV) {
      const RopeArgs<T, KV> args{qkv.as<T>(),
                                 rope.cos,
                                 rope.sin,
                                 inputs.positions,
                                 inputs.slot_mapping,
                                 static_cast<KV*>(layer.keys),
                                 static_cast<KV*>(layer.values),
                                 qkv.num_elements(),
                                 static_cast<int>(rope.rotary_dim),
                                 static_cast<int>(params.num_q_heads),
                                 static_cast<int>(params.num_kv_heads),
                                 layer.head_dim,
                                 layer.block_size};
      if (is_wide) {
        launch_rope<kWideWords>(args, rope.interleaved, context.stream);
      } else {
        launch_rope<1>(args, rope.interleaved, context.stream);
      }
    };
    if (layer.dtype == DType::kFloat8E4M3) {
      run(fp8{});
    } else {
      check(layer.dtype == qkv.dtype, "rope: cache type");
      run(T{});
    }
  });
}

}  // namespace octavo::cuda
