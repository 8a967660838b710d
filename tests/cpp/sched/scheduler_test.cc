// What a step computes: admission, chunks, budgets, order.
#include "sched/scheduler.h"

#include <gtest/gtest.h>

#include <limits>
#include <set>
#include <vector>

#include "base/check.h"
#include "base/errors.h"
#include "sched/requests.h"
#include "sched/simulation.h"

namespace octavo {
namespace {

using testing::expect_as_alone;
using testing::make_request;
using testing::scheduled_counts;
using testing::Simulation;
using testing::small_options;

TEST(SchedulerOptionsTest, ImpossibleOptionsAreRefused) {
  testing::Collector sink;
  const auto refuses = [&sink](auto change) {
    SchedulerOptions options = small_options();
    change(options);
    EXPECT_THROW(Scheduler(options, sink), ConfigError);
  };
  refuses([](SchedulerOptions& o) { o.vocab_size = 0; });
  refuses([](SchedulerOptions& o) { o.max_model_len = 1; });
  refuses([](SchedulerOptions& o) { o.max_num_seqs = 0; });
  refuses([](SchedulerOptions& o) { o.max_num_batched_tokens = o.max_num_seqs - 1; });
  refuses([](SchedulerOptions& o) { o.max_num_batched_tokens = int64_t{1} << 31; });
  refuses([](SchedulerOptions& o) { o.max_num_mixed_prefill_tokens = 0; });
  refuses([](SchedulerOptions& o) { o.mixed_step_multiple = 0; });
  refuses([](SchedulerOptions& o) { o.blocks.num_blocks = 0; });
  refuses([](SchedulerOptions& o) { o.blocks.num_blocks = o.blocks.block_size = 1; });
  refuses([](SchedulerOptions& o) { o.enable_chunked_prefill = false; });
}

TEST(SchedulerOptionsTest, TheContextIsNoLongerThanAllBlocks) {
  SchedulerOptions options = small_options();
  options.blocks.num_blocks = 5;
  testing::Collector sink;
  EXPECT_EQ(Scheduler(options, sink).max_model_len(), 20);
  options.blocks.num_blocks = 1000;
  EXPECT_EQ(Scheduler(options, sink).max_model_len(), 128);
}

TEST(SchedulerTest, OneRequestGivesItsTokens) {
  Simulation simulation(small_options());
  simulation.add(make_request(1, 10, 5));
  EXPECT_EQ(simulation.run(), 5);
  expect_as_alone(simulation, 1);
  EXPECT_EQ(simulation.output(1).token_ids.size(), 5);
  EXPECT_FALSE(simulation.scheduler.has_live());
  EXPECT_EQ(simulation.scheduler.blocks().num_free_blocks(), 64);
}

TEST(SchedulerTest, WithoutRequestsThereIsNothingToSchedule) {
  Simulation simulation(small_options());
  EXPECT_FALSE(simulation.step());
}

TEST(SchedulerTest, RequestsJoinAndLeaveTheBatchAtAnyStep) {
  Simulation simulation(small_options());
  simulation.add(make_request(1, 4, 3));
  simulation.step();
  simulation.add(make_request(2, 5, 6, 9));
  simulation.step();
  EXPECT_EQ(scheduled_counts(simulation), (std::vector<int32_t>{1, 5}));
  simulation.run();
  expect_as_alone(simulation, 1);
  expect_as_alone(simulation, 2);
}

TEST(SchedulerTest, LongPromptsAreComputedInChunks) {
  Simulation simulation(small_options());
  simulation.add(make_request(1, 70, 2));
  std::vector<int32_t> chunks;
  std::vector<bool> samples;
  while (simulation.step()) {
    chunks.push_back(simulation.batch.sequences[0].num_scheduled_tokens);
    samples.push_back(simulation.batch.sequences[0].samples);
  }
  EXPECT_EQ(chunks, (std::vector<int32_t>{32, 32, 6, 1}));
  EXPECT_EQ(samples, (std::vector<bool>{false, false, true, true}));
  expect_as_alone(simulation, 1);
}

TEST(SchedulerTest, DecodesComeFirstAndPromptsTakeTheRestOfTheBudget) {
  Simulation simulation(small_options());
  simulation.add(make_request(1, 4, 10));
  simulation.add(make_request(2, 4, 10, 9));
  simulation.step();
  simulation.add(make_request(3, 60, 2, 17));
  simulation.step();
  EXPECT_EQ(scheduled_counts(simulation), (std::vector<int32_t>{1, 1, 30}));
  simulation.step();
  EXPECT_EQ(scheduled_counts(simulation), (std::vector<int32_t>{1, 1, 30}));
  simulation.run();
  for (uint64_t id = 1; id <= 3; ++id) expect_as_alone(simulation, id);
}

TEST(SchedulerTest, SeveralPromptsShareABudget) {
  Simulation simulation(small_options());
  simulation.add(make_request(1, 20, 2));
  simulation.add(make_request(2, 20, 2, 9));
  simulation.step();
  EXPECT_EQ(scheduled_counts(simulation), (std::vector<int32_t>{20, 12}));
  simulation.run();
  expect_as_alone(simulation, 1);
  expect_as_alone(simulation, 2);
}

TEST(SchedulerTest, WithoutChunkingAPromptIsComputedWhole) {
  SchedulerOptions options = small_options();
  options.enable_chunked_prefill = false;
  options.max_num_batched_tokens = 128;
  Simulation simulation(options);
  simulation.add(make_request(1, 100, 3));
  simulation.add(make_request(2, 100, 3, 9));
  simulation.step();
  EXPECT_EQ(scheduled_counts(simulation), (std::vector<int32_t>{100}));
  simulation.step();
  EXPECT_EQ(scheduled_counts(simulation), (std::vector<int32_t>{1, 100}));
  simulation.run();
  expect_as_alone(simulation, 1);
  expect_as_alone(simulation, 2);
}

TEST(SchedulerTest, ChunkingChangesNoToken) {
  std::vector<std::vector<int32_t>> outputs;
  for (const int64_t budget : {8, 13, 32, 128}) {
    SchedulerOptions options = small_options();
    options.max_num_batched_tokens = budget;
    options.enable_chunked_prefill = budget < 128;
    Simulation simulation(options);
    simulation.add(make_request(1, 90, 20));
    simulation.run();
    outputs.push_back(simulation.output(1).token_ids);
  }
  for (const std::vector<int32_t>& output : outputs) EXPECT_EQ(output, outputs[0]);
}

TEST(SchedulerTest, BesideDecodesPromptsTakeSmallPieces) {
  SchedulerOptions options = small_options();
  options.max_num_mixed_prefill_tokens = 5;
  Simulation simulation(options);
  simulation.add(make_request(1, 20, 9));
  simulation.step();
  EXPECT_EQ(scheduled_counts(simulation), (std::vector<int32_t>{20}));
  simulation.add(make_request(2, 12, 3, 9));
  for (const int32_t piece : {5, 5, 2}) {
    simulation.step();
    EXPECT_EQ(scheduled_counts(simulation), (std::vector<int32_t>{1, piece}));
  }
  simulation.run();
  expect_as_alone(simulation, 1);
  expect_as_alone(simulation, 2);
}

// Two prompts that come while one sequence decodes: what the next step takes of all three.
void expect_beside_a_decode(const SchedulerOptions& options, int64_t first, int64_t second,
                            const std::vector<int32_t>& counts) {
  Simulation simulation(options);
  simulation.add(make_request(1, 10, 30));
  simulation.step();
  simulation.add(make_request(2, first, 3, 9));
  simulation.add(make_request(3, second, 3, 19));
  simulation.step();
  EXPECT_EQ(scheduled_counts(simulation), counts);
  simulation.run();
  for (const uint64_t id : {1, 2, 3}) expect_as_alone(simulation, id);
}

TEST(SchedulerTest, TheMoreWaitsTheLargerThePieces) {
  SchedulerOptions options = small_options();
  options.max_num_mixed_prefill_tokens = 2;
  expect_beside_a_decode(options, 100, 60, {1, 160 / 16});
}

TEST(SchedulerTest, LimitsWithoutAnEndAreTheBudget) {
  SchedulerOptions options = small_options();
  options.max_num_batched_tokens = 16;
  options.max_num_mixed_prefill_tokens = std::numeric_limits<int64_t>::max();
  options.mixed_step_multiple = std::numeric_limits<int64_t>::max();
  expect_beside_a_decode(options, 9, 20, {1, 9, 6});
}

TEST(SchedulerTest, StepsWithDecodesAreFilledUpToAMultiple) {
  SchedulerOptions options = small_options();
  options.max_num_mixed_prefill_tokens = 5;
  options.mixed_step_multiple = 8;
  expect_beside_a_decode(options, 4, 20, {1, 4, 3});
  expect_beside_a_decode(options, 20, 9, {1, 7});
  options.max_num_mixed_prefill_tokens = 7;
  expect_beside_a_decode(options, 20, 9, {1, 7});
  options.max_num_mixed_prefill_tokens = 8;
  expect_beside_a_decode(options, 20, 9, {1, 15});
}

TEST(SchedulerTest, PiecesAreSharedByPromptsAndNeverExceedTheBudget) {
  SchedulerOptions options = small_options();
  options.max_num_mixed_prefill_tokens = 1000;
  options.max_num_batched_tokens = 16;
  expect_beside_a_decode(options, 9, 20, {1, 9, 6});
}

TEST(SchedulerTest, AtMostMaxNumSeqsRun) {
  Simulation simulation(small_options());
  for (uint64_t id = 0; id < 20; ++id) simulation.add(make_request(id, 2, 4, int32_t(id)));
  std::set<int32_t> slots;
  while (simulation.step()) {
    EXPECT_LE(simulation.batch.sequences.size(), 8);
    for (const ScheduledSequence& row : simulation.batch.sequences) slots.insert(row.slot);
  }
  EXPECT_EQ(slots, (std::set<int32_t>{0, 1, 2, 3, 4, 5, 6, 7}));
  for (uint64_t id = 0; id < 20; ++id) expect_as_alone(simulation, id);
}

TEST(SchedulerTest, ASequenceKeepsItsSlotWhileItRuns) {
  Simulation simulation(small_options());
  simulation.add(make_request(1, 4, 2));
  simulation.add(make_request(2, 4, 9, 9));
  simulation.step();
  const int32_t slot = simulation.batch.sequences[1].slot;
  EXPECT_TRUE(simulation.batch.sequences[1].is_new_in_slot);
  simulation.step();
  EXPECT_FALSE(simulation.batch.sequences[1].is_new_in_slot);
  simulation.add(make_request(3, 4, 9, 17));
  simulation.step();
  EXPECT_EQ(simulation.batch.sequences[0].slot, slot);
  EXPECT_TRUE(simulation.batch.sequences[1].is_new_in_slot);
}

TEST(SchedulerTest, FcfsAdmitsInOrderWhateverThePriority) {
  SchedulerOptions options = small_options();
  options.max_num_seqs = 1;
  Simulation simulation(options);
  for (uint64_t id = 0; id < 4; ++id) {
    Request request = make_request(id, 4, 1, int32_t(id));
    request.priority = -static_cast<int32_t>(id);
    simulation.add(request);
  }
  for (uint64_t id = 0; id < 4; ++id) {
    simulation.step();
    EXPECT_EQ(simulation.sink.sequences.size(), id + 1);
    EXPECT_TRUE(simulation.sink.sequences.contains({id, 0}));
  }
}

TEST(SchedulerTest, PriorityAdmitsTheLowestFirstThenTheOldest) {
  SchedulerOptions options = small_options();
  options.max_num_seqs = 1;
  options.policy = SchedulingPolicy::kPriority;
  Simulation simulation(options);
  const std::vector<int32_t> priorities{5, 0, 5, -3, 0};
  for (uint64_t id = 0; id < priorities.size(); ++id) {
    Request request = make_request(id, 4, 1, int32_t(id));
    request.priority = priorities[id];
    simulation.add(request);
  }
  std::set<uint64_t> finished;
  for (const uint64_t id : {3, 1, 4, 0, 2}) {
    simulation.step();
    finished.insert(id);
    EXPECT_EQ(simulation.sink.sequences.size(), finished.size());
    EXPECT_TRUE(simulation.sink.sequences.contains({id, 0})) << id;
  }
}

TEST(SchedulerTest, AStreamOfUrgentRequestsStarvesNobody) {
  SchedulerOptions options = small_options();
  options.max_num_seqs = 1;
  options.policy = SchedulingPolicy::kPriority;
  Simulation simulation(options);
  Request patient = make_request(0, 4, 1);
  patient.priority = 2;
  simulation.add(make_request(1, 4, 1));
  simulation.add(patient);
  uint64_t id = 2;
  while (!simulation.sink.sequences.contains({0, 0})) {
    simulation.add(make_request(id, 4, 1, int32_t(id % 50)));
    simulation.step();
    ++id;
    ASSERT_LT(id, 4000);
  }
  EXPECT_GT(id, 2000);  // it did give way for as long as its priority says
}

TEST(SchedulerTest, NobodyOvertakesARequestThatWaitsForBlocks) {
  SchedulerOptions options = small_options();
  options.blocks.num_blocks = 20;
  Simulation simulation(options);
  simulation.add(make_request(1, 40, 20));
  simulation.step();
  simulation.step();
  simulation.add(make_request(2, 60, 2, 9));
  simulation.add(make_request(3, 2, 2, 17));
  while (!simulation.sink.sequences.contains({2, 0})) {
    EXPECT_FALSE(simulation.sink.sequences.contains({3, 0}));
    ASSERT_TRUE(simulation.step());
  }
  simulation.run();
  for (uint64_t id = 1; id <= 3; ++id) expect_as_alone(simulation, id);
}

TEST(SchedulerTest, AnAdmissionLeavesBlocksForThoseThatRun) {
  SchedulerOptions options = small_options();
  options.blocks.num_blocks = 640;
  options.max_model_len = 2560;
  options.max_num_batched_tokens = 4096;
  for (const bool fits : {true, false}) {
    Simulation simulation(options);
    simulation.add(make_request(1, 250 * 4, 3));
    simulation.add(make_request(2, (fits ? 380 : 381) * 4, 3, 9));  // a 64th is 10 blocks
    simulation.step();
    EXPECT_EQ(simulation.batch.sequences.size(), fits ? 2 : 1);
    simulation.run();
    expect_as_alone(simulation, 2);
  }
}

TEST(SequenceSeedTest, NeighboursShareNoSeed) {
  std::set<uint64_t> seeds;
  for (uint64_t seed = 0; seed < 64; ++seed) {
    for (int32_t index = 0; index < 64; ++index) seeds.insert(sequence_seed(seed, index));
  }
  EXPECT_EQ(seeds.size(), 64 * 64);
}

TEST(SequenceSeedTest, OneBitOfTheSeedChangesHalfOfTheResult) {
  for (int bit = 0; bit < 64; ++bit) {
    const uint64_t difference = sequence_seed(12345, 1) ^ sequence_seed(12345 ^ 1ULL << bit, 1);
    EXPECT_GT(__builtin_popcountll(difference), 12) << bit;
    EXPECT_LT(__builtin_popcountll(difference), 52) << bit;
  }
}

TEST(SequenceSeedTest, UnseededRequestsDependOnTheEngineSeedAndTheirId) {
  const auto output = [](uint64_t engine_seed, uint64_t id) {
    SchedulerOptions options = small_options();
    options.seed = engine_seed;
    Simulation simulation(options);
    Request request = make_request(id, 9, 12);
    request.sampling.temperature = 1.0f;
    simulation.add(request);
    simulation.run();
    return simulation.output(id).token_ids;
  };
  EXPECT_EQ(output(1, 1), output(1, 1));
  EXPECT_NE(output(1, 1), output(2, 1));
  EXPECT_NE(output(1, 1), output(1, 2));
}

TEST(SchedulerTest, AddRefusesWhatItRequires) {
  Simulation simulation(small_options());
  EXPECT_THROW(simulation.scheduler.add(make_request(1, 0, 1)), CheckError);
  EXPECT_THROW(simulation.scheduler.add(make_request(1, 128, 1)), CheckError);
  simulation.scheduler.add(make_request(1, 127, 1));
  EXPECT_THROW(simulation.scheduler.add(make_request(1, 4, 1)), CheckError);
  simulation.scheduler.self_check();
}

TEST(SchedulerTest, NoMoreStepsAreInFlightThanMayBe) {
  Simulation simulation(small_options());
  simulation.add(make_request(1, 4, 4));
  simulation.scheduler.schedule(simulation.batch);
  EXPECT_THROW(simulation.scheduler.schedule(simulation.batch), CheckError);
}

TEST(SchedulerTest, FinishedIdsAreReportedOnce) {
  Simulation simulation(small_options());
  simulation.add(make_request(4, 4, 1));
  simulation.add(make_request(5, 4, 2));
  std::vector<uint64_t> ids;
  simulation.step();
  simulation.scheduler.take_finished(ids);
  EXPECT_EQ(ids, (std::vector<uint64_t>{4}));
  simulation.run();
  simulation.scheduler.take_finished(ids);
  EXPECT_EQ(ids, (std::vector<uint64_t>{5}));
  simulation.scheduler.take_finished(ids);
  EXPECT_TRUE(ids.empty());
}

TEST(SchedulerTest, WaitingRequestsAndTokensAreCountedUntilAdmission) {
  SchedulerOptions options = small_options();
  options.max_num_seqs = 1;
  Simulation simulation(options);
  simulation.add(make_request(1, 5, 2));
  simulation.add(make_request(2, 7, 2));
  EXPECT_EQ(simulation.scheduler.stats().num_waiting_requests, 2);
  EXPECT_EQ(simulation.scheduler.stats().num_waiting_tokens, 12);
  simulation.step();
  EXPECT_EQ(simulation.scheduler.stats().num_waiting_requests, 1);
  EXPECT_EQ(simulation.scheduler.stats().num_waiting_tokens, 7);
  simulation.scheduler.abort(2);
  EXPECT_EQ(simulation.scheduler.stats().num_waiting_requests, 0);
  EXPECT_EQ(simulation.scheduler.stats().num_waiting_tokens, 0);
}

}  // namespace
}  // namespace octavo
