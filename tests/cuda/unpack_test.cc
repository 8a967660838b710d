// The first kernel of a step against its plain twin, and the sampler with two steps in flight.
#include "backend/cuda_backend.h"
#include "checker.h"
#include "cuda/sampler.h"
#include "cuda/unpack_inputs.h"

namespace octavo::cuda::testing {
namespace {

constexpr int64_t kBlock = 16, kStride = 64, kMaxTokens = 4096, kMaxSeqs = 64;

// The arrays of a step as one run of words, for host and device alike.
struct Unpacked {
  static constexpr int64_t kWords = 6 * kMaxTokens + 2 * (kMaxSeqs + 1) + kMaxSeqs * kStride;

  static ForwardArrays at(void* data) {
    ForwardArrays a;
    a.block_size = kBlock;
    a.block_table_stride = kStride;
    a.slot_mapping = static_cast<int64_t*>(data);
    a.token_ids = reinterpret_cast<int32_t*>(a.slot_mapping + kMaxTokens);
    a.positions = a.token_ids + kMaxTokens;
    a.logits_indices = a.positions + kMaxTokens;
    a.query_start_loc = a.logits_indices + kMaxTokens;
    a.seq_lens = a.query_start_loc + kMaxSeqs + 1;
    a.lora_slots = a.seq_lens + kMaxSeqs + 1;
    a.block_tables = a.lora_slots + kMaxTokens;
    return a;
  }
};

struct Packed {
  std::vector<int32_t> ids, starts{0}, lengths, table_loc{0}, tables, rows, lora_slots;

  void add(int32_t queries, int32_t length, bool is_pending) {
    for (int32_t i = 0; i < queries; ++i) ids.push_back(static_cast<int32_t>(random_int(0, 999)));
    if (is_pending) ids.back() = -1 - static_cast<int32_t>(lengths.size());
    starts.push_back(static_cast<int32_t>(ids.size()));
    lengths.push_back(length);
    rows.push_back(starts.back() - 1);
    for (int64_t i = 0; i * kBlock < length; ++i) {
      tables.push_back(static_cast<int32_t>(random_int(0, 1 << 20)));
    }
    table_loc.push_back(static_cast<int32_t>(tables.size()));
    lora_slots.push_back(static_cast<int32_t>(random_int(-1, 7)));
  }
};

void check_unpack(Packed step, int64_t padding, int32_t max_queries, const std::string& name,
                  bool has_loras = false) {
  BackendOptions options;
  options.device = "cuda:0";
  const auto backend = create_cuda_backend(options);
  std::vector<int32_t> drawn(kMaxSeqs);
  for (int32_t& id : drawn) id = static_cast<int32_t>(random_int(0, 999));
  PackedInputs packed;
  packed.num_seqs = std::ssize(step.lengths);
  packed.num_padding_seqs = padding;
  packed.max_query_len = max_queries;
  packed.num_logits = std::ssize(step.rows);
  const auto ids = upload(step.ids), starts = upload(step.starts), lengths = upload(step.lengths),
             table_loc = upload(step.table_loc), tables = upload(step.tables),
             rows = upload(step.rows), drawn_ids = upload(drawn),
             lora_slots = upload(step.lora_slots);
  PackedInputs on_device = packed;
  on_device.token_ids = ids.as<int32_t>();
  on_device.query_start_loc = starts.as<int32_t>();
  on_device.seq_lens = lengths.as<int32_t>();
  on_device.block_table_loc = table_loc.as<int32_t>();
  on_device.packed_tables = tables.as<int32_t>();
  on_device.logits_indices = rows.as<int32_t>();
  if (has_loras) on_device.lora_slots = lora_slots.as<int32_t>();
  const auto made = upload(std::vector<int32_t>(Unpacked::kWords, 77));
  unpack_inputs(context(), on_device, drawn_ids.as<int32_t>(), Unpacked::at(made.data()));
  synchronize();
  std::vector<int32_t> result(Unpacked::kWords);
  check_cuda(cudaMemcpy(result.data(), made.data(), result.size() * 4, cudaMemcpyDeviceToHost));

  for (int32_t& id : step.ids) id = id < 0 ? drawn[-1 - id] : id;
  packed.token_ids = step.ids.data();
  packed.query_start_loc = step.starts.data();
  packed.seq_lens = step.lengths.data();
  packed.block_table_loc = step.table_loc.data();
  packed.packed_tables = step.tables.data();
  packed.logits_indices = step.rows.data();
  if (has_loras) packed.lora_slots = step.lora_slots.data();
  std::vector<int32_t> expected(Unpacked::kWords, 77);
  backend->Backend::unpack_inputs(packed, Unpacked::at(expected.data()));
  expect(result == expected, name);
}

CUDA_TEST(unpacked_inputs_are_those_of_the_twin) {
  for (const int64_t seqs : {1, 7, 64}) {
    Packed decode;
    for (int64_t i = 0; i < seqs; ++i) {
      decode.add(1, static_cast<int32_t>(random_int(1, kStride * kBlock)), i % 3 != 0);
    }
    for (const bool has_loras : {false, true}) {
      check_unpack(decode, (64 - seqs) / 2, 1, "decode of " + std::to_string(seqs), has_loras);
    }
  }
  Packed mixed;
  mixed.add(1, 500, true);
  mixed.add(1000, 1000, false);
  mixed.add(17, 40, false);
  mixed.add(1, 1, false);
  mixed.add(1, 16, true);
  check_unpack(mixed, 0, 1000, "mixed");
  check_unpack(mixed, 0, 1000, "mixed with adapters", true);
  Packed chunk;
  chunk.add(1024, 1024, false);
  chunk.rows.clear();
  check_unpack(chunk, 0, 1024, "chunk without logits");
}

CUDA_TEST(two_sampled_steps_are_in_flight) {
  Sampler sampler;
  const int64_t vocab = 32000, rows = 5;
  SamplingParams params;
  params.temperature = 0.0f;
  params.logprobs = 1;
  const std::vector<int32_t> history{1, 2, 3};
  std::vector<ScheduledSequence> sequences(rows);
  std::vector<SampleRow> sample_rows;
  for (int32_t i = 0; i < rows; ++i) {
    sequences[i].slot = 10 + i;
    sequences[i].token_ids = history;
    sequences[i].sampling = &params;
    sample_rows.push_back({&sequences[i], i, -1});
  }
  StepResult results[2];
  std::vector<Array> logits;
  std::vector<std::vector<int32_t>> best(2);
  for (int step = 0; step < 2; ++step) {
    auto values = random_values(rows * vocab, DType::kFloat32);
    for (int64_t i = 0; i < rows; ++i) {
      best[step].push_back(static_cast<int32_t>(random_int(0, vocab - 1)));
      values[i * vocab + best[step].back()] = 50.0f;
    }
    logits.emplace_back(DType::kFloat32, values);
    results[step].token_ids.assign(rows, -1);
    results[step].is_invalid.assign(rows, 0);
  }
  for (int step = 0; step < 2; ++step) {
    sampler.begin_step();
    sampler.sample(context(), logits[step].matrix(rows, vocab), sample_rows, results[step]);
    sampler.end_step(context());
  }
  for (int step = 0; step < 2; ++step) {
    sampler.wait_step();
    expect(results[step].token_ids == best[step], "tokens of step " + std::to_string(step));
    expect(results[step].logprobs.size() == 2 * rows, "entries of step " + std::to_string(step));
  }
  std::vector<int32_t> drawn(rows);
  check_cuda(cudaMemcpy(drawn.data(), sampler.drawn_ids() + 10, rows * 4, cudaMemcpyDeviceToHost));
  expect(drawn == best[1], "the device keeps what was drawn last");
}

}  // namespace
}  // namespace octavo::cuda::testing
