// What the engine thread needs of a model runner. model_runner.h is the real one; tests of the
// scheduler and the engine bring a fake.
#pragma once

#include <cstdint>

#include "sched/scheduled_batch.h"

namespace octavo {

class StepRunner {
 public:
  virtual ~StepRunner() = default;

  // Computes one step. `result` is cleared first and holds a row for each sequence afterwards.
  // Requires: 0 < batch.num_tokens <= max_num_batched_tokens; block tables cover the positions.
  // Throws: DeviceError.
  virtual void run(const ScheduledBatch& batch, StepResult& result) = 0;
};

}  // namespace octavo
