// One thread rotates two pairs, or copies four elements, of one head of one token. A rotated head
// has rotary_dim / 4 threads for its leading part and the rest for the part that passes through;
// the heads of v only pass. Bytes: read T * width, write T * (q width + 2 k width + v width).
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

// Two elements at offset `at` of a cached head.
template <typename T, typename KV>
__device__ void store_cached(KV* head, int at, uint32_t word) {
  if constexpr (sizeof(KV) == 1) {
    *reinterpret_cast<uint16_t*>(head + at) = word_to_fp8x2<T>(word);
  } else {
    *reinterpret_cast<uint32_t*>(head + at) = word;
  }
}

// Where the item's four elements lie in the head, and their new values.
struct Quad {
  int at[2];
  uint32_t word[2];
};

template <typename T>
__device__ uint32_t& word_at(T* head, int at) {
  return *reinterpret_cast<uint32_t*>(head + at);
}

// Pairs (i, i + half) and (i + 1, i + half + 1) of the rotated part; i = 2 * unit.
template <typename T>
__device__ Quad rotate_halves(T* head, int unit, int half, const float* cos, const float* sin) {
  const int i = 2 * unit;
  const float2 a = unpack2<T>(word_at(head, i));
  const float2 b = unpack2<T>(word_at(head, i + half));
  const float2 c = make_float2(cos[i], cos[i + 1]);
  const float2 s = make_float2(sin[i], sin[i + 1]);
  return {{i, i + half},
          {pack2<T>(a.x * c.x - b.x * s.x, a.y * c.y - b.y * s.y),
           pack2<T>(b.x * c.x + a.x * s.x, b.y * c.y + a.y * s.y)}};
}

// Pairs (2i, 2i + 1) for i = 2 * unit and the next.
template <typename T>
__device__ Quad rotate_neighbours(T* head, int unit, const float* cos, const float* sin) {
  Quad quad{{4 * unit, 4 * unit + 2}, {}};
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const float2 a = unpack2<T>(word_at(head, quad.at[j]));
    const float c = cos[2 * unit + j];
    const float s = sin[2 * unit + j];
    quad.word[j] = pack2<T>(a.x * c - a.y * s, a.y * c + a.x * s);
  }
  return quad;
}

template <typename T, typename KV, bool kInterleaved>
__global__ void __launch_bounds__(kThreads) rope_cache_kernel(RopeArgs<T, KV> args) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= args.num_items) return;
  const int units = args.head_dim / 4;
  const int num_heads = args.num_q_heads + 2 * args.num_kv_heads;
  const int64_t token = item / (num_heads * units);
  const int rest = static_cast<int>(item - token * num_heads * units);
  const int head = rest / units;
  const int unit = rest - head * units;
  T* x = args.qkv + (token * num_heads + head) * args.head_dim;

  const bool is_value = head >= args.num_q_heads + args.num_kv_heads;
  const bool rotates = !is_value && unit < args.rotary_dim / 4;
  if (!rotates && head < args.num_q_heads) return;
  Quad quad;
  if (rotates) {
    const int half = args.rotary_dim / 2;
    const int64_t row = static_cast<int64_t>(args.positions[token]) * half;
    quad = kInterleaved ? rotate_neighbours(x, unit, args.cos + row, args.sin + row)
                        : rotate_halves(x, unit, half, args.cos + row, args.sin + row);
    word_at(x, quad.at[0]) = quad.word[0];
    word_at(x, quad.at[1]) = quad.word[1];
  } else {
    quad.at[0] = 4 * unit;
    quad.at[1] = 4 * unit + 2;
    quad.word[0] = word_at(x, quad.at[0]);
    quad.word[1] = word_at(x, quad.at[1]);
  }
  if (head < args.num_q_heads) return;

  const int64_t slot = args.slots[token];
  if (slot < 0) return;
  const int kv_head = head - args.num_q_heads - (is_value ? args.num_kv_heads : 0);
  const int64_t block = slot / args.block_size;
  const int64_t offset = slot - block * args.block_size;
  KV* cached = (is_value ? args.values : args.keys) +
               ((block * args.num_kv_heads + kv_head) * args.block_size + offset) * args.head_dim;
  store_cached<T>(cached, quad.at[0], quad.word[0]);
  store_cached<T>(cached, quad.at[1], quad.word[1]);
}

}  // namespace

void rope_and_cache(const DeviceContext& context, TensorView qkv, const RopeTable& rope,
                    const ForwardInputs& inputs, const AttentionParams& params,
                    const KVLayer& layer) {
  const int64_t num_heads = params.num_q_heads + 2 * params.num_kv_heads;
  check(qkv.cols() == num_heads * params.head_dim, "rope: width of qkv");
  check(rope.rotary_dim % 4 == 0 && rope.rotary_dim <= params.head_dim, "rope: rotary_dim");
  const int64_t items = qkv.rows() * num_heads * (params.head_dim / 4);
  if (items == 0) return;
  const LaunchShape shape{.grid = dim3((items + kThreads - 1) / kThreads), .block = dim3(kThreads)};
  dispatch_half(qkv.dtype, [&]<typename T>(T) {
    const auto run = [&]<typename KV>(KV) {
      const RopeArgs<T, KV> args{qkv.as<T>(),
                                 rope.cos,
                                 rope.sin,
                                 inputs.positions,
                                 inputs.slot_mapping,
                                 static_cast<KV*>(layer.keys),
                                 static_cast<KV*>(layer.values),
                                 items,
                                 static_cast<int>(rope.rotary_dim),
                                 static_cast<int>(params.num_q_heads),
                                 static_cast<int>(params.num_kv_heads),
                                 layer.head_dim,
                                 layer.block_size};
      launch(rope.interleaved ? rope_cache_kernel<T, KV, true> : rope_cache_kernel<T, KV, false>,
             shape, context.stream, args);
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
