#include "engine/outbox.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

namespace octavo {
namespace {

// Buffers of more connections than this are given back to the allocator.
constexpr size_t kMaxSpares = 64;
// So are buffers that a burst has blown up: a spare is for the usual step.
constexpr int64_t kMaxSpareBytes = 4 << 20;

template <typename T>
int64_t bytes_of(const std::vector<T>& column, size_t size) {
  return static_cast<int64_t>(size * sizeof(*column.data()));
}

int64_t content_bytes(const OutputBatch& batch) {
  return bytes_of(batch.records, batch.records.size()) +
         bytes_of(batch.token_ids, batch.token_ids.size()) +
         bytes_of(batch.logprobs, batch.logprobs.size()) +
         bytes_of(batch.prompt_logprobs, batch.prompt_logprobs.size()) +
         bytes_of(batch.pooled, batch.pooled.size());
}

int64_t capacity_bytes(const OutputBatch& batch) {
  return bytes_of(batch.records, batch.records.capacity()) +
         bytes_of(batch.token_ids, batch.token_ids.capacity()) +
         bytes_of(batch.logprobs, batch.logprobs.capacity()) +
         bytes_of(batch.prompt_logprobs, batch.prompt_logprobs.capacity()) +
         bytes_of(batch.pooled, batch.pooled.capacity());
}

void clear_columns(OutputBatch& batch) {
  batch.records.clear();
  batch.token_ids.clear();
  batch.logprobs.clear();
  batch.prompt_logprobs.clear();
  batch.pooled.clear();
  batch.errors.clear();
}

// Makes room for `added` more entries, so that appending them cannot fail half-way through a
// record.
template <typename T>
void ensure_room(std::vector<T>& column, size_t added) {
  const size_t needed = column.size() + added;
  if (needed > column.capacity()) column.reserve(std::max(needed, 2 * column.capacity()));
}

template <typename T, typename Range>
void append(std::vector<T>& column, const Range& added) {
  column.insert(column.end(), added.begin(), added.end());
}

void append_columns(OutputBatch& to, const OutputBatch& from) {
  append(to.records, from.records);
  append(to.token_ids, from.token_ids);
  append(to.logprobs, from.logprobs);
  append(to.prompt_logprobs, from.prompt_logprobs);
  append(to.pooled, from.pooled);
  append(to.errors, from.errors);
}

OutputBatch* find_batch(std::vector<OutputBatch>& batches, uint16_t connection) {
  const auto found = std::ranges::find(batches, connection, &OutputBatch::connection);
  return found == batches.end() ? nullptr : &*found;
}

}  // namespace

Outbox::Outbox() : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (fd_ < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
  spares_.reserve(kMaxSpares);
}

Outbox::~Outbox() { ::close(fd_); }

OutputBatch& Outbox::building_batch(uint16_t connection) {
  // Rows of one connection often follow each other.
  if (!building_.empty() && building_.back().connection == connection) return building_.back();
  if (OutputBatch* batch = find_batch(building_, connection)) return *batch;
  OutputBatch fresh;
  {
    const std::lock_guard lock(mutex_);
    if (!spares_.empty()) {
      fresh = std::move(spares_.back());
      spares_.pop_back();
    }
  }
  fresh.connection = connection;
  return building_.emplace_back(std::move(fresh));
}

void Outbox::emit(const SequenceOutput& output) {
  OutputBatch& batch = building_batch(static_cast<uint16_t>(output.request_id >> 48));
  OutputRecord record{};
  record.request_id = output.request_id;
  record.sequence_index = static_cast<uint32_t>(output.sequence_index);
  record.num_tokens = output.token_id >= 0 ? 1 : 0;
  record.num_prompt_tokens = static_cast<uint32_t>(output.num_prompt_tokens);
  record.num_cached_tokens = static_cast<uint32_t>(output.num_cached_tokens);
  record.stop_token_id = output.stop_token_id;
  record.num_logprobs = static_cast<uint32_t>(output.logprobs.size());
  record.num_prompt_logprobs = static_cast<uint32_t>(output.prompt_logprobs.size());
  record.queue_time_us = output.queue_time_us;
  record.num_pooled = static_cast<uint32_t>(output.pooled.size());
  record.finish_reason = static_cast<uint8_t>(output.finish_reason);
  ensure_room(batch.records, 1);
  ensure_room(batch.token_ids, record.num_tokens);
  ensure_room(batch.logprobs, record.num_logprobs);
  ensure_room(batch.prompt_logprobs, record.num_prompt_logprobs);
  ensure_room(batch.pooled, record.num_pooled);
  if (output.error != nullptr) batch.errors.emplace_back(output.request_id, output.error);
  if (output.token_id >= 0) batch.token_ids.push_back(output.token_id);
  append(batch.logprobs, output.logprobs);
  append(batch.prompt_logprobs, output.prompt_logprobs);
  append(batch.pooled, output.pooled);
  batch.records.push_back(record);
}

void Outbox::publish() {
  if (building_.empty()) return;
  const std::lock_guard lock(mutex_);
  const bool was_empty = pending_.empty();
  for (const OutputBatch& batch : building_) pending_bytes_ += content_bytes(batch);
  merge_building();
  if (was_empty) signal();
}

void Outbox::merge_building() {
  if (pending_.empty()) {
    pending_.swap(building_);
    return;
  }
  for (OutputBatch& batch : building_) {
    if (OutputBatch* earlier = find_batch(pending_, batch.connection)) {
      append_columns(*earlier, batch);
    } else {
      pending_.push_back(std::exchange(batch, {}));
    }
  }
  recycle(building_);
}

void Outbox::recycle(std::vector<OutputBatch>& batches) {
  for (OutputBatch& batch : batches) {
    if (spares_.size() == kMaxSpares) break;
    if (capacity_bytes(batch) > kMaxSpareBytes) continue;
    clear_columns(batch);
    spares_.push_back(std::move(batch));
  }
  batches.clear();
}

int64_t Outbox::pending_bytes() const {
  const std::lock_guard lock(mutex_);
  return pending_bytes_;
}

void Outbox::close() {
  const std::lock_guard lock(mutex_);
  is_closed_ = true;
  signal();
}

void Outbox::signal() {
  eventfd_write(fd_, 1);
  changed_.notify_one();
}

bool Outbox::take(std::vector<OutputBatch>& batches, std::chrono::nanoseconds timeout) {
  std::unique_lock lock(mutex_);
  recycle(batches);
  changed_.wait_for(lock, timeout, [this] { return !pending_.empty() || is_closed_; });
  const bool is_drained = is_closed_ && pending_.empty();
  batches.swap(pending_);
  pending_bytes_ = 0;
  if (!is_closed_) {
    eventfd_t count;
    eventfd_read(fd_, &count);
  }
  return !is_drained;
}

}  // namespace octavo
