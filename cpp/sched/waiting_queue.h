// The sequences that wait for admission, least rank first.
#pragma once

#include <cstdint>
#include <vector>

#include "sched/sequence.h"

namespace octavo {

// A binary heap that knows where each sequence is, so that an abort is O(log n) wherever it hits.
class WaitingQueue {
 public:
  bool empty() const { return heap_.empty(); }
  int64_t size() const { return std::ssize(heap_); }
  const std::vector<Sequence*>& sequences() const { return heap_; }  // in no order but the heap's

  // Makes room: push() up to this size allocates nothing.
  void reserve(int64_t capacity);

  // Requires: not empty.
  Sequence* front() const { return heap_.front(); }

  // Requires: `sequence` is in no queue.
  void push(Sequence* sequence);

  // Requires: `sequence` is in this queue.
  void remove(Sequence* sequence);

 private:
  void place(int64_t position, Sequence* sequence);
  void sift_up(int64_t position, Sequence* sequence);
  void sift_down(int64_t position, Sequence* sequence);

  std::vector<Sequence*> heap_;
};

}  // namespace octavo
