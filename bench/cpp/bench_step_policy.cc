// What a limit on the prompt tokens beside decodes does to latency: the real scheduler on a clock
// that is advanced by step times measured on one H200 with Llama-3.1-8B in bfloat16
// (bench/results/2026-11-29-h200-mixed.md). Each run is the same to the microsecond;
// the time that Google Benchmark prints is the simulation's own and means nothing.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <deque>
#include <random>
#include <unordered_map>
#include <vector>

#include "sched/scheduler.h"

namespace octavo {
namespace {

struct Arrival {
  double ms = 0;  // < 0: when a client of the closed loop is free
  int64_t num_prompt = 0;
  int32_t num_output = 0;
};

// Matrix products and what else a step of so many tokens does, without decode attention: ms. From
// 256 tokens to 1,024 a step takes as long as the next of these sizes.
struct StepTime {
  double num_tokens;
  double ms;
};
constexpr std::array<StepTime, 13> kStepTimes{{{1, 4.0},
                                               {8, 4.05},
                                               {64, 4.8},
                                               {128, 5.5},
                                               {256, 7.2},
                                               {320, 8.7},
                                               {384, 9.7},
                                               {512, 12.1},
                                               {640, 15.2},
                                               {768, 17.6},
                                               {1024, 23.0},
                                               {2048, 44.5},
                                               {8192, 190.0}}};
constexpr double kDecodeAttentionMsPerToken = 131072 / 3.3e9;  // bytes of KV at 3.3 TB/s
constexpr double kRestMs = 0.3;                                // sampling, gaps
constexpr int32_t kStepsInFlight = 2;
constexpr double kHttpMs = 3.0;  // a first token's way out

double step_ms(const ScheduledBatch& batch) {
  const auto tokens = static_cast<double>(batch.num_tokens);
  double ms = kStepTimes.front().ms;
  for (size_t i = 1; i < kStepTimes.size() && tokens > kStepTimes[i - 1].num_tokens; ++i) {
    const auto [from, low] = kStepTimes[i - 1];
    const auto [to, high] = kStepTimes[i];
    const bool is_stair = 256 <= from && to <= 1024;
    ms = is_stair ? high : low + (high - low) * (std::min(tokens, to) - from) / (to - from);
  }
  int64_t context = 0;
  for (const ScheduledSequence& row : batch.sequences) {
    if (row.num_scheduled_tokens == 1) context += row.num_computed_tokens;
  }
  return ms + kRestMs + static_cast<double>(context) * kDecodeAttentionMsPerToken;
}

double percentile(std::vector<double>& values, double part) {
  if (values.empty()) return 0;
  const auto at = values.begin() + static_cast<int64_t>(part * (std::ssize(values) - 1));
  std::ranges::nth_element(values, at);
  return *at;
}

// Requests that come when they come, or as soon as one of `num_clients` is free. As in the engine,
// a step is scheduled while the one before runs.
class Clock final : public OutputSink {
 public:
  Clock(const SchedulerOptions& options, std::vector<Arrival> arrivals, int64_t num_clients)
      : scheduler_(options, *this), arrivals_(std::move(arrivals)), num_clients_(num_clients) {}

  void emit(const SequenceOutput& output) override {
    if (output.token_id < 0) return;
    const auto [last, is_first] = last_ms_.try_emplace(output.request_id, now_ms_);
    if (is_first) {
      first_ms.push_back(now_ms_ - sent_ms_.at(output.request_id) + kHttpMs);
    } else {
      gap_ms.push_back(now_ms_ - last->second);
      last->second = now_ms_;
    }
    ++num_tokens;
    if (output.finish_reason != FinishReason::kNone) --num_live_;
  }

  void run() {
    while (true) {
      send();
      ScheduledBatch batch;
      scheduler_.schedule(batch);
      const bool is_idle = batch.sequences.empty();
      if (!is_idle) in_flight_.push_back(std::move(batch));
      if (in_flight_.empty()) {
        if (next_ == std::ssize(arrivals_)) return;
        now_ms_ = std::max(now_ms_, arrivals_[next_].ms);
      } else if (is_idle || std::ssize(in_flight_) == kStepsInFlight) {
        end_step();
      }
    }
  }

  double now_ms() const { return now_ms_; }
  std::vector<double> first_ms;
  std::vector<double> gap_ms;
  int64_t num_tokens = 0;

 private:
  void send() {
    for (; next_ < std::ssize(arrivals_); ++next_) {
      const Arrival& arrival = arrivals_[next_];
      if (arrival.ms < 0 ? num_live_ == num_clients_ : arrival.ms > now_ms_) return;
      Request request;
      request.id = static_cast<uint64_t>(next_);
      request.token_ids.assign(arrival.num_prompt, 1);
      request.sampling.max_tokens = arrival.num_output;
      request.sampling.ignore_eos = true;
      sent_ms_[request.id] = arrival.ms < 0 ? now_ms_ : arrival.ms;
      ++num_live_;
      scheduler_.add(std::move(request));
    }
  }

  void end_step() {
    const ScheduledBatch& batch = in_flight_.front();
    now_ms_ += step_ms(batch);
    result_.clear();
    for (const ScheduledSequence& row : batch.sequences) {
      result_.token_ids.push_back(row.samples ? 1 : -1);
      result_.is_invalid.push_back(0);
    }
    scheduler_.update(batch, result_);
    in_flight_.pop_front();
  }

  Scheduler scheduler_;
  const std::vector<Arrival> arrivals_;
  const int64_t num_clients_;
  std::deque<ScheduledBatch> in_flight_;
  StepResult result_;
  std::unordered_map<uint64_t, double> sent_ms_;
  std::unordered_map<uint64_t, double> last_ms_;
  int64_t next_ = 0;
  int64_t num_live_ = 0;
  double now_ms_ = 0;
};

// Log-normal like conversations: prompts of 220 tokens and outputs of 190 on average.
std::vector<Arrival> conversations(int64_t num, double per_second) {
  std::mt19937_64 random(1);
  std::lognormal_distribution<double> prompt(4.9, 1.0);
  std::lognormal_distribution<double> output(4.9, 0.8);
  std::exponential_distribution<double> pause(per_second / 1000);
  std::vector<Arrival> made;
  double ms = 0;
  for (int64_t i = 0; i < num; ++i) {
    if (per_second > 0) ms += pause(random);
    made.push_back({per_second > 0 ? ms : -1, std::clamp<int64_t>(prompt(random), 4, 1024),
                    std::clamp<int32_t>(output(random), 4, 1024)});
  }
  return made;
}

std::vector<Arrival> streams_and_long_prompts() {
  std::vector<Arrival> made(32, {0, 200, 400});
  for (int i = 0; i < 8; ++i) made.push_back({1000 + i * 600.0, 8192, 10});
  return made;
}

void report(benchmark::State& state, const std::vector<Arrival>& arrivals, int64_t num_clients) {
  SchedulerOptions options;
  options.blocks.num_blocks = 60000;
  options.blocks.block_size = 16;
  options.blocks.enable_prefix_caching = false;
  options.blocks.secret = {1, 2};
  options.vocab_size = 50000;
  options.max_model_len = 16384;
  options.max_num_seqs = 256;
  options.max_num_batched_tokens = 2048;
  options.max_steps_in_flight = kStepsInFlight;
  if (state.range(0) > 0) {
    options.max_num_mixed_prefill_tokens = state.range(0);
    options.mixed_step_multiple = 128;
  }
  for (auto _ : state) {
    Clock clock(options, arrivals, num_clients);
    clock.run();
    state.counters["ttft_p50_ms"] = percentile(clock.first_ms, 0.5);
    state.counters["ttft_p99_ms"] = percentile(clock.first_ms, 0.99);
    state.counters["itl_p50_ms"] = percentile(clock.gap_ms, 0.5);
    state.counters["itl_p99_ms"] = percentile(clock.gap_ms, 0.99);
    state.counters["itl_max_ms"] = percentile(clock.gap_ms, 1);
    state.counters["out_tok_per_s"] = static_cast<double>(clock.num_tokens) / clock.now_ms() * 1000;
  }
}

void open_loop(benchmark::State& state) { report(state, conversations(600, 40), 1 << 30); }
void closed_loop(benchmark::State& state) { report(state, conversations(1000, 0), 256); }
void full_queue(benchmark::State& state) { report(state, conversations(1000, 0), 1 << 30); }
void fixed_lengths(benchmark::State& state) {
  report(state, std::vector<Arrival>(500, {-1, 1024, 128}), 1 << 30);
}
void long_prompts(benchmark::State& state) { report(state, streams_and_long_prompts(), 1 << 30); }

// Prompt tokens beside decodes; 0: no limit.
#define OCTAVO_LIMITS \
  Arg(0)->Arg(256)->Arg(320)->Arg(384)->Arg(512)->ArgName("mixed")->Iterations(1)
BENCHMARK(open_loop)->OCTAVO_LIMITS;
BENCHMARK(long_prompts)->OCTAVO_LIMITS;
BENCHMARK(closed_loop)->OCTAVO_LIMITS;
BENCHMARK(full_queue)->OCTAVO_LIMITS;
BENCHMARK(fixed_lengths)->OCTAVO_LIMITS;

}  // namespace
}  // namespace octavo
