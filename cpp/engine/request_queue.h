// The engine's inbox: what any thread asks for, in order, until the engine thread drains it.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "sched/request.h"

namespace octavo {

// What the limits of max_num_queued_reqs and max_num_queued_tokens count.
struct QueueLoad {
  int64_t num_requests = 0;
  int64_t num_tokens = 0;  // of the prompts
};

struct Command {
  enum class Kind : uint8_t {
    kSubmit,
    kAbort,
    kResetPrefixCache,
    kSelfCheck,
    kSleep,
    kWakeUp,
    kCloseLora,
  };

  Kind kind = Kind::kSubmit;
  uint64_t request_id = 0;
  int32_t sequence_index = kEverySequence;     // with kAbort
  bool aborts = false;                         // with kSleep: what still runs
  int32_t lora_slot = -1;                      // with kCloseLora
  std::unique_ptr<Request> request = nullptr;  // with kSubmit
};

// Many producers, one consumer. Bounded: the limits count requests that were never admitted,
// whether they are still here or in the scheduler, which reports its share by settle().
class RequestQueue {
 public:
  RequestQueue(int64_t max_num_requests, int64_t max_num_tokens)
      : max_num_requests_(max_num_requests), max_num_tokens_(max_num_tokens) {}

  // Requires: a validated request. Throws: InvalidRequestError when its id is live,
  // UnknownModelError when its adapter is not open, QueueFullError, NotReadyError after close(),
  // and while the engine sleeps.
  void submit(Request request);
  void abort(uint64_t request_id, int32_t sequence_index = kEverySequence);
  void reset_prefix_cache();
  void self_check();

  // From now on submit() refuses with `reason`, until the consumer calls resume().
  void sleep(bool aborts, const char* reason);
  void wake_up();
  // Whether submit() would refuse any request now because too many wait.
  bool is_full() const;
  // Accepts requests for an adapter, and no longer: after close_lora() the consumer sees first what
  // was accepted, then kCloseLora. Closing one that is not open tells the consumer all the same.
  void open_lora(uint64_t id, int32_t slot);
  void close_lora(uint64_t id, int32_t slot);

  // From now on submit() refuses. The consumer sees what was accepted before.
  void close(const char* reason);

  // The rest is the consumer's.

  // Swaps in the commands that came since the last call. `commands` is emptied first.
  void drain(std::vector<Command>& commands);

  // Returns when a command is there or the queue is closed, at the latest after `timeout`.
  void wait(std::chrono::nanoseconds timeout);

  // After a step: what waits in the scheduler, which ids are free again, and whether outputs pile
  // up untaken, in which case submit() refuses.
  void settle(const QueueLoad& scheduler_load, std::span<const uint64_t> finished_ids,
              bool is_output_stalled);

  // Ends what sleep() began, unless it was called more than `num_sleeps` times: then a kSleep is
  // still to come, after which nothing may be accepted.
  void resume(int64_t num_sleeps);

  bool is_closed() const;

  // Sequences of the requests that came since the last drain() that a settle() has followed: those
  // that the scheduler's published gauges may not count yet.
  int64_t num_unsettled_sequences() const;

 private:
  void refuse_unless_room(const Request& request) const;
  QueueLoad load() const;
  int32_t slot_of(uint64_t lora_id) const;
  void push(Command command);

  const int64_t max_num_requests_;
  const int64_t max_num_tokens_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Command> commands_;
  std::unordered_set<uint64_t> live_ids_;
  std::unordered_map<uint64_t, int32_t> open_loras_;  // id to slot
  QueueLoad inbox_load_;
  int64_t num_inbox_sequences_ = 0;
  int64_t num_drained_sequences_ = 0;  // by the last drain(), until settle()
  QueueLoad scheduler_load_;
  bool is_output_stalled_ = false;
  const char* closed_reason_ = nullptr;
  const char* sleep_reason_ = nullptr;  // null: awake
  int64_t num_sleeps_ = 0;              // calls of sleep()
};

}  // namespace octavo
