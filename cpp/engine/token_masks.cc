#include "engine/token_masks.h"

#include <algorithm>

#include "base/check.h"

namespace octavo {
namespace {

// A step that has only constrained rows waits this long for the last of their masks ...
constexpr std::chrono::milliseconds kAllMasks{2};
// ... and for the first one this long, so that aborts are still seen.
constexpr std::chrono::milliseconds kAnyMask{50};

// Its mask is another than the one that came with the request.
bool is_constrained_anew(const ScheduledSequence& row) {
  return row.samples && !row.token_bitmask.empty() &&
         std::ssize(row.token_ids) > row.num_prompt_tokens;
}

}  // namespace

void TokenMasks::emit(const SequenceOutput& output) {
  next_.emit(output);
  if (!output.has_grammar) return;
  const SequenceKey sequence{output.request_id, output.sequence_index};
  const std::lock_guard lock(mutex_);
  if (output.finish_reason != FinishReason::kNone) {
    masks_.erase(sequence);
    work_.push_back({sequence, -1});
  } else if (output.token_id >= 0) {
    masks_[sequence].is_ready = false;
    work_.push_back({sequence, output.token_id});
  }
}

void TokenMasks::publish() {
  const std::lock_guard lock(mutex_);
  if (!work_.empty()) work_came_.notify_one();
}

const TokenMasks::Mask& TokenMasks::mask_of(const ScheduledSequence& row) const {
  const auto entry = masks_.find({row.request_id, row.sequence_index});
  check(entry != masks_.end(), "a constrained sequence without a mask");
  return entry->second;
}

int64_t TokenMasks::count_missing(const ScheduledBatch& batch) {
  return std::ranges::count_if(batch.sequences, [this](const ScheduledSequence& row) {
    return is_constrained_anew(row) && !mask_of(row).is_ready;
  });
}

void TokenMasks::fill(ScheduledBatch& batch) {
  const int64_t num_constrained = std::ranges::count_if(batch.sequences, is_constrained_anew);
  if (num_constrained == 0) return;
  std::unique_lock lock(mutex_);
  if (num_constrained == std::ssize(batch.sequences)) {
    mask_came_.wait_for(lock, kAllMasks, [&] { return count_missing(batch) == 0; });
    mask_came_.wait_for(lock, kAnyMask, [&] { return count_missing(batch) < num_constrained; });
  }
  for (ScheduledSequence& row : batch.sequences) {
    if (!is_constrained_anew(row)) continue;
    const Mask& mask = mask_of(row);
    row.is_deferred = !mask.is_ready;
    if (mask.is_ready) row.token_bitmask = mask.words;
    num_deferred_ += row.is_deferred ? 1 : 0;
  }
}

void TokenMasks::close() {
  const std::lock_guard lock(mutex_);
  is_closed_ = true;
  work_came_.notify_one();
}

bool TokenMasks::take_work(std::vector<MaskWork>& work, std::chrono::nanoseconds timeout) {
  work.clear();
  std::unique_lock lock(mutex_);
  work_came_.wait_for(lock, timeout, [this] { return !work_.empty() || is_closed_; });
  work.swap(work_);
  return !(is_closed_ && work.empty());
}

void TokenMasks::set(std::span<const SequenceKey> sequences, std::span<const uint32_t> masks) {
  check(std::ssize(masks) == std::ssize(sequences) * num_words_, "masks of another size");
  const std::lock_guard lock(mutex_);
  for (size_t i = 0; i < sequences.size(); ++i) {
    const auto entry = masks_.find(sequences[i]);
    if (entry == masks_.end()) continue;
    const auto words = masks.subspan(i * num_words_, num_words_);
    entry->second.words.assign(words.begin(), words.end());
    entry->second.is_ready = true;
  }
  mask_came_.notify_one();
}

}  // namespace octavo
