#include "runner/warm_up.h"

#include <algorithm>

namespace octavo {
namespace {

// Enough rows behind the decodes of a mixed step to take the prefill paths of every operation.
constexpr int64_t kMixedPrefillTokens = 64;

// A prompt short enough that attention divides its keys among the processors of a device.
constexpr int64_t kShortPrefillTokens = 512;

// Reading the weights once takes as long as computing about so many tokens: two CPU cores, see
// bench/results/2026-11-22-startup.md.
constexpr int64_t kTokensOfOneStep = 12;

int64_t prefill_length(int64_t wanted, int64_t num_blocks, const RunnerConfig& config,
                       const MemoryPlan& plan) {
  return std::min({wanted, plan.max_model_len, num_blocks * config.block_size});
}

WarmUpShape full_chunk(const RunnerConfig& config, const MemoryPlan& plan) {
  WarmUpShape shape;
  const int64_t budget = config.max_num_batched_tokens;
  shape.prefill_tokens = prefill_length(budget, plan.num_blocks, config, plan);
  const int64_t blocks_each = (shape.prefill_tokens + config.block_size - 1) / config.block_size;
  shape.num_prefills =
      std::min({config.max_num_seqs, budget / shape.prefill_tokens, plan.num_blocks / blocks_each});
  return shape;
}

}  // namespace

std::vector<int64_t> decode_batch_sizes(int64_t most) {
  std::vector<int64_t> sizes;
  int64_t size = 1;
  while (size < most) {
    sizes.push_back(size);
    if (size < 8) {
      size *= 2;
    } else if (size < 64) {
      size += size % 3 == 0 ? size / 3 : size / 2;
    } else {
      size += size < 256 ? 32 : 64;
    }
  }
  sizes.push_back(most);
  return sizes;
}

// With graphs the largest step comes first, so that what they record is never replaced; else last,
// so that progress shows soon.
std::vector<WarmUpShape> warm_up_shapes(const RunnerConfig& config, const MemoryPlan& plan,
                                        bool has_graphs) {
  const WarmUpShape chunk = full_chunk(config, plan);
  if (plan.max_model_len < config.block_size) return {chunk};

  std::vector<WarmUpShape> shapes;
  if (has_graphs) {
    shapes.push_back(chunk);
    const int64_t tokens = std::min(kShortPrefillTokens, chunk.prefill_tokens);
    if (tokens < chunk.prefill_tokens) shapes.push_back({0, 1, tokens});
  }
  const int64_t most =
      std::min({config.max_num_seqs, config.max_num_batched_tokens, plan.num_blocks});
  if (has_graphs) {
    for (const int64_t n : decode_batch_sizes(most)) shapes.push_back({n, 0, 0});
  } else {
    for (int64_t n = 1; n < most; n *= 2) shapes.push_back({n, 0, 0});
    shapes.push_back({most, 0, 0});
  }

  const int64_t decodes = most / 2;
  const int64_t tokens_left =
      std::min(kMixedPrefillTokens, config.max_num_batched_tokens - decodes);
  const int64_t prefill = prefill_length(tokens_left, plan.num_blocks - decodes, config, plan);
  if (decodes > 0 && prefill > 0) shapes.push_back({decodes, 1, prefill});
  if (!has_graphs) shapes.push_back(chunk);
  return shapes;
}

double warm_up_cost(const WarmUpShape& shape) {
  const int64_t tokens = shape.num_decodes + shape.num_prefills * shape.prefill_tokens;
  return static_cast<double>(kTokensOfOneStep + tokens);
}

WarmUpBatch::WarmUpBatch(const WarmUpShape& shape, int64_t block_size, int64_t vocab_size)
    : block_size_(block_size), vocab_size_(vocab_size) {
  greedy_.temperature = 0.0f;
  random_.temperature = 0.8f;
  random_.top_k = 40;
  random_.top_p = 0.9f;
  random_.min_p = 0.01f;
  random_.repetition_penalty = 1.1f;
  random_.frequency_penalty = 0.1f;
  random_.logprobs = static_cast<int32_t>(std::min<int64_t>(5, vocab_size));
  for (int64_t i = 0; i < shape.num_decodes; ++i) add_sequence(block_size - 1, 1);
  for (int64_t i = 0; i < shape.num_prefills; ++i) add_sequence(0, shape.prefill_tokens);
  point_batch_at_storage();
}

void WarmUpBatch::add_sequence(int64_t num_computed_tokens, int64_t num_scheduled_tokens) {
  const int64_t num_tokens = num_computed_tokens + num_scheduled_tokens;
  Storage storage;
  for (int64_t i = 0; i < num_tokens; ++i) {
    storage.token_ids.push_back(static_cast<int32_t>(i % vocab_size_));
  }
  for (int64_t i = 0; i < num_tokens; i += block_size_) {
    storage.block_table.push_back(next_block_++);
  }
  const auto slot = static_cast<int32_t>(storage_.size());
  storage_.push_back(std::move(storage));

  ScheduledSequence sequence;
  sequence.slot = slot;
  sequence.is_new_in_slot = true;
  sequence.num_prompt_tokens = num_tokens;
  sequence.num_computed_tokens = num_computed_tokens;
  sequence.num_scheduled_tokens = static_cast<int32_t>(num_scheduled_tokens);
  sequence.samples = true;
  sequence.sampling = slot % 2 == 0 ? &greedy_ : &random_;
  batch_.sequences.push_back(sequence);
  batch_.num_tokens += num_scheduled_tokens;
}

void WarmUpBatch::point_batch_at_storage() {
  for (size_t i = 0; i < storage_.size(); ++i) {
    batch_.sequences[i].token_ids = storage_[i].token_ids;
    batch_.sequences[i].block_table = storage_[i].block_table;
  }
}

void WarmUpBatch::append_and_continue(int32_t token_id) {
  ScheduledSequence& sequence = batch_.sequences[0];
  sequence.is_new_in_slot = false;
  sequence.num_computed_tokens = static_cast<int64_t>(storage_[0].token_ids.size());
  sequence.num_scheduled_tokens = 1;
  storage_[0].token_ids.push_back(token_id);
  const auto num_tokens = static_cast<int64_t>(storage_[0].token_ids.size());
  if (std::ssize(storage_[0].block_table) * block_size_ < num_tokens) {
    storage_[0].block_table.push_back(next_block_++);
  }
  batch_.num_tokens = 1;
  point_batch_at_storage();
}

}  // namespace octavo
