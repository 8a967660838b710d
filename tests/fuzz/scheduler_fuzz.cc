// Any bytes as requests, aborts and steps: what validate_request() accepts the scheduler brings to
// its end, with all counts right after every step and every block free afterwards.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "base/errors.h"
#include "engine/validate_request.h"
#include "sched/simulation.h"

namespace {

using octavo::Request;

// Takes values off the front of the input; zeros once it is used up.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), left_(size) {}

  bool is_empty() const { return left_ == 0; }

  uint8_t byte() {
    if (left_ == 0) return 0;
    --left_;
    return *data_++;
  }

  // Small and plausible mostly, else anything.
  int32_t number(int32_t bound) {
    const uint8_t kind = byte();
    if (kind < 240) return kind % bound;
    constexpr int32_t kOdd[] = {-1, 0, std::numeric_limits<int32_t>::max(),
                                std::numeric_limits<int32_t>::min()};
    return kOdd[kind % 4];
  }

  // One less than number(): -1 is "none". The least number stays what it is.
  int32_t number_or_minus_one(int32_t bound) {
    const int32_t found = number(bound);
    return found == std::numeric_limits<int32_t>::min() ? found : found - 1;
  }

  float real() {
    const uint8_t kind = byte();
    if (kind < 200) return static_cast<float>(kind) / 100.0f;
    uint32_t bits = 0;
    for (int i = 0; i < 4; ++i) bits = bits << 8 | byte();
    float value = 0;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }

 private:
  const uint8_t* data_;
  size_t left_;
};

Request read_request(Input& input, uint64_t id) {
  Request request;
  request.id = id;
  request.priority = input.number(5);
  request.cache_salt = input.byte() % 2;
  octavo::SamplingParams& p = request.sampling;
  p.n = input.number(4);
  p.temperature = input.real();
  p.top_p = input.real();
  p.min_p = input.real();
  p.top_k = input.number(60);
  p.repetition_penalty = input.real();
  p.presence_penalty = input.real();
  p.max_tokens = input.number(40);
  p.min_tokens = input.number(10);
  p.logprobs = input.number_or_minus_one(22);
  p.prompt_logprobs = input.number_or_minus_one(22);
  p.ignore_eos = input.byte() % 2 != 0;
  for (int i = input.byte() % 3; i > 0; --i) p.stop_token_ids.push_back(input.number(52));
  for (int i = input.byte() % 3; i > 0; --i) p.allowed_token_ids.push_back(input.number(52));
  for (int i = input.byte() % 100; i > 0; --i) request.token_ids.push_back(i * i % 50);
  request.token_ids.push_back(input.number(52));
  return request;
}

octavo::SchedulerOptions read_options(Input& input) {
  octavo::SchedulerOptions options = octavo::testing::small_options();
  options.blocks.num_blocks = 8 + input.byte() % 64;
  options.blocks.enable_prefix_caching = input.byte() % 4 != 0;
  options.max_num_seqs = 1 + input.byte() % 8;
  options.enable_chunked_prefill = input.byte() % 4 != 0;
  options.max_num_batched_tokens = options.enable_chunked_prefill ? 8 + input.byte() % 60 : 128;
  options.max_num_mixed_prefill_tokens = 1 + options.max_num_batched_tokens % 16;
  options.mixed_step_multiple = 1 + options.max_num_batched_tokens % 5;
  options.policy =
      input.byte() % 2 != 0 ? octavo::SchedulingPolicy::kPriority : octavo::SchedulingPolicy::kFcfs;
  return options;
}

void add(octavo::testing::Simulation& simulation, const octavo::SchedulerOptions& options,
         const Request& request) {
  try {
    octavo::validate_request(
        request, {options.vocab_size, simulation.scheduler.max_model_len(), options.eos_token_ids});
  } catch (const octavo::InvalidRequestError&) {
    return;
  }
  simulation.add(request);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  const octavo::SchedulerOptions options = read_options(input);
  octavo::testing::Simulation simulation(options);
  uint64_t num_requests = 0;
  while (!input.is_empty() && num_requests < 40) {
    switch (input.byte() % 4) {
      case 0:
        add(simulation, options, read_request(input, ++num_requests));
        break;
      case 1:
        simulation.scheduler.abort(1 + input.byte() % 40);
        break;
      case 2:
        simulation.scheduler.reset_prefix_cache();
        break;
      default:
        simulation.step();
    }
    simulation.scheduler.self_check();
  }
  simulation.run();
  const octavo::BlockManager& blocks = simulation.scheduler.blocks();
  octavo::check(blocks.num_free_blocks() == blocks.num_blocks(), "a block was lost");
  return 0;
}
