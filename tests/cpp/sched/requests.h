// Requests for the scheduler's tests, and what is expected of their sequences.
#pragma once

#include <gtest/gtest.h>

#include <vector>

#include "sched/simulation.h"

namespace octavo::testing {

using testing::small_options;

inline Request make_request(uint64_t id, int64_t num_tokens, int32_t max_tokens,
                            int32_t first_token = 1) {
  Request request;
  request.id = id;
  for (int64_t i = 0; i < num_tokens; ++i) {
    request.token_ids.push_back(static_cast<int32_t>((first_token + i * 7) % 50));
  }
  request.sampling.temperature = 0.0f;
  request.sampling.max_tokens = max_tokens;
  request.sampling.ignore_eos = true;
  return request;
}

inline void expect_as_alone(Simulation& simulation, uint64_t id, int32_t index = 0) {
  const Collected expected = simulation.alone(id, index);
  const Collected& actual = simulation.output(id, index);
  EXPECT_EQ(actual.token_ids, expected.token_ids) << "request " << id << " sequence " << index;
  EXPECT_EQ(actual.finish_reason, expected.finish_reason) << "request " << id;
  EXPECT_EQ(actual.stop_token_id, expected.stop_token_id) << "request " << id;
}

inline std::vector<int32_t> scheduled_counts(const Simulation& simulation) {
  std::vector<int32_t> counts;
  for (const ScheduledSequence& row : simulation.batch.sequences) {
    counts.push_back(row.num_scheduled_tokens);
  }
  return counts;
}

}  // namespace octavo::testing
