// The Backend as a whole: weights on their way to the device, graphs, errors.
#include <algorithm>

#include "backend/cuda_backend.h"
#include "base/errors.h"
#include "checker.h"
#include "cuda/kv_cache.h"
#include "cuda/weights.h"

namespace octavo::cuda::testing {
namespace {

std::unique_ptr<Backend> make_backend(bool portable_kernels = false) {
  BackendOptions options;
  options.portable_kernels = portable_kernels;
  options.device = "cuda:0";
  return create_cuda_backend(options);
}

std::vector<float> rows_of(const LinearWeight& weight) {
  const TensorView matrix = static_cast<const CudaLinearWeight&>(weight).matrix();
  const Array copy(matrix.dtype, matrix.num_elements());
  check_cuda(cudaMemcpy(copy.data(), matrix.data, dtype_bytes(matrix.dtype, matrix.num_elements()),
                        cudaMemcpyDeviceToDevice));
  return copy.download();
}

CUDA_TEST(weights_arrive_converted) {
  const auto backend = make_backend();
  const int64_t rows = 300, cols = 33000;  // several staging chunks
  const auto values = random_values(rows * cols, DType::kFloat32);
  std::vector<float> expected(values);
  for (float& v : expected) v = rounded(v, DType::kBFloat16);
  std::vector<uint16_t> halves(values.size());
  std::ranges::transform(values, halves.begin(),
                         [](float v) { return to_bits(v, DType::kBFloat16); });

  const auto weight = backend->create_linear(rows, cols, false);
  backend->load_rows(*weight, 0, {values.data(), DType::kFloat32, 100, cols});
  backend->load_rows(*weight, 100, {halves.data() + 100 * cols, DType::kBFloat16, 200, cols});
  expect(rows_of(*weight) == expected, "rows from float32 and bfloat16");

  const auto buffer = backend->allocate(cols * sizeof(float));
  backend->load_vector(static_cast<float*>(buffer->data()),
                       {halves.data(), DType::kBFloat16, 1, cols});
  std::vector<float> vector(cols);
  backend->copy_to_host(vector.data(), buffer->data(), buffer->size_bytes());
  expect(std::equal(vector.begin(), vector.end(), expected.begin()), "vector");
}

CUDA_TEST(copies_are_ordered) {
  const auto backend = make_backend();
  const auto buffer = backend->allocate(int64_t{40} << 20);
  for (const int64_t size : {int64_t{4}, int64_t{100000}, buffer->size_bytes()}) {
    for (int round = 0; round < 10; ++round) {
      std::vector<uint8_t> bytes(size, static_cast<uint8_t>(round + 1)), back(size);
      backend->copy_to_device(buffer->data(), bytes.data(), size);
      std::ranges::fill(bytes, uint8_t{0});
      backend->copy_to_host(back.data(), buffer->data(), size);
      expect(std::ranges::count(back, round + 1) == size, "copy of " + std::to_string(size));
    }
  }
}

// A decode step of one layer: projections, cache write and attention.
class DecodeStep {
 public:
  static constexpr int64_t kSeqs = 24, kQHeads = 8, kKvHeads = 2, kDim = 128, kBlock = 16;
  static constexpr int64_t kMaxBlocks = 256, kWidth = (kQHeads + 2 * kKvHeads) * kDim;
  static constexpr int64_t kHidden = kQHeads * kDim;

  explicit DecodeStep(Backend& backend) : backend_(backend) {
    cache_ =
        backend.create_kv_cache({1, kKvHeads, kDim, kBlock, kSeqs * kMaxBlocks, DType::kBFloat16});
    fill_cache();
    qkv_weight_ = random_weight(kWidth, kHidden);
    out_weight_ = random_weight(kHidden, kHidden);
    rope_ = upload(std::vector<float>(kBlock * kMaxBlocks * kDim / 2, 0.7f));
    std::vector<int32_t> tables(kSeqs * kMaxBlocks), starts(kSeqs + 1);
    for (size_t i = 0; i < tables.size(); ++i) tables[i] = static_cast<int32_t>(i);
    for (size_t i = 0; i < starts.size(); ++i) starts[i] = static_cast<int32_t>(i);
    host_starts_ = starts;
    tables_ = upload(tables);
    starts_ = upload(starts);
    lengths_ = DeviceMemory(kSeqs * sizeof(int32_t));
    positions_ = DeviceMemory(kSeqs * sizeof(int32_t));
    slots_ = DeviceMemory(kSeqs * sizeof(int64_t));
  }

  // Sequences of random lengths; the last `padding` rows are none.
  void randomize(int64_t padding) {
    host_lengths_.assign(kSeqs, 0);
    std::vector<int32_t> positions(kSeqs, 0);
    std::vector<int64_t> slots(kSeqs, -1);
    for (int64_t i = 0; i < kSeqs - padding; ++i) {
      host_lengths_[i] = static_cast<int32_t>(random_int(1, kMaxBlocks * kBlock));
      positions[i] = host_lengths_[i] - 1;
      slots[i] = i * kMaxBlocks * kBlock + positions[i];
    }
    backend_.copy_to_device(lengths_.data(), host_lengths_.data(), kSeqs * 4);
    backend_.copy_to_device(positions_.data(), positions.data(), kSeqs * 4);
    backend_.copy_to_device(slots_.data(), slots.data(), kSeqs * 8);
    const Array fresh(DType::kBFloat16, random_values(kSeqs * kHidden, DType::kBFloat16));
    check_cuda(cudaMemcpy(x_.data(), fresh.data(), kSeqs * kHidden * 2, cudaMemcpyDeviceToDevice));
    check_cuda(cudaDeviceSynchronize());
  }

  void run() {
    ForwardInputs inputs;
    inputs.num_tokens = inputs.num_seqs = kSeqs;
    inputs.max_query_len = 1;
    inputs.max_seq_len = kMaxBlocks * kBlock;
    inputs.block_table_stride = kMaxBlocks;
    inputs.positions = positions_.as<int32_t>();
    inputs.slot_mapping = slots_.as<int64_t>();
    inputs.query_start_loc = starts_.as<int32_t>();
    inputs.seq_lens = lengths_.as<int32_t>();
    inputs.block_tables = tables_.as<int32_t>();
    inputs.host_query_start_loc = host_starts_;
    inputs.host_seq_lens = host_lengths_;
    AttentionParams params;
    params.num_q_heads = kQHeads;
    params.num_kv_heads = kKvHeads;
    params.head_dim = kDim;
    params.scale = 0.1f;
    const TensorView qkv = qkv_.matrix(kSeqs, kWidth);
    backend_.linear(*qkv_weight_, x_.matrix(kSeqs, kHidden), qkv);
    backend_.rope_and_cache(qkv, {rope_.as<float>(), rope_.as<float>(), kDim, false}, inputs,
                            params, *cache_);
    backend_.attention(qkv, inputs, params, *cache_, attended_.matrix(kSeqs, kHidden));
    backend_.linear(*out_weight_, attended_.matrix(kSeqs, kHidden), out_.matrix(kSeqs, kHidden));
  }

  // The rows that are not padding.
  std::vector<float> result(int64_t padding) {
    backend_.synchronize();
    auto rows = out_.download();
    rows.resize((kSeqs - padding) * kHidden);
    return rows;
  }

 private:
  // The same random run of values over and over.
  void fill_cache() {
    constexpr int64_t kRun = kKvHeads * kBlock * kDim * kMaxBlocks;
    const Array run(DType::kBFloat16, random_values(kRun, DType::kBFloat16));
    const KVLayer layer = static_cast<CudaKVCache&>(*cache_).layer(0);
    for (void* half : {layer.keys, layer.values}) {
      for (int64_t i = 0; i < kSeqs; ++i) {
        check_cuda(cudaMemcpy(static_cast<std::byte*>(half) + i * kRun * 2, run.data(), kRun * 2,
                              cudaMemcpyDeviceToDevice));
      }
    }
    check_cuda(cudaDeviceSynchronize());
  }

  std::unique_ptr<LinearWeight> random_weight(int64_t rows, int64_t cols) {
    auto weight = backend_.create_linear(rows, cols, false);
    const auto values = random_values(rows * cols, DType::kFloat32, 0.03f);
    backend_.load_rows(*weight, 0, {values.data(), DType::kFloat32, rows, cols});
    return weight;
  }

  Backend& backend_;
  std::unique_ptr<KVCache> cache_;
  std::unique_ptr<LinearWeight> qkv_weight_, out_weight_;
  DeviceMemory rope_, tables_, starts_, lengths_, positions_, slots_;
  std::vector<int32_t> host_starts_, host_lengths_;
  Array x_{DType::kBFloat16, kSeqs* kHidden};
  Array qkv_{DType::kBFloat16, kSeqs* kWidth};
  Array attended_{DType::kBFloat16, kSeqs* kHidden};
  Array out_{DType::kBFloat16, kSeqs* kHidden};
};

CUDA_TEST(graph_replays_with_other_lengths) {
  const auto backend = make_backend();
  expect(backend->supports_graphs(), "graphs are on by default");
  DecodeStep step(*backend);
  step.randomize(0);
  step.run();
  const int32_t graph = backend->capture_graph([&] { step.run(); });
  for (const int64_t padding : {0, 3, 23, 10}) {
    step.randomize(padding);
    step.run();
    const auto eager = step.result(padding);
    for (int i = 0; i < 3; ++i) backend->launch_graph(graph);
    expect(step.result(padding) == eager, "graph with padding " + std::to_string(padding));
  }
}

CUDA_TEST(capture_survives_an_exception) {
  const auto backend = make_backend();
  DecodeStep step(*backend);
  step.randomize(0);
  step.run();
  const auto before = step.result(0);
  bool thrown = false;
  try {
    backend->capture_graph([&] {
      step.run();
      throw std::runtime_error("stop");
    });
  } catch (const std::runtime_error&) {
    thrown = true;
  }
  step.run();
  expect(thrown && step.result(0) == before, "the backend works after a capture that failed");
}

CUDA_TEST(options_are_checked) {
  for (const char* device : {"cuda:99", "cuda:x", "cuda:-1"}) {
    bool refused = false;
    try {
      BackendOptions options;
      options.device = device;
      create_cuda_backend(options);
    } catch (const ConfigError&) {
      refused = true;
    }
    expect(refused, device);
  }
  const auto backend = make_backend();
  expect(backend->device_info().total_bytes > 0, "device memory");
  bool out_of_memory = false;
  try {
    backend->allocate(int64_t{1} << 50);
  } catch (const OutOfMemoryError&) {
    out_of_memory = true;
  }
  expect(out_of_memory, "a petabyte does not fit");
  backend->synchronize();
}

// The residual's way through a model with multipliers, as long as one of 30 layers.
CUDA_TEST(residual_keeps_what_is_added) {
  constexpr int64_t kVocab = 50, kHidden = 576, kAdditions = 60;
  const int64_t rows = random_int(2, 40);
  const auto backend = make_backend();
  const auto table = backend->create_linear(kVocab, kHidden, false);
  const auto embeddings = random_values(kVocab * kHidden, DType::kBFloat16);
  backend->load_rows(*table, 0, {embeddings.data(), DType::kFloat32, kVocab, kHidden});
  std::vector<int32_t> ids(rows), kept;
  for (int32_t& id : ids) id = static_cast<int32_t>(random_int(0, kVocab - 1));
  for (int32_t row = 1; row < rows; row += 2) kept.push_back(row);
  const DeviceMemory device_ids = upload(ids), device_kept = upload(kept);

  const Array all(backend->residual_dtype(), rows * kHidden);
  const TensorView residual = all.matrix(rows, kHidden);
  backend->embed(*table, device_ids.as<int32_t>(), residual);
  backend->scale(residual, 1.7f);
  std::vector<double> expected;
  for (const int32_t id : ids) {
    for (int64_t i = 0; i < kHidden; ++i) {
      expected.push_back(double{embeddings[id * kHidden + i]} * 1.7f);
    }
  }
  const Array weight(DType::kFloat32, random_values(kHidden, DType::kFloat32));
  const Array normed(DType::kBFloat16, rows * kHidden);
  Array delta(DType::kBFloat16, rows * kHidden);
  for (int64_t step = 0; step < kAdditions; ++step) {
    const auto values = random_values(rows * kHidden, DType::kBFloat16, 0.1f);
    backend->synchronize();  // delta is read no more
    delta.upload(values);
    backend->add_rms_norm(residual, delta.matrix(rows, kHidden),
                          static_cast<const float*>(weight.data()), 1e-5f,
                          normed.matrix(rows, kHidden));
    for (size_t i = 0; i < expected.size(); ++i) expected[i] += values[i];
  }
  const Array out(backend->residual_dtype(), std::ssize(kept) * kHidden);
  backend->gather_rows(residual, device_kept.as<int32_t>(), out.matrix(std::ssize(kept), kHidden));
  backend->synchronize();
  std::vector<double> expected_rows;
  for (const int32_t row : kept) {
    const auto begin = expected.begin() + row * kHidden;
    expected_rows.insert(expected_rows.end(), begin, begin + kHidden);
  }
  expect_close(out.download(), expected_rows, 1e-6, "residual after many additions");
}

// What follows attention in a layer: the residual and the normed rows that it leaves.
std::vector<float> finish_layer(Backend& backend, int64_t rows, uint64_t seed) {
  constexpr int64_t kHidden = 256, kInner = 448;
  std::mt19937_64 generator(seed);
  std::normal_distribution<float> normal;
  const auto values = [&](int64_t size, float scale) {
    std::vector<float> all(size);
    for (float& v : all) v = scale * normal(generator);
    return all;
  };
  const auto weight = [&](int64_t out_features, int64_t in_features) {
    auto linear = backend.create_projection(out_features, in_features, false, DType::kFloat32);
    const auto all = values(out_features * in_features, 0.06f);
    backend.load_rows(*linear, 0, {all.data(), DType::kFloat32, out_features, in_features});
    return linear;
  };
  const auto output = weight(kHidden, kHidden), gate_up = weight(2 * kInner, kHidden);
  const auto down = weight(kHidden, kInner);
  const Array norm(DType::kFloat32, values(kHidden, 1.0f));
  const auto half = [&](int64_t columns) { return Array(DType::kBFloat16, rows * columns); };
  const Array attended(DType::kBFloat16, values(rows * kHidden, 1.0f));
  const Array residual(backend.residual_dtype(), values(rows * kHidden, 1.0f));
  const Array delta = half(kHidden), normed = half(kHidden), both = half(2 * kInner);
  const Array gated = half(kInner);
  const auto* weights = static_cast<const float*>(norm.data());
  const TensorView r = residual.matrix(rows, kHidden), n = normed.matrix(rows, kHidden);
  const TensorView a = attended.matrix(rows, kHidden), d = delta.matrix(rows, kHidden);
  const TensorView g = gated.matrix(rows, kInner);
  backend.linear(*output, a, d);
  backend.add_rms_norm(r, d, weights, 1e-5f, n);
  backend.gated_linear(*gate_up, n, both.matrix(rows, 2 * kInner), g);
  backend.linear(*down, g, d);
  backend.add_rms_norm(r, d, weights, 1e-5f, n);
  backend.synchronize();
  auto result = residual.download();
  const auto last = normed.download();
  result.insert(result.end(), last.begin(), last.end());
  return result;
}

CUDA_TEST(portable_kernels_agree) {
  const auto portable = make_backend(true), fast = make_backend();
  for (const int64_t rows : {1, 30, 100, 300}) {
    const auto expected = finish_layer(*portable, rows, rows);
    expect_close(finish_layer(*fast, rows, rows), {expected.begin(), expected.end()}, 1.2e-2,
                 "the end of a layer of " + std::to_string(rows) + " rows");
  }
}

}  // namespace
}  // namespace octavo::cuda::testing
