#include "engine/request_queue.h"

#include <utility>

#include "base/errors.h"

namespace octavo {

void RequestQueue::submit(Request request) {
  auto owned = std::make_unique<Request>(std::move(request));
  const std::lock_guard lock(mutex_);
  refuse_unless_room(*owned);
  owned->lora_slot = slot_of(owned->lora_id);
  const uint64_t id = owned->id;
  if (!live_ids_.insert(id).second) {
    throw InvalidRequestError("A request with this id is running already.");
  }
  const int64_t num_tokens = std::ssize(owned->token_ids);
  const int64_t num_sequences = owned->sampling.n;
  try {
    push({.request_id = id, .request = std::move(owned)});
  } catch (...) {
    live_ids_.erase(id);
    throw;
  }
  ++inbox_load_.num_requests;
  inbox_load_.num_tokens += num_tokens;
  num_inbox_sequences_ += num_sequences;
}

void RequestQueue::refuse_unless_room(const Request& request) const {
  if (closed_reason_ != nullptr) throw NotReadyError(closed_reason_);
  if (sleep_reason_ != nullptr) throw NotReadyError(sleep_reason_);
  if (is_output_stalled_) {
    throw QueueFullError("The server cannot deliver outputs fast enough. Try again later.");
  }
  const auto [num_requests, num_tokens] = load();
  // An empty queue takes any one request, however long: refusing it for ever would help nobody.
  const bool has_token_room =
      num_requests == 0 || num_tokens + std::ssize(request.token_ids) <= max_num_tokens_;
  if (num_requests >= max_num_requests_ || !has_token_room) {
    throw QueueFullError("Too many requests are waiting. Try again later.");
  }
}

QueueLoad RequestQueue::load() const {
  return {inbox_load_.num_requests + scheduler_load_.num_requests,
          inbox_load_.num_tokens + scheduler_load_.num_tokens};
}

bool RequestQueue::is_full() const {
  const std::lock_guard lock(mutex_);
  const auto [num_requests, num_tokens] = load();
  return num_requests >= max_num_requests_ || (num_requests > 0 && num_tokens >= max_num_tokens_);
}

int32_t RequestQueue::slot_of(uint64_t lora_id) const {
  if (lora_id == 0) return -1;
  const auto found = open_loras_.find(lora_id);
  if (found == open_loras_.end()) throw UnknownModelError("The adapter is not loaded.");
  return found->second;
}

void RequestQueue::push(Command command) {
  commands_.push_back(std::move(command));
  changed_.notify_one();
}

void RequestQueue::abort(uint64_t request_id, int32_t sequence_index) {
  const std::lock_guard lock(mutex_);
  if (!live_ids_.contains(request_id)) return;
  push({.kind = Command::Kind::kAbort, .request_id = request_id, .sequence_index = sequence_index});
}

void RequestQueue::reset_prefix_cache() {
  const std::lock_guard lock(mutex_);
  push({.kind = Command::Kind::kResetPrefixCache});
}

void RequestQueue::self_check() {
  const std::lock_guard lock(mutex_);
  push({.kind = Command::Kind::kSelfCheck});
}

void RequestQueue::sleep(bool aborts, const char* reason) {
  const std::lock_guard lock(mutex_);
  push({.kind = Command::Kind::kSleep, .aborts = aborts});
  sleep_reason_ = reason;
  ++num_sleeps_;
}

void RequestQueue::wake_up() {
  const std::lock_guard lock(mutex_);
  push({.kind = Command::Kind::kWakeUp});
}

void RequestQueue::resume(int64_t num_sleeps) {
  const std::lock_guard lock(mutex_);
  if (num_sleeps_ == num_sleeps) sleep_reason_ = nullptr;
}

void RequestQueue::open_lora(uint64_t id, int32_t slot) {
  const std::lock_guard lock(mutex_);
  open_loras_[id] = slot;
}

void RequestQueue::close_lora(uint64_t id, int32_t slot) {
  const std::lock_guard lock(mutex_);
  open_loras_.erase(id);
  push({.kind = Command::Kind::kCloseLora, .lora_slot = slot});
}

void RequestQueue::close(const char* reason) {
  const std::lock_guard lock(mutex_);
  if (closed_reason_ == nullptr) closed_reason_ = reason;
  changed_.notify_one();
}

void RequestQueue::drain(std::vector<Command>& commands) {
  commands.clear();
  const std::lock_guard lock(mutex_);
  commands.swap(commands_);
  scheduler_load_.num_requests += inbox_load_.num_requests;
  scheduler_load_.num_tokens += inbox_load_.num_tokens;
  inbox_load_ = {};
  num_drained_sequences_ += std::exchange(num_inbox_sequences_, 0);
}

void RequestQueue::wait(std::chrono::nanoseconds timeout) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, timeout,
                    [this] { return !commands_.empty() || closed_reason_ != nullptr; });
}

void RequestQueue::settle(const QueueLoad& scheduler_load, std::span<const uint64_t> finished_ids,
                          bool is_output_stalled) {
  const std::lock_guard lock(mutex_);
  scheduler_load_ = scheduler_load;
  num_drained_sequences_ = 0;
  is_output_stalled_ = is_output_stalled;
  for (const uint64_t id : finished_ids) live_ids_.erase(id);
}

bool RequestQueue::is_closed() const {
  const std::lock_guard lock(mutex_);
  return closed_reason_ != nullptr;
}

int64_t RequestQueue::num_unsettled_sequences() const {
  const std::lock_guard lock(mutex_);
  return num_inbox_sequences_ + num_drained_sequences_;
}

}  // namespace octavo
