// Which adapter lies in which slot of the device, from the moment it begins to load until the last
// request that has it is over.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <vector>

namespace octavo {

// For any thread. A slot is free, then loading, open, closed, and free again.
class LoraSlots {
 public:
  explicit LoraSlots(int32_t num_slots) : slots_(num_slots) {}

  struct Lease {
    uint64_t id = 0;  // counts from 1 and is never used twice
    int32_t slot = 0;
  };
  // Takes a free slot; waits for one that is closed. Throws: InvalidRequestError when there is
  // none.
  Lease take(std::chrono::nanoseconds timeout);

  // The slot of an adapter that still loads. Throws: CheckError.
  int32_t loading_slot(uint64_t id) const;
  // The same, and from now on it is open.
  int32_t open(uint64_t id);
  // The slot of an adapter that was not closed before, else -1.
  int32_t close(uint64_t id);
  // Requires: the slot is closed.
  void give_back(int32_t slot);

 private:
  enum class State : uint8_t { kFree, kLoading, kOpen, kClosed };
  struct Slot {
    uint64_t id = 0;
    State state = State::kFree;
  };

  int32_t find(State state) const;
  int32_t loading(uint64_t id) const;

  mutable std::mutex mutex_;
  std::condition_variable freed_;
  std::vector<Slot> slots_;  // guarded by mutex_, as all below
  uint64_t last_id_ = 0;
};

}  // namespace octavo
