// The engine's outputs on their way to the one thread that takes them.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <vector>

#include "engine/types.h"
#include "sched/output_sink.h"

namespace octavo {

// The engine thread fills one set of columns without a lock, publish() hands it over, take() swaps
// it out; emptied buffers come back through take(), so a steady state allocates nothing. Whoever
// does not take lets columns pile up: the engine reads pending_bytes() and sheds its requests.
class Outbox final : public OutputSink {
 public:
  Outbox();
  ~Outbox();
  Outbox(const Outbox&) = delete;
  Outbox& operator=(const Outbox&) = delete;

  // Engine thread.
  void emit(const SequenceOutput& output) override;
  void publish();
  int64_t pending_bytes() const;  // published and not taken
  void close();                   // after the last publish()

  // Consumer: as Engine::take_outputs().
  bool take(std::vector<OutputBatch>& batches, std::chrono::nanoseconds timeout);

  // Any thread.
  int fd() const { return fd_; }

 private:
  OutputBatch& building_batch(uint16_t connection);
  void merge_building();
  void recycle(std::vector<OutputBatch>& batches);
  void signal();

  std::vector<OutputBatch> building_;  // engine thread only

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<OutputBatch> pending_;  // guarded by mutex_, as all below
  std::vector<OutputBatch> spares_;   // emptied, for building_
  int64_t pending_bytes_ = 0;
  bool is_closed_ = false;

  int fd_ = -1;
};

}  // namespace octavo
