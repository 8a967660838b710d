#include "engine/lora_slots.h"

#include <algorithm>
#include <string>

#include "base/check.h"
#include "base/errors.h"

namespace octavo {

int32_t LoraSlots::find(State state) const {
  const auto found = std::ranges::find(slots_, state, &Slot::state);
  return found == slots_.end() ? -1 : static_cast<int32_t>(found - slots_.begin());
}

LoraSlots::Lease LoraSlots::take(std::chrono::nanoseconds timeout) {
  std::unique_lock lock(mutex_);
  freed_.wait_for(lock, timeout,
                  [this] { return find(State::kFree) >= 0 || find(State::kClosed) < 0; });
  const int32_t slot = find(State::kFree);
  if (slot < 0) {
    throw InvalidRequestError("There is room for " + std::to_string(slots_.size()) +
                              " adapters and all of it is taken: unload one, and wait until its "
                              "requests have ended, or raise --max-loras.");
  }
  slots_[slot] = {++last_id_, State::kLoading};
  return {last_id_, slot};
}

int32_t LoraSlots::loading(uint64_t id) const {
  const auto found = std::ranges::find_if(
      slots_, [id](const Slot& slot) { return slot.id == id && slot.state == State::kLoading; });
  check(found != slots_.end(), "no adapter with this id is being loaded");
  return static_cast<int32_t>(found - slots_.begin());
}

int32_t LoraSlots::loading_slot(uint64_t id) const {
  const std::lock_guard lock(mutex_);
  return loading(id);
}

int32_t LoraSlots::open(uint64_t id) {
  const std::lock_guard lock(mutex_);
  const int32_t slot = loading(id);
  slots_[slot].state = State::kOpen;
  return slot;
}

int32_t LoraSlots::close(uint64_t id) {
  const std::lock_guard lock(mutex_);
  const auto found = std::ranges::find_if(slots_, [id](const Slot& slot) {
    return slot.id == id && (slot.state == State::kLoading || slot.state == State::kOpen);
  });
  if (found == slots_.end()) return -1;
  found->state = State::kClosed;
  return static_cast<int32_t>(found - slots_.begin());
}

void LoraSlots::give_back(int32_t slot) {
  const std::lock_guard lock(mutex_);
  check(slots_[slot].state == State::kClosed, "an adapter's slot is given back that is not closed");
  slots_[slot] = {};
  freed_.notify_all();
}

}  // namespace octavo
