// The reference backend as a device that lags behind: operations are noted and carried out only
// when somebody waits, in order, with two steps in flight and graphs that replay what was noted.
// Whatever reads host memory too late, or counts on results too early, gives other tokens.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "model/reference_backend.h"

namespace octavo::testing {

class LaggingBackend : public ReferenceBackend {
 public:
  explicit LaggingBackend(bool has_graphs = true) : has_graphs_(has_graphs) {}

  int64_t num_graph_launches = 0;

  void copy_to_device(void* device, const void* host, int64_t size_bytes) override {
    check(captured_ == nullptr, "a copy inside a graph");
    const auto* bytes = static_cast<const std::byte*>(host);
    issue([device, copy = std::vector<std::byte>(bytes, bytes + size_bytes)] {
      std::memcpy(device, copy.data(), copy.size());
    });
  }
  void copy_to_host(void* host, const void* device, int64_t size_bytes) override {
    synchronize();
    ReferenceBackend::copy_to_host(host, device, size_bytes);
  }
  void synchronize() override {
    for (Step& step : ended_) run(step.work);
    run(open_.work);
  }

  int32_t max_steps_in_flight() const override { return 2; }
  void begin_step() override { open_.samples.clear(); }
  void end_step() override {
    check(ended_.size() < 2, "too many steps in flight");
    ended_.push_back(std::move(open_));
    open_ = {};
  }
  void wait_step() override {
    check(!ended_.empty(), "no step is in flight");
    Step step = std::move(ended_.front());
    ended_.pop_front();
    run(step.work);
    for (const std::shared_ptr<Sampled>& sampled : step.samples) deliver(*sampled);
  }

  void unpack_inputs(const PackedInputs& packed, const ForwardArrays& arrays) override {
    issue([this, packed, arrays] {
      const int64_t num_tokens = packed.query_start_loc[packed.num_seqs];
      std::vector<int32_t> ids(packed.token_ids, packed.token_ids + num_tokens);
      for (int32_t& id : ids) {
        if (id < 0) id = drawn_.at(-1 - id);
      }
      PackedInputs known = packed;
      known.token_ids = ids.data();
      Backend::unpack_inputs(known, arrays);
    });
  }

  void embed(const LinearWeight& table, const int32_t* token_ids, TensorView out) override {
    issue([this, &table, token_ids, out] { ReferenceBackend::embed(table, token_ids, out); });
  }
  void rms_norm(TensorView x, const float* weight, float eps, TensorView out) override {
    issue([=, this] { ReferenceBackend::rms_norm(x, weight, eps, out); });
  }
  void add_rms_norm(TensorView residual, TensorView delta, const float* weight, float eps,
                    TensorView out) override {
    issue([=, this] { ReferenceBackend::add_rms_norm(residual, delta, weight, eps, out); });
  }
  void add(TensorView residual, TensorView delta) override {
    issue([=, this] { ReferenceBackend::add(residual, delta); });
  }
  void linear(const LinearWeight& weight, TensorView x, TensorView out) override {
    issue([this, &weight, x, out] { ReferenceBackend::linear(weight, x, out); });
  }
  void plan_lora(const int32_t* slots, const int32_t* rows, const LoraPlan& plan) override {
    issue([=, this] { ReferenceBackend::plan_lora(slots, rows, plan); });
  }
  void add_lora(const LoraBank& bank, const LoraPlan& plan, TensorView x, TensorView out) override {
    issue([this, &bank, plan, x, out] { ReferenceBackend::add_lora(bank, plan, x, out); });
  }
  void rope_and_cache(TensorView qkv, const RopeTable& rope, const ForwardInputs& inputs,
                      const AttentionParams& params, KVCache& cache) override {
    issue([this, qkv, rope, inputs, params, &cache] {
      ReferenceBackend::rope_and_cache(qkv, rope, inputs, params, cache);
    });
  }
  void attention(TensorView qkv, const ForwardInputs& inputs, const AttentionParams& params,
                 const KVCache& cache, TensorView out) override {
    issue([this, qkv, inputs, params, &cache, out] {
      ReferenceBackend::attention(qkv, inputs, params, cache, out);
    });
  }
  void silu_mul(TensorView gate_up, TensorView out) override {
    issue([=, this] { ReferenceBackend::silu_mul(gate_up, out); });
  }
  void gather_rows(TensorView x, const int32_t* indices, TensorView out) override {
    issue([=, this] { ReferenceBackend::gather_rows(x, indices, out); });
  }

  void sample(TensorView logits, std::span<const SampleRow> rows, StepResult& result) override {
    check(captured_ == nullptr, "sampling inside a graph");
    auto sampled = std::make_shared<Sampled>(rows, result);
    open_.samples.push_back(sampled);
    issue([this, logits, sampled] {
      ReferenceBackend::sample(logits, sampled->rows, sampled->made);
      for (const SampleRow& row : sampled->rows) {
        if (row.target_id < 0) drawn_[row.sequence->slot] = sampled->made.token_ids[row.batch_row];
      }
    });
  }

  bool supports_graphs() const override { return has_graphs_; }
  int32_t capture_graph(const std::function<void()>& work) override {
    check(captured_ == nullptr, "a capture inside a capture");
    graphs_.emplace_back();
    captured_ = &graphs_.back();
    work();
    captured_ = nullptr;
    return static_cast<int32_t>(graphs_.size()) - 1;
  }
  void clear_graphs() override { graphs_.clear(); }
  void launch_graph(int32_t id) override {
    ++num_graph_launches;
    issue([this, id] {
      for (const Work& work : graphs_.at(id)) work();
    });
  }

 private:
  using Work = std::function<void()>;

  // One call of sample() with its own copies of what the rows point to.
  struct Sampled {
    Sampled(std::span<const SampleRow> given, StepResult& to)
        : rows(given.begin(), given.end()), result(&to) {
      made.token_ids.assign(to.token_ids.size(), -1);
      made.is_invalid.assign(to.is_invalid.size(), 0);
      for (SampleRow& row : rows) {
        sampling.push_back(*row.sequence->sampling);
        sequences.push_back(*row.sequence);
        sequences.back().sampling = &sampling.back();
        row.sequence = &sequences.back();
      }
    }
    std::vector<SampleRow> rows;
    std::deque<ScheduledSequence> sequences;
    std::deque<SamplingParams> sampling;
    StepResult made;
    StepResult* result;
  };
  struct Step {
    std::deque<Work> work;
    std::vector<std::shared_ptr<Sampled>> samples;
  };

  void issue(Work work) {
    if (is_running_) return work();
    if (captured_ != nullptr) return captured_->push_back(std::move(work));
    open_.work.push_back(std::move(work));
  }

  void run(std::deque<Work>& work) {
    is_running_ = true;
    for (; !work.empty(); work.pop_front()) work.front()();
    is_running_ = false;
  }

  static void deliver(const Sampled& sampled) {
    StepResult& result = *sampled.result;
    for (const SampleRow& row : sampled.rows) {
      if (row.target_id >= 0) continue;
      result.token_ids[row.batch_row] = sampled.made.token_ids[row.batch_row];
      result.is_invalid[row.batch_row] = sampled.made.is_invalid[row.batch_row];
    }
    const auto append = [](std::vector<LogprobEntry>& to, const std::vector<LogprobEntry>& from) {
      to.insert(to.end(), from.begin(), from.end());
    };
    append(result.logprobs, sampled.made.logprobs);
    append(result.prompt_logprobs, sampled.made.prompt_logprobs);
  }

  const bool has_graphs_;
  bool is_running_ = false;
  Step open_;
  std::deque<Step> ended_;
  std::deque<std::vector<Work>> graphs_;
  std::vector<Work>* captured_ = nullptr;
  std::map<int32_t, int32_t> drawn_;
};

}  // namespace octavo::testing
