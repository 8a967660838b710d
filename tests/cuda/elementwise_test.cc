// Embedding, normalisation, activation, gather, rotary embedding with the cache write.
#include <algorithm>
#include <numeric>

#include "checker.h"
#include "cuda/embedding.h"
#include "cuda/gather_rows.h"
#include "cuda/kv_cache.h"
#include "cuda/rms_norm.h"
#include "cuda/rope_cache.h"
#include "cuda/silu_mul.h"

namespace octavo::cuda::testing {
namespace {

constexpr DType kHalfTypes[] = {DType::kBFloat16, DType::kFloat16};

std::vector<double> normalized(const std::vector<float>& x, const std::vector<float>& weight,
                               int64_t hidden, double eps) {
  std::vector<double> out(x.size());
  for (size_t row = 0; row < x.size(); row += hidden) {
    double sum = 0.0;
    for (int64_t i = 0; i < hidden; ++i) sum += double{x[row + i]} * x[row + i];
    const double scale = 1.0 / std::sqrt(sum / static_cast<double>(hidden) + eps);
    for (int64_t i = 0; i < hidden; ++i) out[row + i] = x[row + i] * scale * weight[i];
  }
  return out;
}

CUDA_TEST(embedding_copies_rows) {
  for (const DType dtype : kHalfTypes) {
    for (const DType out_dtype : {dtype, DType::kFloat32}) {
      const int64_t vocab = 1000, hidden = 576, tokens = random_int(1, 300);
      const auto values = random_values(vocab * hidden, dtype);
      const Array table(dtype, values);
      std::vector<int32_t> ids(tokens);
      for (int32_t& id : ids) id = static_cast<int32_t>(random_int(0, vocab - 1));
      const DeviceMemory device_ids = upload(ids);
      const Array out(out_dtype, tokens * hidden);
      embed(context(), table.matrix(vocab, hidden), device_ids.as<int32_t>(),
            out.matrix(tokens, hidden));
      const auto got = out.download();
      bool same = true;
      for (int64_t i = 0; i < tokens * hidden; ++i) {
        same &= got[i] == values[ids[i / hidden] * hidden + i % hidden];
      }
      expect(same, std::string("embedding ") + name_of(out_dtype));
    }
  }
}

CUDA_TEST(rms_norm_matches_reference) {
  for (const DType dtype : kHalfTypes) {
    for (const DType x_dtype : {dtype, DType::kFloat32}) {
      for (const int64_t hidden : {8, 64, 576, 2048, 4096, 8192, 8200, 16384}) {
        const int64_t rows = random_int(1, 40);
        const auto values = random_values(rows * hidden, x_dtype, 3.0f);
        const auto weight = random_values(hidden, DType::kFloat32);
        const Array x(x_dtype, values), w(DType::kFloat32, weight), out(dtype, rows * hidden);
        rms_norm(context(), x.matrix(rows, hidden), w.matrix(1, hidden).as<float>(), 1e-5f,
                 out.matrix(rows, hidden));
        expect_close(out.download(), normalized(values, weight, hidden, 1e-5), tolerance_of(dtype),
                     "rms_norm hidden " + std::to_string(hidden));
      }
    }
  }
}

CUDA_TEST(add_rms_norm_matches_reference) {
  for (const DType dtype : kHalfTypes) {
    for (const DType x_dtype : {dtype, DType::kFloat32}) {
      for (const int64_t hidden : {8, 64, 576, 4096, 8200, 16384}) {
        const int64_t rows = random_int(1, 40);
        auto values = random_values(rows * hidden, x_dtype, 3.0f);
        const auto delta = random_values(rows * hidden, dtype);
        const auto weight = random_values(hidden, DType::kFloat32);
        const Array x(x_dtype, values), d(dtype, delta), w(DType::kFloat32, weight);
        const Array out(dtype, rows * hidden);
        add_rms_norm(context(), x.matrix(rows, hidden), d.matrix(rows, hidden),
                     w.matrix(1, hidden).as<float>(), 1e-6f, out.matrix(rows, hidden));
        for (size_t i = 0; i < values.size(); ++i) {
          values[i] = rounded(values[i] + delta[i], x_dtype);
        }
        expect(x.download() == values, "add_rms_norm: residual");
        expect_close(out.download(), normalized(values, weight, hidden, 1e-6), tolerance_of(dtype),
                     "add_rms_norm hidden " + std::to_string(hidden));
      }
    }
  }
}

CUDA_TEST(add_rounds_once) {
  for (const DType dtype : kHalfTypes) {
    for (const DType x_dtype : {dtype, DType::kFloat32}) {
      const int64_t size = 8 * random_int(1, 5000);
      auto values = random_values(size, x_dtype);
      const auto delta = random_values(size, dtype);
      const Array x(x_dtype, values), d(dtype, delta);
      add(context(), x.matrix(1, size), d.matrix(1, size));
      for (int64_t i = 0; i < size; ++i) values[i] = rounded(values[i] + delta[i], x_dtype);
      expect(x.download() == values, "add");
    }
  }
}

CUDA_TEST(silu_mul_matches_reference) {
  for (const DType dtype : kHalfTypes) {
    for (const int64_t width : {8, 1536, 14336}) {
      const int64_t rows = random_int(1, 30);
      const auto values = random_values(rows * 2 * width, dtype, 4.0f);
      const Array gate_up(dtype, values), out(dtype, rows * width);
      silu_mul(context(), gate_up.matrix(rows, 2 * width), out.matrix(rows, width));
      std::vector<double> ref(rows * width);
      for (int64_t i = 0; i < rows * width; ++i) {
        const double gate = values[i / width * 2 * width + i % width];
        const double up = values[i / width * 2 * width + width + i % width];
        ref[i] = gate / (1.0 + std::exp(-gate)) * up;
      }
      expect_close(out.download(), ref, tolerance_of(dtype), "silu_mul");
    }
  }
}

CUDA_TEST(gather_copies_rows) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat32}) {
    const int64_t rows = 100, hidden = 4096, count = random_int(1, 100);
    const auto values = random_values(rows * hidden, dtype);
    const Array x(dtype, values), out(dtype, count * hidden);
    std::vector<int32_t> indices(count);
    for (int32_t& i : indices) i = static_cast<int32_t>(random_int(0, rows - 1));
    const DeviceMemory device_indices = upload(indices);
    gather_rows(context(), x.matrix(rows, hidden), device_indices.as<int32_t>(),
                out.matrix(count, hidden));
    const auto got = out.download();
    bool same = true;
    for (int64_t i = 0; i < count * hidden; ++i) {
      same &= got[i] == values[indices[i / hidden] * hidden + i % hidden];
    }
    expect(same, "gather");
  }
}

// One shape of rope_and_cache.
struct RopeCase {
  DType dtype;
  DType kv_dtype;
  int64_t head_dim;
  int64_t rotary_dim;
  bool interleaved;
};

void check_rope(const RopeCase& c) {
  constexpr int64_t kQHeads = 6, kKvHeads = 2, kBlockSize = 16, kBlocks = 20, kPositions = 500;
  const int64_t heads = kQHeads + 2 * kKvHeads, tokens = random_int(1, 100),
                half = c.rotary_dim / 2;
  const auto values = random_values(tokens * heads * c.head_dim, c.dtype);
  const Array qkv(c.dtype, values);
  const auto cos = random_values(kPositions * half, DType::kFloat32);
  const auto sin = random_values(kPositions * half, DType::kFloat32);
  const DeviceMemory device_cos = upload(cos), device_sin = upload(sin);

  std::vector<int64_t> slots(kBlocks * kBlockSize);
  std::iota(slots.begin(), slots.end(), 0);
  std::ranges::shuffle(slots, generator());
  slots.resize(tokens);
  slots[tokens / 2] = -1;
  std::vector<int32_t> positions(tokens);
  for (int32_t& p : positions) p = static_cast<int32_t>(random_int(0, kPositions - 1));
  const DeviceMemory device_slots = upload(slots), device_positions = upload(positions);

  CudaKVCache cache(context(), {2, kKvHeads, c.head_dim, kBlockSize, kBlocks, c.kv_dtype});
  ForwardInputs inputs;
  inputs.positions = device_positions.as<int32_t>();
  inputs.slot_mapping = device_slots.as<int64_t>();
  AttentionParams params;
  params.num_q_heads = kQHeads;
  params.num_kv_heads = kKvHeads;
  params.head_dim = c.head_dim;
  rope_and_cache(context(), qkv.matrix(tokens, heads * c.head_dim),
                 {device_cos.as<float>(), device_sin.as<float>(), c.rotary_dim, c.interleaved},
                 inputs, params, cache.layer(1));

  std::vector<double> ref(values.begin(), values.end());
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t h = 0; h < kQHeads + kKvHeads; ++h) {
      double* x = ref.data() + (t * heads + h) * c.head_dim;
      for (int64_t i = 0; i < half; ++i) {
        double& a = x[c.interleaved ? 2 * i : i];
        double& b = x[c.interleaved ? 2 * i + 1 : i + half];
        const double co = cos[positions[t] * half + i], si = sin[positions[t] * half + i];
        const double old = a;
        a = old * co - b * si;
        b = b * co + old * si;
      }
    }
  }
  const auto rotated = qkv.download();
  expect_close(rotated, ref, tolerance_of(c.dtype), "rope");

  const int64_t size = kBlocks * kKvHeads * kBlockSize * c.head_dim;
  for (int which = 0; which < 2; ++which) {
    const Array copy(c.kv_dtype, size);
    const void* source = which == 0 ? cache.layer(1).keys : cache.layer(1).values;
    check_cuda(
        cudaMemcpy(copy.data(), source, dtype_bytes(c.kv_dtype, size), cudaMemcpyDeviceToDevice));
    std::vector<float> expected(size, 0.0f);
    for (int64_t t = 0; t < tokens; ++t) {
      if (slots[t] < 0) continue;
      for (int64_t h = 0; h < kKvHeads; ++h) {
        const int64_t from = (t * heads + kQHeads + which * kKvHeads + h) * c.head_dim;
        const int64_t to =
            ((slots[t] / kBlockSize * kKvHeads + h) * kBlockSize + slots[t] % kBlockSize) *
            c.head_dim;
        for (int64_t i = 0; i < c.head_dim; ++i) {
          expected[to + i] = rounded(rotated[from + i], c.kv_dtype);
        }
      }
    }
    expect(copy.download() == expected, which == 0 ? "cached keys" : "cached values");
  }
}

CUDA_TEST(rope_rotates_and_caches) {
  for (const DType dtype : kHalfTypes) {
    for (const DType kv_dtype : {dtype, DType::kFloat8E4M3}) {
      for (const bool interleaved : {false, true}) {
        check_rope({dtype, kv_dtype, 64, 64, interleaved});
        check_rope({dtype, kv_dtype, 80, 32, interleaved});
        check_rope({dtype, kv_dtype, 80, 20, interleaved});
        check_rope({dtype, kv_dtype, 96, 96, interleaved});
        check_rope({dtype, kv_dtype, 128, 128, interleaved});
        check_rope({dtype, kv_dtype, 256, 64, interleaved});
      }
    }
  }
}

}  // namespace
}  // namespace octavo::cuda::testing
