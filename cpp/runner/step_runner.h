// What the engine thread needs of a model runner. model_runner.h is the real one; tests of the
// scheduler and the engine bring a fake.
#pragma once

#include <cstdint>

#include "sched/scheduled_batch.h"

namespace octavo {

class StepRunner {
 public:
  virtual ~StepRunner() = default;

  // Steps that may be launched before the first of them is waited for: 1 or 2.
  virtual int32_t max_steps_in_flight() const { return 1; }
  // See Backend.
  virtual int64_t row_multiple() const { return 1; }

  // Keys that the widest layer sees: blocks before them may be given back. 0 = all.
  virtual int64_t sliding_window() const { return 0; }

  // Starts a step, behind those in flight. Reads all it needs of `batch` before it returns, except
  // the sampling parameters, which stay until the step's wait(). Tokens that are kPendingToken are
  // those that the step before draws in the same slot.
  // Requires: 0 < batch.num_tokens <= max_num_batched_tokens; block tables cover the positions.
  // Throws: DeviceError; the step is then not in flight.
  virtual void launch(const ScheduledBatch& batch) = 0;

  // Ends the oldest step in flight, whether or not it throws. `result` is replaced; it holds a row
  // for each sequence of the batch. Throws: DeviceError.
  virtual void wait(StepResult& result) = 0;

  // Gives the memory of keys and values back, and with it all that they held. Harmless when it was
  // given back already. Requires: no step in flight. Throws: DeviceError.
  virtual void free_kv_cache() {}

  // Takes that memory again, before the next step. Harmless when it is there.
  // Throws: OutOfMemoryError, DeviceError; nothing is taken then.
  virtual void restore_kv_cache() {}

  // A step alone.
  void run(const ScheduledBatch& batch, StepResult& result) {
    launch(batch);
    wait(result);
  }
};

}  // namespace octavo
