// The engine: one thread that turns submitted requests into output records by the five-verb step
// drain -> schedule -> run -> update -> publish. Where the runner lets steps overlap, run launches
// the step and then waits for the one before it. See cpp/README.md for threads and ownership.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "engine/lora_slots.h"
#include "engine/outbox.h"
#include "engine/request_queue.h"
#include "engine/token_masks.h"
#include "engine/types.h"
#include "runner/step_runner.h"
#include "sched/scheduler.h"

namespace octavo {

// Every public method may be called from any thread, with these exceptions: start() and the
// destructor once, from the owner; take_outputs() from one thread at a time; step() only by a
// caller that never calls start(). A step that fails ends its own requests with kError and no more;
// only a sticky DeviceError, or a broken invariant of the engine itself, loses the device.
class Engine {
 public:
  // The runner is loaded, warmed up and bound to a KV cache of `num_blocks` blocks.
  // Its max_steps_in_flight() does not change. Requires: config.max_model_len > 0.
  // Throws: ConfigError.
  Engine(const EngineConfig& config, int64_t vocab_size, int64_t num_blocks,
         std::unique_ptr<StepRunner> runner);
  ~Engine();  // shutdown()
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Starts the engine thread. Requests submitted before wait for it.
  void start();

  // Queues a request. Once this returns, each of the request's n sequences gets exactly one record
  // with a finish reason. Throws: InvalidRequestError, QueueFullError, and NotReadyError when the
  // engine sleeps, has shut down or its device is lost.
  void submit(Request request);

  // Ends a request, or one of its sequences; those that still live finish with kAbort. Unknown or
  // finished ones are ignored, so that a late abort is harmless.
  void abort(uint64_t request_id, int32_t sequence_index = kEverySequence);

  // Forgets every cached block that nobody holds, and the content of held ones for later requests.
  // Takes effect at the next step.
  void reset_prefix_cache();

  // Adapters. begin_lora() reserves a slot of the device; whoever calls it writes the adapter
  // there, which no step reads, and then opens it: from there on requests may name its id. Closing
  // it refuses new ones; those that were accepted go on, and when the last of them has ended the
  // slot is free: begin_lora() waits for that up to `timeout`. close_lora() also gives up a slot
  // that was never opened; other ids are ignored. Throws: InvalidRequestError when every slot is
  // taken; NotReadyError once the engine has ended.
  LoraSlots::Lease begin_lora(std::chrono::nanoseconds timeout = {});
  int32_t loading_lora_slot(uint64_t id) const { return lora_slots_.loading_slot(id); }
  void open_lora(uint64_t id);
  void close_lora(uint64_t id);

  // Checks every count, slot and reference of scheduler and KV cache before the next step, and
  // counts it in EngineStats::num_self_checks. An inconsistent engine loses its device. Takes time
  // that grows with the number of blocks: for operators and tests.
  void self_check();

  // Refuses requests from now on, lets those that were accepted finish or, with `aborts`, ends
  // them, and then gives the memory of the KV cache back, with all prefixes. EngineStats::is_asleep
  // says when that is done. Repeated, only `aborts` counts.
  void sleep(bool aborts);

  // Ends sleep(): takes the memory again, then requests; EngineStats::num_wake_ups counts it. Where
  // the memory is not there, the engine sleeps on: num_failed_wake_ups and last_error() tell.
  void wake_up();

  // Waits until outputs are there and swaps them into `batches`, one OutputBatch a connection. Pass
  // the same vector each time: its buffers are reused. Empty after the time-out. False, with
  // `batches` empty, once the engine has shut down and every output was taken.
  bool take_outputs(std::vector<OutputBatch>& batches, std::chrono::nanoseconds timeout);

  // Whether submit() would refuse any request now because too many wait: for front ends that save
  // themselves the work of asking.
  bool is_full() const { return queue_.is_full(); }

  // For one grammar thread: see TokenMasks. A request with a token_mask is served only while
  // somebody takes this work.
  bool take_mask_work(std::vector<MaskWork>& work, std::chrono::nanoseconds timeout);
  void set_token_masks(std::span<const SequenceKey> sequences, std::span<const uint32_t> masks);

  // An eventfd, owned by the engine, that is readable while outputs wait and for good after
  // shutdown. take_outputs() clears it: callers only poll it.
  int output_fd() const;

  // Tokens that prompt and output may have together: config.max_model_len, or what all blocks hold
  // if that is less.
  int64_t max_model_len() const { return scheduler_.max_model_len(); }

  // Snapshot of the last step. weight_bytes and kv_cache_bytes are the runner's to fill in.
  EngineStats stats() const;

  // False once the device is lost: every request has ended with kError, submit() refuses, and
  // take_outputs() ends as after shutdown(). The process should be started again.
  bool is_healthy() const;

  // What the last failed step or lost device said, for the operator's log; empty if none. Never for
  // users: it may name internals.
  std::string last_error() const;

  // Also stores CLOCK_MONOTONIC ns there at each step and idle tick (every 100 ms or less).
  // `heartbeat` must stay valid until shutdown() has returned.
  void set_heartbeat(std::atomic<int64_t>* heartbeat);

  // Aborts what waits and runs, publishes the last records and joins the thread. Idempotent.
  void shutdown();

  // One step on the calling thread; false if there was nothing to launch and nothing in flight. For
  // tests and tools.
  bool step();

 private:
  void run_thread();
  bool step_once();
  void drain();
  void take_in_commands();
  void take_in(Command& command);
  void begin_sleep(bool aborts);
  void fall_asleep();
  void end_sleep();
  bool launch_step(int64_t now_ns);
  void end_step();
  template <typename Work>
  bool try_on_device(Work&& work, std::string& cause);
  void fail_step(const std::string& cause);
  void lose_device(const std::string& cause);
  void note_error(const std::string& cause);
  void publish();
  void publish_stats(const SchedulerStats& stats);
  void finish();
  void end_all();
  void beat();
  void free_closed_loras();

  const EngineConfig config_;
  const int64_t vocab_size_;
  std::unique_ptr<StepRunner> runner_;
  RequestQueue queue_;
  Outbox outbox_;

  TokenMasks masks_;
  LoraSlots lora_slots_;

  // Touched by the engine thread only.
  Scheduler scheduler_;
  std::vector<Command> commands_;
  int64_t num_taken_in_ = 0;             // of commands_
  std::vector<ScheduledBatch> batches_;  // [max_steps_in_flight], of those in flight, oldest first
  StepResult result_;
  std::vector<uint64_t> finished_ids_;
  std::vector<int32_t> closed_lora_slots_;  // that live requests may still have
  EngineStats step_stats_;
  int64_t num_sleeps_ = 0;  // that were asked for
  bool is_drowsy_ = false;  // sleeps as soon as nothing is live

  mutable std::mutex mutex_;
  EngineStats stats_;  // guarded by mutex_, as all of this group
  std::string last_error_;

  std::atomic<bool> is_healthy_{true};
  std::atomic<int64_t> heartbeat_ns_{0};
  std::atomic<std::atomic<int64_t>*> heartbeat_{nullptr};
  std::once_flag shutdown_once_;
  std::thread thread_;
};

}  // namespace octavo
