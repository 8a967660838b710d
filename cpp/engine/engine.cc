#include "engine/engine.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <exception>
#include <utility>

#include "base/errors.h"
#include "engine/validate_request.h"

namespace octavo {
namespace {

using Clock = std::chrono::steady_clock;  // CLOCK_MONOTONIC

// How long the idle engine sleeps between heartbeats.
constexpr std::chrono::milliseconds kIdleTick{50};

constexpr const char* kShutdownReason = "The server is shutting down.";
constexpr const char* kSleepReason = "The server is asleep.";
constexpr const char* kLostReason = "The engine failed and has to be started again.";
constexpr const char* kStepError = "The engine failed while it served this request.";

SchedulerOptions scheduler_options(const EngineConfig& config, int64_t vocab_size,
                                   int64_t num_blocks, const StepRunner& runner) {
  SchedulerOptions options;
  options.blocks.num_blocks = num_blocks;
  options.blocks.block_size = config.block_size;
  options.blocks.enable_prefix_caching = config.enable_prefix_caching;
  options.blocks.secret = {config.prefix_cache_secret[0], config.prefix_cache_secret[1]};
  options.vocab_size = vocab_size;
  options.max_model_len = config.max_model_len;
  options.max_num_seqs = config.max_num_seqs;
  options.max_num_batched_tokens = config.max_num_batched_tokens;
  options.max_num_mixed_prefill_tokens = config.max_num_mixed_prefill_tokens;
  options.mixed_step_multiple = runner.row_multiple();
  options.enable_chunked_prefill = config.enable_chunked_prefill;
  options.policy = config.scheduling_policy;
  options.seed = config.seed;
  options.eos_token_ids = config.eos_token_ids;
  options.sliding_window = runner.sliding_window();
  options.max_steps_in_flight = runner.max_steps_in_flight();
  return options;
}

// Checkpoints may name end ids that the logits do not reach. They can never be sampled, and the
// sampler must not be asked to ban them.
EngineConfig with_reachable_eos(EngineConfig config, int64_t vocab_size) {
  std::erase_if(config.eos_token_ids,
                [vocab_size](int32_t id) { return id < 0 || id >= vocab_size; });
  return config;
}

int64_t nanoseconds(Clock::time_point time) {
  return std::chrono::nanoseconds(time.time_since_epoch()).count();
}

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Signals are for the threads of the process that wait for them, except those that a thread's own
// fault raises.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t signals;
    sigfillset(&signals);
    for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) sigdelset(&signals, fault);
    pthread_sigmask(SIG_SETMASK, &signals, &previous_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &previous_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t previous_;
};

}  // namespace

Engine::Engine(const EngineConfig& config, int64_t vocab_size, int64_t num_blocks,
               std::unique_ptr<StepRunner> runner)
    : config_(with_reachable_eos(config, vocab_size)),
      vocab_size_(vocab_size),
      runner_(std::move(runner)),
      queue_(config_.max_num_queued_reqs, config_.max_num_queued_tokens),
      masks_(vocab_size, outbox_),
      lora_slots_(config_.max_loras),
      scheduler_(scheduler_options(config_, vocab_size, num_blocks, *runner_), masks_),
      batches_(runner_->max_steps_in_flight()) {
  publish_stats(scheduler_.stats());
}

Engine::~Engine() { shutdown(); }

void Engine::start() {
  const SignalsBlocked blocked;  // the new thread inherits the mask
  thread_ = std::thread([this] { run_thread(); });
  pthread_setname_np(thread_.native_handle(), "octavo-engine");
}

void Engine::submit(Request request) {
  validate_request(request, {vocab_size_, max_model_len(), config_.eos_token_ids});
  request.arrival_ns = nanoseconds(Clock::now());
  queue_.submit(std::move(request));
}

void Engine::abort(uint64_t request_id, int32_t sequence_index) {
  queue_.abort(request_id, sequence_index);
}

void Engine::reset_prefix_cache() { queue_.reset_prefix_cache(); }

LoraSlots::Lease Engine::begin_lora(std::chrono::nanoseconds timeout) {
  if (queue_.is_closed()) throw NotReadyError(kShutdownReason);
  return lora_slots_.take(timeout);
}

void Engine::open_lora(uint64_t id) { queue_.open_lora(id, lora_slots_.open(id)); }

void Engine::close_lora(uint64_t id) {
  const int32_t slot = lora_slots_.close(id);
  if (slot >= 0) queue_.close_lora(id, slot);
}

void Engine::self_check() { queue_.self_check(); }

void Engine::sleep(bool aborts) { queue_.sleep(aborts, kSleepReason); }

void Engine::wake_up() { queue_.wake_up(); }

bool Engine::take_outputs(std::vector<OutputBatch>& batches, std::chrono::nanoseconds timeout) {
  return outbox_.take(batches, timeout);
}

bool Engine::take_mask_work(std::vector<MaskWork>& work, std::chrono::nanoseconds timeout) {
  return masks_.take_work(work, timeout);
}

void Engine::set_token_masks(std::span<const SequenceKey> sequences,
                             std::span<const uint32_t> masks) {
  masks_.set(sequences, masks);
}

int Engine::output_fd() const { return outbox_.fd(); }

EngineStats Engine::stats() const {
  // Read first: a sequence that moves on meanwhile is counted twice rather than not at all, since
  // whoever drains the server waits for zero.
  const int64_t num_unsettled_sequences = queue_.num_unsettled_sequences();
  const std::lock_guard lock(mutex_);
  EngineStats stats = stats_;
  stats.num_waiting += num_unsettled_sequences;
  stats.heartbeat_ns = heartbeat_ns_.load(std::memory_order_relaxed);
  stats.is_healthy = is_healthy();
  return stats;
}

bool Engine::is_healthy() const { return is_healthy_.load(std::memory_order_acquire); }

std::string Engine::last_error() const {
  const std::lock_guard lock(mutex_);
  return last_error_;
}

void Engine::set_heartbeat(std::atomic<int64_t>* heartbeat) {
  heartbeat_.store(heartbeat, std::memory_order_release);
}

void Engine::shutdown() {
  std::call_once(shutdown_once_, [this] {
    queue_.close(kShutdownReason);
    if (thread_.joinable()) {
      thread_.join();
    } else {
      finish();
    }
  });
}

void Engine::run_thread() {
  while (!queue_.is_closed()) {
    if (!step()) queue_.wait(kIdleTick);
  }
  finish();
}

bool Engine::step() {
  try {
    return step_once();
  } catch (const std::exception& error) {
    // Not a step that failed but the engine's own state: nothing computed from it can be trusted.
    // finish() ends the requests, as far as that state allows.
    is_healthy_.store(false, std::memory_order_release);
    queue_.close(kLostReason);
    note_error(error.what());
  }
  return false;
}

// Overlapped, a step is launched while the one before it computes, whose tokens are read after
// that: the device goes from one to the next without a pause.
bool Engine::step_once() {
  const Clock::time_point begin = Clock::now();
  beat();
  if (is_healthy() && scheduler_.needs_results()) end_step();
  masks_.publish();  // the masks are to be ready when the step that follows samples
  drain();
  const int64_t num_ended = step_stats_.num_steps;
  const bool is_launched = launch_step(nanoseconds(begin));
  const int64_t num_left = is_launched ? std::ssize(batches_) - 1 : 0;
  if (is_healthy() && scheduler_.num_steps_in_flight() > num_left) end_step();
  const bool has_work = is_launched || step_stats_.num_steps > num_ended;
  if (has_work) step_stats_.step_seconds += seconds_since(begin);
  fall_asleep();
  publish();
  return has_work;
}

// First what is left where a command broke off the last call: requests that were accepted are
// among it, and have to end like all others.
void Engine::drain() {
  take_in_commands();
  queue_.drain(commands_);
  take_in_commands();
}

void Engine::take_in_commands() {
  while (num_taken_in_ < std::ssize(commands_)) take_in(commands_[num_taken_in_++]);
  commands_.clear();
  num_taken_in_ = 0;
}

void Engine::take_in(Command& command) {
  switch (command.kind) {
    case Command::Kind::kSubmit:
      return scheduler_.add(std::move(*command.request));
    case Command::Kind::kAbort:
      return scheduler_.abort(command.request_id, command.sequence_index);
    case Command::Kind::kResetPrefixCache:
      return scheduler_.reset_prefix_cache();
    case Command::Kind::kSelfCheck:
      scheduler_.self_check();
      ++step_stats_.num_self_checks;
      return;
    case Command::Kind::kSleep:
      return begin_sleep(command.aborts);
    case Command::Kind::kWakeUp:
      return end_sleep();
    case Command::Kind::kCloseLora:
      return closed_lora_slots_.push_back(command.lora_slot);
  }
}

// Whatever was accepted before is in the scheduler by now: commands come in order.
void Engine::begin_sleep(bool aborts) {
  ++num_sleeps_;
  is_drowsy_ = !step_stats_.is_asleep;
  if (aborts) scheduler_.finish_all(FinishReason::kAbort, nullptr);
}

// A cached prefix names blocks whose keys and values are about to go.
void Engine::fall_asleep() {
  if (!is_drowsy_ || scheduler_.has_live() || scheduler_.num_steps_in_flight() > 0) return;
  is_drowsy_ = false;
  scheduler_.reset_prefix_cache();
  std::string cause;
  if (try_on_device([this] { runner_->free_kv_cache(); }, cause)) {
    step_stats_.is_asleep = true;
  } else if (is_healthy()) {
    note_error(cause);
    queue_.resume(num_sleeps_);
  }
}

void Engine::end_sleep() {
  is_drowsy_ = false;
  std::string cause;
  if (step_stats_.is_asleep) {
    if (!try_on_device([this] { runner_->restore_kv_cache(); }, cause)) {
      note_error(cause);
      ++step_stats_.num_failed_wake_ups;
      return;
    }
    step_stats_.is_asleep = false;
  }
  ++step_stats_.num_wake_ups;
  queue_.resume(num_sleeps_);
}

// Runs `work`, which may throw what a device or a backend throws. False if it did and the device is
// still there: then `cause` says why. A lost device ends everything.
template <typename Work>
bool Engine::try_on_device(Work&& work, std::string& cause) {
  const Clock::time_point begin = Clock::now();
  try {
    work();
    step_stats_.device_seconds += seconds_since(begin);
    return true;
  } catch (const DeviceError& error) {
    cause = error.what();
    if (error.sticky) lose_device(cause);
  } catch (const std::exception& error) {
    cause = error.what();
  } catch (...) {
    cause = "unknown exception";
  }
  return false;
}

// False if there was nothing to launch. A step that cannot be launched fails behind those in
// flight.
bool Engine::launch_step(int64_t now_ns) {
  ScheduledBatch& batch = batches_[scheduler_.num_steps_in_flight()];
  scheduler_.schedule(batch, now_ns);
  if (batch.sequences.empty()) return false;
  const auto has_grammar = [](const ScheduledSequence& row) { return !row.token_bitmask.empty(); };
  if (std::ranges::any_of(batch.sequences, has_grammar)) {
    batch.before_sampling = [this, &batch] { masks_.fill(batch); };
  }
  std::string cause;
  if (try_on_device([&] { runner_->launch(batch); }, cause)) return true;
  while (is_healthy() && scheduler_.num_steps_in_flight() > 1) end_step();
  if (is_healthy()) fail_step(cause);
  return true;
}

// Waits for the oldest step in flight and takes in its tokens.
void Engine::end_step() {
  std::string cause;
  const ScheduledBatch& batch = batches_.front();
  const auto wait = [&] {
    const Clock::time_point begin = Clock::now();
    runner_->wait(result_);
    step_stats_.wait_seconds += seconds_since(begin);
    check_step_result(batch, result_);
  };
  if (try_on_device(wait, cause)) {
    scheduler_.update(batch, result_);
    ++step_stats_.num_steps;
  } else if (is_healthy()) {
    fail_step(cause);
  }
  std::ranges::rotate(batches_, batches_.begin() + 1);
}

void Engine::fail_step(const std::string& cause) {
  note_error(cause);
  scheduler_.fail(kStepError);
  ++step_stats_.num_steps;
}

void Engine::lose_device(const std::string& cause) {
  is_healthy_.store(false, std::memory_order_release);
  queue_.close(kLostReason);
  note_error(cause);
  end_all();
}

void Engine::note_error(const std::string& cause) {
  const std::lock_guard lock(mutex_);
  last_error_ = cause;
}

void Engine::free_closed_loras() {
  std::erase_if(closed_lora_slots_, [this](int32_t slot) {
    if (scheduler_.uses_lora(slot)) return false;
    lora_slots_.give_back(slot);
    return true;
  });
}

// The inbox learns which ids are free, and the gauges move, before the last record of a request can
// be seen: whoever takes it may submit the id again and finds the blocks given back.
void Engine::publish() {
  masks_.publish();  // before all else: the masks are to be ready when the next step samples
  const bool is_stalled = outbox_.pending_bytes() > config_.max_pending_output_bytes;
  if (is_stalled) scheduler_.finish_all(FinishReason::kAbort, nullptr);
  scheduler_.take_finished(finished_ids_);
  free_closed_loras();
  const SchedulerStats stats = scheduler_.stats();
  publish_stats(stats);
  queue_.settle({stats.num_waiting_requests, stats.num_waiting_tokens}, finished_ids_, is_stalled);
  outbox_.publish();
}

void Engine::publish_stats(const SchedulerStats& stats) {
  const BlockManager& blocks = scheduler_.blocks();
  step_stats_.num_waiting = stats.num_waiting;
  step_stats_.num_running = stats.num_running;
  step_stats_.num_blocks = blocks.num_blocks();
  step_stats_.num_free_blocks = blocks.num_free_blocks();
  step_stats_.num_cached_blocks = blocks.num_cached_blocks();
  step_stats_.num_prompt_tokens = stats.num_prompt_tokens;
  step_stats_.num_generation_tokens = stats.num_generation_tokens;
  step_stats_.num_prefix_query_tokens = stats.num_prefix_query_tokens;
  step_stats_.num_prefix_hit_tokens = stats.num_prefix_hit_tokens;
  step_stats_.num_preemptions = stats.num_preemptions;
  step_stats_.num_deferred = masks_.num_deferred();
  std::ranges::copy(stats.num_finished, step_stats_.num_finished);
  step_stats_.max_model_len = max_model_len();
  const std::lock_guard lock(mutex_);
  stats_ = step_stats_;
}

// The last words: every request that is left ends, and the consumer learns that nothing follows.
void Engine::finish() {
  try {
    end_all();  // before drain(), which may not run in the middle of a step that broke off
    drain();
    end_all();
    publish();
  } catch (const std::exception& error) {
    is_healthy_.store(false, std::memory_order_release);
    note_error(error.what());
  }
  masks_.close();
  outbox_.close();
}

void Engine::end_all() {
  if (is_healthy()) {
    scheduler_.finish_all(FinishReason::kAbort, nullptr);
  } else {
    scheduler_.finish_all(FinishReason::kError, kStepError);
  }
}

void Engine::beat() {
  const int64_t now_ns = nanoseconds(Clock::now());
  heartbeat_ns_.store(now_ns, std::memory_order_relaxed);
  std::atomic<int64_t>* heartbeat = heartbeat_.load(std::memory_order_acquire);
  if (heartbeat != nullptr) heartbeat->store(now_ns, std::memory_order_relaxed);
}

}  // namespace octavo
