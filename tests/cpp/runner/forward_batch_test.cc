#include "runner/forward_batch.h"

#include <gtest/gtest.h>

#include "model/reference_backend.h"

namespace octavo::testing {
namespace {

constexpr BatchLimits kLimits{
    .max_num_seqs = 4, .max_num_batched_tokens = 16, .max_model_len = 32, .block_size = 4};

template <typename T>
std::vector<T> read(const T* data, int64_t count) {
  return {data, data + count};
}

struct Fixture {
  ReferenceBackend backend;
  ForwardBatch forward{backend, kLimits};
  SamplingParams plain;
  SamplingParams with_prompt;
  std::vector<int32_t> tokens_a = {5, 6, 7, 8, 9, 10};
  std::vector<int32_t> tokens_b = {20, 21, 22};
  std::vector<int32_t> blocks_a = {3, 1};
  std::vector<int32_t> blocks_b = {2};
  ScheduledBatch batch;

  Fixture() { with_prompt.prompt_logprobs = 0; }

  // A decodes position 5; B prefills 0..2.
  void decode_and_prefill(bool b_reports_prompt) {
    batch.clear();
    ScheduledSequence a;
    a.token_ids = tokens_a;
    a.num_prompt_tokens = 4;
    a.num_computed_tokens = 5;
    a.num_scheduled_tokens = 1;
    a.block_table = blocks_a;
    a.samples = true;
    a.sampling = &plain;
    ScheduledSequence b;
    b.token_ids = tokens_b;
    b.num_prompt_tokens = 3;
    b.num_scheduled_tokens = 3;
    b.block_table = blocks_b;
    b.samples = true;
    b.sampling = b_reports_prompt ? &with_prompt : &plain;
    batch.sequences = {a, b};
    batch.num_tokens = 4;
  }
};

TEST(ForwardBatch, FlattensTheBatch) {
  Fixture f;
  f.decode_and_prefill(false);
  const ForwardInputs& in = f.forward.build(f.batch);
  EXPECT_EQ(in.num_tokens, 4);
  EXPECT_EQ(in.num_seqs, 2);
  EXPECT_EQ(in.num_logits, 2);
  EXPECT_EQ(in.max_query_len, 3);
  EXPECT_EQ(in.max_seq_len, 6);
  EXPECT_EQ(read(in.token_ids, 4), (std::vector<int32_t>{10, 20, 21, 22}));
  EXPECT_EQ(read(in.positions, 4), (std::vector<int32_t>{5, 0, 1, 2}));
  EXPECT_EQ(read(in.slot_mapping, 4), (std::vector<int64_t>{5, 8, 9, 10}));
  EXPECT_EQ(read(in.query_start_loc, 3), (std::vector<int32_t>{0, 1, 4}));
  EXPECT_EQ(read(in.seq_lens, 2), (std::vector<int32_t>{6, 3}));
  EXPECT_EQ(in.block_table_stride, kLimits.max_blocks_per_sequence());
  EXPECT_EQ(read(in.block_tables, 2), f.blocks_a);
  EXPECT_EQ(read(in.block_tables + in.block_table_stride, 1), f.blocks_b);
  EXPECT_EQ(read(in.logits_indices, 2), (std::vector<int32_t>{0, 3}));
  EXPECT_EQ(in.host_seq_lens[1], 3);
  EXPECT_EQ(in.host_query_start_loc[2], 4);
}

TEST(ForwardBatch, PromptRowsStandBeforeTheDraw) {
  Fixture f;
  f.decode_and_prefill(true);
  const ForwardInputs& in = f.forward.build(f.batch);
  EXPECT_EQ(read(in.logits_indices, in.num_logits), (std::vector<int32_t>{0, 1, 2, 3}));
  const std::span<const SampleRow> rows = f.forward.sample_rows();
  ASSERT_EQ(rows.size(), 4u);
  EXPECT_EQ(rows[0].target_id, -1);
  EXPECT_EQ(rows[1].target_id, 21);
  EXPECT_EQ(rows[2].target_id, 22);
  EXPECT_EQ(rows[3].target_id, -1);
  EXPECT_EQ(rows[3].batch_row, 1);
  EXPECT_EQ(rows[3].sequence, &f.batch.sequences[1]);
}

TEST(ForwardBatch, AChunkInsideThePromptDrawsNothing) {
  Fixture f;
  f.decode_and_prefill(true);
  f.batch.sequences.erase(f.batch.sequences.begin());
  f.batch.sequences[0].num_scheduled_tokens = 2;
  f.batch.sequences[0].samples = false;
  f.batch.num_tokens = 2;
  f.forward.build(f.batch);
  ASSERT_EQ(f.forward.sample_rows().size(), 2u);
  EXPECT_EQ(f.forward.sample_rows()[1].target_id, 22);
}

TEST(ForwardBatch, OutputTokensAreNoPromptRows) {
  Fixture f;
  f.decode_and_prefill(false);
  f.batch.sequences.pop_back();
  ScheduledSequence& a = f.batch.sequences[0];  // recomputed from the start, two tokens are output
  a.num_computed_tokens = 0;
  a.num_scheduled_tokens = 6;
  a.sampling = &f.with_prompt;
  f.batch.num_tokens = 6;
  const ForwardInputs& in = f.forward.build(f.batch);
  EXPECT_EQ(read(in.logits_indices, in.num_logits), (std::vector<int32_t>{0, 1, 2, 5}));
}

TEST(ForwardBatch, PaddingIsNoSequenceAndWritesNoSlot) {
  Fixture f;
  f.decode_and_prefill(false);
  f.batch.sequences.pop_back();
  f.batch.num_tokens = 1;
  const ForwardInputs& in = f.forward.build(f.batch, 3);
  EXPECT_EQ(in.num_tokens, 4);
  EXPECT_EQ(in.num_seqs, 4);
  EXPECT_EQ(in.num_logits, 4);
  EXPECT_EQ(read(in.token_ids, 4), (std::vector<int32_t>{10, 0, 0, 0}));
  EXPECT_EQ(read(in.slot_mapping, 4), (std::vector<int64_t>{5, -1, -1, -1}));
  EXPECT_EQ(read(in.seq_lens, 4), (std::vector<int32_t>{6, 0, 0, 0}));
  EXPECT_EQ(read(in.query_start_loc, 5), (std::vector<int32_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(read(in.logits_indices, 4), (std::vector<int32_t>{0, 1, 2, 3}));
  EXPECT_EQ(in.host_seq_lens[3], 0);
  EXPECT_EQ(in.host_query_start_loc[4], 4);
  EXPECT_EQ(f.forward.sample_rows().size(), 1u);
}

TEST(ForwardBatch, EachTokenHasTheAdapterOfItsSequence) {
  Fixture f;
  f.decode_and_prefill(false);
  EXPECT_EQ(f.forward.build(f.batch).lora_slots, nullptr);
  f.batch.sequences[1].lora_slot = 2;
  EXPECT_EQ(read(f.forward.build(f.batch).lora_slots, 4), (std::vector<int32_t>{-1, 2, 2, 2}));
  f.batch.sequences.pop_back();
  f.batch.sequences[0].lora_slot = 0;
  f.batch.num_tokens = 1;
  EXPECT_EQ(read(f.forward.build(f.batch, 2).lora_slots, 3), (std::vector<int32_t>{0, -1, -1}));
}

TEST(ForwardBatch, AddressesStayTheSame) {
  Fixture f;
  f.decode_and_prefill(false);
  const ForwardInputs first = f.forward.build(f.batch);
  f.batch.sequences.pop_back();
  f.batch.num_tokens = 1;
  const ForwardInputs& second = f.forward.build(f.batch, 2);
  EXPECT_EQ(first.token_ids, second.token_ids);
  EXPECT_EQ(first.slot_mapping, second.slot_mapping);
  EXPECT_EQ(first.block_tables, second.block_tables);
  EXPECT_EQ(first.logits_indices, second.logits_indices);
}

TEST(ForwardBatch, AllocatesOnceAndChecksItsLimits) {
  Fixture f;
  const int before = f.backend.num_allocations;
  f.decode_and_prefill(true);
  f.forward.build(f.batch);
  f.forward.build(f.batch);
  EXPECT_EQ(f.backend.num_allocations, before);

  f.batch.num_tokens = 5;
  EXPECT_THROW(f.forward.build(f.batch), CheckError);
  f.decode_and_prefill(false);
  f.batch.sequences[0].block_table = f.batch.sequences[0].block_table.first(1);
  EXPECT_THROW(f.forward.build(f.batch), CheckError);
  f.decode_and_prefill(false);
  f.batch.sequences.resize(5, f.batch.sequences[0]);
  EXPECT_THROW(f.forward.build(f.batch), CheckError);
}

}  // namespace
}  // namespace octavo::testing
