// Token masks of sequences that a grammar constrains: asked for by the engine thread when a token
// is known, filled in by a grammar thread while the next forward pass runs, needed only to sample.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <span>
#include <unordered_map>
#include <vector>

#include "sched/output_sink.h"
#include "sched/scheduled_batch.h"

namespace octavo {

struct SequenceKey {
  uint64_t request_id = 0;
  int32_t sequence_index = 0;

  friend bool operator==(const SequenceKey&, const SequenceKey&) = default;
};

// A token that a sequence got, whose successor's mask is wanted; or -1: the sequence has ended.
struct MaskWork {
  SequenceKey sequence;
  int32_t token_id = -1;
};

// Stands between the scheduler and `next` to see the tokens. The mask of a sequence's first token
// came with its request; every later one is set() here.
class TokenMasks final : public OutputSink {
 public:
  // `next` must outlive this.
  TokenMasks(int64_t vocab_size, OutputSink& next)
      : num_words_((vocab_size + 31) / 32), next_(next) {}

  // Words of a mask.
  int64_t num_words() const { return num_words_; }

  // Engine thread.

  void emit(const SequenceOutput& output) override;
  void publish();  // wakes the grammar thread if there is work
  // Points the batch's constrained rows at their masks, which stay valid until the sequence's next
  // emit(). A row whose mask has not come is deferred. Waits only while no other row would sample,
  // and then for a bounded time.
  void fill(ScheduledBatch& batch);
  void close();                                           // after the last emit()
  int64_t num_deferred() const { return num_deferred_; }  // rows, since construction

  // Grammar thread.

  // Swaps in the work that came since the last call; `work` is emptied first. Empty after the
  // time-out. False, with `work` empty, once closed and all was taken.
  bool take_work(std::vector<MaskWork>& work, std::chrono::nanoseconds timeout);
  // The masks of sequences[i] are words [i * num_words(), (i + 1) * num_words()). Sequences that
  // have ended are ignored. Requires: each is one that take_work() named last.
  void set(std::span<const SequenceKey> sequences, std::span<const uint32_t> masks);

 private:
  struct Hash {
    size_t operator()(const SequenceKey& key) const {
      return std::hash<uint64_t>{}(key.request_id * 131 + key.sequence_index);
    }
  };
  struct Mask {
    std::vector<uint32_t> words;
    bool is_ready = false;
  };

  // Rows of the batch that wait for their mask. Requires: mutex_ is held.
  int64_t count_missing(const ScheduledBatch& batch);
  const Mask& mask_of(const ScheduledSequence& row) const;

  const int64_t num_words_;
  OutputSink& next_;
  int64_t num_deferred_ = 0;  // engine thread only

  std::mutex mutex_;
  std::condition_variable work_came_, mask_came_;
  std::unordered_map<SequenceKey, Mask, Hash> masks_;  // guarded by mutex_, as all below
  std::vector<MaskWork> work_;
  bool is_closed_ = false;
};

}  // namespace octavo
