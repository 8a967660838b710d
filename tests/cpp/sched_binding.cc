// The extension _sched_testing: the scheduler with its fake model, for the stateful test in
// tests/sched/test_scheduler_model.py. Not part of the product.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "sched/simulation.h"

namespace py = pybind11;

namespace octavo::testing {
namespace {

template <typename T>
T get(const py::dict& fields, const char* name, T otherwise) {
  return fields.contains(name) ? fields[name].cast<T>() : otherwise;
}

SchedulerOptions make_options(const py::kwargs& fields) {
  SchedulerOptions options = small_options();
  options.blocks.num_blocks = get(fields, "num_blocks", options.blocks.num_blocks);
  options.blocks.block_size = get(fields, "block_size", options.blocks.block_size);
  options.blocks.enable_prefix_caching = get(fields, "enable_prefix_caching", true);
  options.vocab_size = get(fields, "vocab_size", options.vocab_size);
  options.max_model_len = get(fields, "max_model_len", options.max_model_len);
  options.max_num_seqs = get(fields, "max_num_seqs", options.max_num_seqs);
  options.max_num_batched_tokens =
      get(fields, "max_num_batched_tokens", options.max_num_batched_tokens);
  options.max_num_mixed_prefill_tokens =
      get(fields, "max_num_mixed_prefill_tokens", options.max_num_mixed_prefill_tokens);
  options.mixed_step_multiple = get(fields, "mixed_step_multiple", 1);
  options.enable_chunked_prefill = get(fields, "enable_chunked_prefill", true);
  options.max_steps_in_flight = get(fields, "max_steps_in_flight", 1);
  const bool by_priority = get(fields, "by_priority", false);
  options.policy = by_priority ? SchedulingPolicy::kPriority : SchedulingPolicy::kFcfs;
  return options;
}

Request make_request(uint64_t id, std::vector<int32_t> token_ids, const py::kwargs& fields) {
  Request request;
  request.id = id;
  request.token_ids = std::move(token_ids);
  request.priority = get(fields, "priority", 0);
  request.cache_salt = get(fields, "cache_salt", uint64_t{0});
  SamplingParams& sampling = request.sampling;
  sampling.n = get(fields, "n", 1);
  sampling.temperature = get(fields, "temperature", 1.0f);
  sampling.seed = get(fields, "seed", id);
  sampling.max_tokens = get(fields, "max_tokens", 16);
  sampling.min_tokens = get(fields, "min_tokens", 0);
  sampling.ignore_eos = get(fields, "ignore_eos", false);
  sampling.stop_token_ids = get(fields, "stop_token_ids", std::vector<int32_t>{});
  sampling.bad_words = get(fields, "bad_words", std::vector<std::vector<int32_t>>{});
  sampling.prompt_logprobs = get(fields, "prompt_logprobs", -1);
  return request;
}

// (token ids, finish reason, stop id, reported prompt positions)
py::tuple as_tuple(const Collected& output) {
  std::vector<int> positions;
  for (const LogprobEntry& entry : output.prompt_logprobs) {
    positions.push_back(static_cast<int>(entry.logprob));
  }
  return py::make_tuple(output.token_ids, static_cast<int>(output.finish_reason),
                        output.stop_token_id, positions);
}

// What step() should do to the first row of the next batch, or to all of it.
void spoil_next(Simulation& simulation) {
  simulation.runner.after_run = [&simulation](const ScheduledBatch&, StepResult& result) {
    result.is_invalid[0] = 1;
    simulation.runner.after_run = nullptr;
  };
}

void fail_step(Simulation& simulation) {
  simulation.drain();
  simulation.scheduler.schedule(simulation.batch);
  if (!simulation.batch.sequences.empty()) simulation.scheduler.fail("failed");
  simulation.scheduler.self_check();
}

std::map<std::string, int64_t> stats_of(const Simulation& simulation) {
  const SchedulerStats stats = simulation.scheduler.stats();
  const BlockManager& blocks = simulation.scheduler.blocks();
  return {{"num_waiting", stats.num_waiting},
          {"num_running", stats.num_running},
          {"num_waiting_requests", stats.num_waiting_requests},
          {"num_waiting_tokens", stats.num_waiting_tokens},
          {"num_preemptions", stats.num_preemptions},
          {"num_prefix_hit_tokens", stats.num_prefix_hit_tokens},
          {"num_blocks", blocks.num_blocks()},
          {"num_free_blocks", blocks.num_free_blocks()},
          {"num_cached_blocks", blocks.num_cached_blocks()},
          {"max_model_len", simulation.scheduler.max_model_len()}};
}

}  // namespace
}  // namespace octavo::testing

PYBIND11_MODULE(_sched_testing, module) {
  using octavo::testing::Collected;
  using octavo::testing::Simulation;
  py::class_<Simulation>(module, "Simulation")
      .def(py::init([](const py::kwargs& fields) {
        return std::make_unique<Simulation>(octavo::testing::make_options(fields));
      }))
      .def("add",
           [](Simulation& self, uint64_t id, std::vector<int32_t> token_ids,
              const py::kwargs& fields) {
             self.add(octavo::testing::make_request(id, std::move(token_ids), fields));
           })
      .def("abort",
           [](Simulation& self, uint64_t id) {
             self.scheduler.abort(id);
             self.scheduler.self_check();
           })
      .def("reset_prefix_cache", [](Simulation& self) { self.scheduler.reset_prefix_cache(); })
      .def("step", &Simulation::step)
      .def("spoil_next", &octavo::testing::spoil_next)
      .def("fail_step", &octavo::testing::fail_step)
      .def("has_output",
           [](const Simulation& self, uint64_t id, int32_t index) {
             return self.sink.sequences.contains({id, index});
           })
      .def("output",
           [](Simulation& self, uint64_t id, int32_t index) {
             return octavo::testing::as_tuple(self.output(id, index));
           })
      .def("alone", [](const Simulation& self, uint64_t id,
                       int32_t index) { return octavo::testing::as_tuple(self.alone(id, index)); })
      .def("stats", &octavo::testing::stats_of);
}
