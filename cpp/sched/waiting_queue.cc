#include "sched/waiting_queue.h"

#include <algorithm>

#include "base/check.h"

namespace octavo {

void WaitingQueue::reserve(int64_t capacity) {
  const int64_t current = static_cast<int64_t>(heap_.capacity());
  if (capacity > current) heap_.reserve(std::max(capacity, 2 * current));
}

void WaitingQueue::push(Sequence* sequence) {
  check(sequence->queue_position < 0, "the sequence is queued already");
  heap_.push_back(sequence);
  sift_up(size() - 1, sequence);
}

void WaitingQueue::remove(Sequence* sequence) {
  const int64_t position = sequence->queue_position;
  check(position >= 0 && position < size() && heap_[position] == sequence, "not in this queue");
  Sequence* last = heap_.back();
  heap_.pop_back();
  sequence->queue_position = -1;
  if (last == sequence) return;
  sift_down(position, last);
  sift_up(last->queue_position, last);
}

void WaitingQueue::place(int64_t position, Sequence* sequence) {
  heap_[position] = sequence;
  sequence->queue_position = position;
}

void WaitingQueue::sift_up(int64_t position, Sequence* sequence) {
  while (position > 0) {
    const int64_t parent = (position - 1) / 2;
    if (heap_[parent]->rank < sequence->rank) break;
    place(position, heap_[parent]);
    position = parent;
  }
  place(position, sequence);
}

void WaitingQueue::sift_down(int64_t position, Sequence* sequence) {
  while (true) {
    int64_t child = 2 * position + 1;
    if (child >= size()) break;
    if (child + 1 < size() && heap_[child + 1]->rank < heap_[child]->rank) ++child;
    if (sequence->rank < heap_[child]->rank) break;
    place(position, heap_[child]);
    position = child;
  }
  place(position, sequence);
}

}  // namespace octavo
