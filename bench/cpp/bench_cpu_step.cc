// Where the time of a whole step goes on the CPU, operation by operation: a model of a real
// geometry with made-up weights behind the model runner, without scheduler and engine.
//   bench_cpu_step [smollm2|llama1b] [bf16|f32|q8_0|q4_1] [--isa amx|avx512|avx2] [--threads N]
//                  [decodeN|prefillN ...]
// A step of decodeN has N sequences of 256 tokens and draws a token for each, greedily; one of
// prefillN has one prompt. "us" is the median over the steps, of each row for itself, and what the
// rates are of; "least" is the shortest. "The rest" is model, runner and the bookkeeping of times.
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/errors.h"
#include "geometries.h"
#include "model/layers.h"
#include "model/registry.h"
#include "runner/model_runner.h"
#include "step_table.h"
#include "timed_backend.h"

namespace octavo::bench {
namespace {

constexpr const char* kUsage =
    "usage: bench_cpu_step [smollm2|llama1b] [bf16|f32|q8_0|q4_1] [--isa amx|avx512|avx2]\n"
    "                      [--threads N] [decodeN|prefillN ...]";
constexpr int64_t kContext = 256, kBlockSize = 16;
constexpr size_t kMinSteps = 5;
constexpr double kMinSeconds = 0.5;  // of timed steps

struct Case {
  bool is_prefill = false;
  int64_t size = 0;  // sequences that decode, or tokens of the prompt

  std::string name() const {
    return is_prefill ? "prefill of " + std::to_string(size) + " tokens"
                      : "decode of " + std::to_string(size) + " at a context of " +
                            std::to_string(kContext);
  }
  int64_t num_seqs() const { return is_prefill ? 1 : size; }
  int64_t length() const { return is_prefill ? size : kContext; }
  int64_t blocks_each() const { return (length() + kBlockSize - 1) / kBlockSize; }
};

struct Settings {
  std::string model = "smollm2";
  std::string format = "bf16";
  BackendOptions backend;
  std::vector<Case> cases;
};

const std::map<std::string, DType> kFormats = {{"bf16", DType::kBFloat16},
                                               {"f32", DType::kFloat32},
                                               {"q8_0", DType::kQ8_0},
                                               {"q4_1", DType::kQ4_1}};

ModelConfig config_of(std::string_view name) {
  ModelConfig config = smollm2_geometry();
  config.max_position_embeddings = 8192;
  if (name != "smollm2") {
    config.vocab_size = 128256, config.hidden_size = 2048, config.intermediate_size = 8192;
    config.num_layers = 16, config.num_q_heads = 32, config.num_kv_heads = 8;
  }
  return config;
}

// Weights of about the size of trained ones, as a checkpoint holds them: at least `num_elements`.
std::vector<std::byte> made_up(DType dtype, int64_t num_elements) {
  constexpr int64_t kPeriod = 32 * 32749;  // no row is as long
  const int64_t block_bytes = dtype_bytes(dtype, 32);
  std::vector<std::byte> bytes(dtype_bytes(dtype, kPeriod));
  std::mt19937 generator(1);
  std::uniform_real_distribution<float> value(-0.035f, 0.035f);
  const uint16_t q8_scale = 0x0C00, q4_terms[] = {0x1C00, 0xA780};  // 2^-12; 2^-8 (code - 7.5)
  for (auto block = bytes.begin(); block != bytes.end(); block += block_bytes) {
    std::generate_n(block, block_bytes, [&] { return static_cast<std::byte>(generator()); });
    if (dtype == DType::kQ8_0) std::memcpy(&*block, &q8_scale, sizeof(q8_scale));
    if (dtype == DType::kQ4_1) std::memcpy(&*block, &q4_terms, sizeof(q4_terms));
    for (int64_t i = 0; !is_quantized(dtype) && i < 32; ++i) {
      const float drawn = value(generator);
      const int64_t size = block_bytes / 32;  // bfloat16 is the upper half of float32
      std::memcpy(&block[i * size], reinterpret_cast<const std::byte*>(&drawn) + 4 - size, size);
    }
  }
  std::vector<std::byte> all;
  for (int64_t n = 0; n < num_elements; n += kPeriod) {
    all.insert(all.end(), bytes.begin(), bytes.end());
  }
  return all;
}

void load(Weights& weights, DType dtype) {
  int64_t most_elements = 0, most_cols = 0;
  for (const WeightSpec& spec : weights.specs()) {
    most_elements = std::max(most_elements, spec.rows * spec.cols);
    most_cols = std::max(most_cols, spec.cols);
  }
  constexpr int64_t kShifts = 64;  // so that gate and up are not the same
  const std::vector<std::byte> matrix = made_up(dtype, most_elements + kShifts * 32);
  const std::vector<float> ones(most_cols, 1.0f);
  weights.allocate([&](const WeightSpec&) { return dtype; });
  for (int64_t i = 0; const WeightSpec& spec : weights.specs()) {
    if (spec.kind == WeightKind::kVector) {
      weights.load(spec.name, {ones.data(), DType::kFloat32, 1, spec.cols});
    } else {
      const std::byte* begin = &matrix[dtype_bytes(dtype, i++ % kShifts * 32)];
      weights.load(spec.name, {begin, dtype, spec.rows, spec.cols});
    }
  }
  weights.check_complete();
}

// A batch and what it points to. Running it again computes the same tokens again.
class Step {
 public:
  Step(const Case& c, int64_t vocab_size) : tokens_(c.length()), tables_(c.num_seqs()) {
    for (int64_t i = 0; i < c.length(); ++i) {
      tokens_[i] = static_cast<int32_t>(i * 7919 % vocab_size);
    }
    greedy_.temperature = 0.0f;
    for (int64_t s = 0; s < c.num_seqs(); ++s) {
      tables_[s].resize(c.blocks_each());
      std::iota(tables_[s].begin(), tables_[s].end(), static_cast<int32_t>(s * c.blocks_each()));
      ScheduledSequence sequence;
      sequence.slot = static_cast<int32_t>(s);
      sequence.is_new_in_slot = c.is_prefill;
      sequence.token_ids = tokens_;
      sequence.num_prompt_tokens = c.length();
      sequence.num_computed_tokens = c.is_prefill ? 0 : c.length() - 1;
      sequence.num_scheduled_tokens = static_cast<int32_t>(c.is_prefill ? c.length() : 1);
      sequence.block_table = tables_[s];
      sequence.samples = true;
      sequence.sampling = &greedy_;
      batch_.sequences.push_back(sequence);
      batch_.num_tokens += sequence.num_scheduled_tokens;
    }
  }
  Step(const Step&) = delete;
  Step& operator=(const Step&) = delete;

  const ScheduledBatch& batch() const { return batch_; }

 private:
  std::vector<int32_t> tokens_;
  std::vector<std::vector<int32_t>> tables_;
  SamplingParams greedy_;
  ScheduledBatch batch_;
};

// Keys and values for every slot: pages that were never written are all the same memory.
void fill_cache(Backend& backend, KVCache& cache, const ModelConfig& config) {
  constexpr int64_t kTokens = 256;
  std::mt19937 generator(2);
  std::normal_distribution<float> value;
  std::vector<float> qkv(kTokens * qkv_size(config));
  std::ranges::generate(qkv, [&] { return value(generator); });
  const std::vector<int32_t> positions(kTokens);
  std::vector<int64_t> slots(kTokens);
  const int64_t num_slots = cache.spec().num_blocks * kBlockSize;
  for (int64_t begin = 0; begin < num_slots; begin += kTokens) {
    const int64_t count = std::min(kTokens, num_slots - begin);
    std::iota(slots.begin(), slots.end(), begin);
    ForwardInputs inputs;
    inputs.num_tokens = count;
    inputs.positions = positions.data();
    inputs.slot_mapping = slots.data();
    const TensorView rows =
        TensorView::matrix(qkv.data(), DType::kFloat32, count, qkv_size(config));
    for (int64_t layer = 0; layer < config.num_layers; ++layer) {
      backend.rope_and_cache(rows, {}, inputs, attention_params(config, layer), cache);
    }
  }
}

void measure(const Case& c, ModelRunner& runner, TimedBackend& backend, const ModelConfig& config) {
  const Step step(c, config.vocab_size);
  StepResult result;
  runner.run(step.batch(), result);
  std::vector<Row> rows;
  std::vector<double> steps;
  for (double total_us = 0.0; steps.size() < kMinSteps || total_us < kMinSeconds * 1e6;) {
    backend.clear();
    const auto start = std::chrono::steady_clock::now();
    runner.run(step.batch(), result);
    const std::chrono::duration<double, std::micro> us = std::chrono::steady_clock::now() - start;
    steps.push_back(us.count());
    total_us += us.count();
    rows.resize(backend.times().size());
    for (size_t i = 0; i < rows.size(); ++i) rows[i].add(backend.times()[i]);
  }
  if (std::ranges::count(result.is_invalid, 0) != c.num_seqs()) {
    throw DeviceError("the logits hold a NaN", false);
  }
  for (Row& row : rows) row.name = label(row.one_step, config);
  print_table(c.name(), std::move(rows), steps);
}

std::optional<int64_t> number_after(std::string_view word, std::string_view prefix) {
  int64_t number = 0;
  if (!word.starts_with(prefix)) return std::nullopt;
  word.remove_prefix(prefix.size());
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), number);
  if (error != std::errc() || end != word.data() + word.size()) return std::nullopt;
  if (number < 1 || number > 4096) return std::nullopt;
  return number;
}

// Throws ConfigError.
Settings parse(std::span<char*> words) {
  Settings settings;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string word = words[i];
    const std::string next = i + 1 < words.size() ? words[i + 1] : "";
    if (word == "smollm2" || word == "llama1b") {
      settings.model = word;
    } else if (kFormats.contains(word)) {
      settings.format = word;
    } else if (word == "--isa" && !next.empty()) {
      settings.backend.cpu_isa = next, ++i;
    } else if (const auto threads = number_after(next, ""); word == "--threads" && threads) {
      settings.backend.num_threads = static_cast<int32_t>(*threads), ++i;
    } else if (const auto decodes = number_after(word, "decode")) {
      settings.cases.push_back({false, *decodes});
    } else if (const auto tokens = number_after(word, "prefill")) {
      settings.cases.push_back({true, *tokens});
    } else {
      throw ConfigError("not understood: " + word + "\n" + kUsage);
    }
  }
  if (settings.cases.empty()) {
    settings.cases = {{false, 1}, {false, 4}, {false, 16}, {false, 32}, {true, 128}, {true, 512}};
  }
  return settings;
}

void run(Settings settings) {
  const DType dtype = kFormats.at(settings.format);
  settings.backend.keep_quantized = true;
  if (dtype == DType::kFloat32) settings.backend.weight_dtype = dtype;
  const std::unique_ptr<Backend> cpu = create_backend(settings.backend);
  TimedBackend backend(*cpu);
  const std::unique_ptr<Model> model = create_model(config_of(settings.model), backend);
  load(model->weights(), dtype);
  RunnerConfig config;
  config.block_size = kBlockSize;
  config.max_num_seqs = 1;
  for (const Case& c : settings.cases) {
    config.max_model_len = std::max(config.max_model_len, c.length());
    config.max_num_seqs = std::max(config.max_num_seqs, c.num_seqs());
    config.max_num_batched_tokens = std::max(config.max_num_batched_tokens, c.size);
    config.num_blocks = std::max(config.num_blocks, c.num_seqs() * c.blocks_each());
  }
  ModelRunner runner(backend, *model, config, plan_memory(config, *model, backend, 0));
  fill_cache(backend, backend.cache(), model->config());
  std::printf("## %s, %s, %s\n", settings.model.c_str(), settings.format.c_str(),
              backend.device_info().name.c_str());
  for (const Case& c : settings.cases) measure(c, runner, backend, model->config());
}

}  // namespace
}  // namespace octavo::bench

int main(int argc, char** argv) {
  try {
    octavo::bench::run(octavo::bench::parse(std::span(argv, argc).subspan(1)));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_cpu_step: %s\n", error.what());
    return 2;
  }
}
