#include "cuda/sampler.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "base/check.h"

namespace octavo::cuda {
namespace {

// As on the CPU: below this the reciprocal would leave float32's useful range.
constexpr float kGreedyTemperature = 1e-5f;

template <typename Memory>
void grow(Memory& memory, int64_t size_bytes) {
  if (memory.size_bytes() < size_bytes) memory = Memory(size_bytes + size_bytes / 2);
}

bool has_penalties(const SamplingParams& sampling) {
  return sampling.repetition_penalty != 1.0f || sampling.presence_penalty != 0.0f ||
         sampling.frequency_penalty != 0.0f;
}

int32_t wanted_entries(const SampleRow& row) {
  const SamplingParams& sampling = *row.sequence->sampling;
  const int32_t wanted = row.target_id >= 0 ? sampling.prompt_logprobs : sampling.logprobs;
  return wanted < 0 ? 0 : 1 + wanted;
}

// Last tokens of the bad words whose beginning the history ends with.
void append_completions(const ScheduledSequence& sequence, std::vector<int32_t>& out) {
  for (const std::vector<int32_t>& word : sequence.sampling->bad_words) {
    if (word.empty() || word.size() - 1 > sequence.token_ids.size()) continue;
    const auto beginning = std::span(word).first(word.size() - 1);
    if (std::ranges::equal(beginning, sequence.token_ids.last(beginning.size()))) {
      out.push_back(word.back());
    }
  }
}

}  // namespace

int64_t Sampler::input_bytes() const {
  return static_cast<int64_t>(params_.size() * sizeof(SampleRowParams) +
                              lists_.size() * sizeof(int32_t));
}

int64_t Sampler::output_bytes() const {
  return static_cast<int64_t>(params_.size() * sizeof(SampledToken) +
                              num_entries_ * sizeof(LogprobEntry));
}

void Sampler::pack_row(const SampleRow& row, int64_t vocab) {
  const ScheduledSequence& sequence = *row.sequence;
  const SamplingParams& sampling = *sequence.sampling;
  SampleRowParams params;
  params.target_id = row.target_id;
  check(row.target_id < vocab, "log-probability of a token outside the logits");
  if (row.target_id < 0) {
    check(sequence.slot >= 0 && sequence.slot < kMaxSlots, "sample: slot");
    params.drawn_id = drawn_ids_.as<int32_t>() + sequence.slot;
    params.seed = sequence.seed;
    params.position = sequence.token_ids.size();
    const bool greedy = sampling.temperature < kGreedyTemperature;
    params.inverse_temperature = greedy ? 0.0f : 1.0f / sampling.temperature;
    params.top_k = sampling.top_k < vocab ? std::max(0, sampling.top_k) : 0;
    params.top_p = sampling.top_p;
    params.min_p = sampling.min_p;
    pack_rules(sequence, vocab, params);
  }
  pack_entries(row, params);
  params_.push_back(params);
}

void Sampler::pack_entries(const SampleRow& row, SampleRowParams& params) {
  params.num_entries = wanted_entries(row);
  if (params.num_entries == 0) return;
  params.first_entry = num_entries_;
  num_entries_ += params.num_entries;
  params.raw_row = num_raw_rows_++;
  if (params.has_rules != 0) params.copy_row = num_copies_++;
}

void Sampler::pack_rules(const ScheduledSequence& sequence, int64_t vocab,
                         SampleRowParams& params) {
  const SamplingParams& sampling = *sequence.sampling;
  params.bias_at = static_cast<int32_t>(lists_.size());
  params.num_biases = static_cast<int32_t>(sampling.logit_bias.size());
  for (const auto& [id, bias] : sampling.logit_bias) lists_.push_back(id);
  for (const auto& [id, bias] : sampling.logit_bias) {
    lists_.push_back(std::bit_cast<int32_t>(bias));
  }
  params.ban_at = static_cast<int32_t>(lists_.size());
  const auto banned = sequence.banned_token_ids;
  lists_.insert(lists_.end(), banned.begin(), banned.end());
  append_completions(sequence, lists_);
  params.num_bans = static_cast<int32_t>(lists_.size()) - params.ban_at;
  if (!sampling.allowed_token_ids.empty() || !sequence.token_bitmask.empty()) {
    pack_mask(sequence, vocab, params);
  }
  if (has_penalties(sampling)) pack_counts(sequence, vocab, params);
  params.has_rules =
      params.num_biases + params.num_bans + params.mask_words > 0 || params.counts != nullptr;
}

// What both the allowed ids and the bitmask allow.
void Sampler::pack_mask(const ScheduledSequence& sequence, int64_t vocab, SampleRowParams& params) {
  constexpr int32_t kBits = 32;
  const std::vector<int32_t>& allowed = sequence.sampling->allowed_token_ids;
  params.mask_at = static_cast<int32_t>(lists_.size());
  params.mask_words = static_cast<int32_t>((vocab + kBits - 1) / kBits);
  lists_.resize(lists_.size() + params.mask_words, allowed.empty() ? -1 : 0);
  int32_t* words = lists_.data() + params.mask_at;
  for (const int32_t id : allowed) {
    if (id >= 0 && id < vocab) words[id / kBits] |= static_cast<int32_t>(1u << (id % kBits));
  }
  const auto bitmask = sequence.token_bitmask;
  if (bitmask.empty()) return;
  for (size_t i = 0; i < static_cast<size_t>(params.mask_words); ++i) {
    words[i] &= i < bitmask.size() ? static_cast<int32_t>(bitmask[i]) : 0;
  }
}

// The device counts each token that it draws; the history is counted anew only when the slot's
// counts are not those of this sequence one token ago.
void Sampler::pack_counts(const ScheduledSequence& sequence, int64_t vocab,
                          SampleRowParams& params) {
  const SamplingParams& sampling = *sequence.sampling;
  const auto num_tokens = static_cast<int64_t>(sequence.token_ids.size());
  if (std::ssize(slots_) <= sequence.slot) slots_.resize(sequence.slot + 1);
  SlotCounts& slot = slots_[sequence.slot];
  const bool is_current = !sequence.is_new_in_slot && num_tokens > sequence.num_prompt_tokens &&
                          slot.seed == sequence.seed &&
                          slot.num_prompt_tokens == sequence.num_prompt_tokens &&
                          slot.num_counted == num_tokens && slot.vocab == vocab;
  if (!is_current) {
    check(sequence.token_ids.back() != kPendingToken, "sample: a token to count is not known yet");
    if (slot.vocab != vocab) slot.counts = DeviceMemory(vocab * sizeof(int32_t));
    rebuilds_.push_back(
        {slot.counts.as<int32_t>(), std::ssize(lists_), num_tokens, sequence.num_prompt_tokens});
    lists_.insert(lists_.end(), sequence.token_ids.begin(), sequence.token_ids.end());
  }
  slot.seed = sequence.seed;
  slot.num_prompt_tokens = sequence.num_prompt_tokens;
  slot.num_counted = num_tokens + 1;
  slot.vocab = vocab;
  params.counts = slot.counts.as<int32_t>();
  params.repetition_penalty = sampling.repetition_penalty;
  params.presence_penalty = sampling.presence_penalty;
  params.frequency_penalty = sampling.frequency_penalty;
}

void Sampler::add_targets(std::span<const SampleRow> rows, Piece& piece) const {
  piece.targets.clear();
  for (size_t i = 0; i < rows.size(); ++i) {
    piece.targets.push_back(
        {rows[i].batch_row, params_[i].first_entry, params_[i].num_entries, rows[i].target_id < 0});
  }
}

void Sampler::reserve(int64_t vocab, Piece& piece) {
  grow(piece.input, input_bytes());
  grow(piece.output, output_bytes());
  grow(input_, input_bytes());
  const auto num_rows = static_cast<int64_t>(params_.size());
  grow(runs_, (num_rows + num_raw_rows_) * num_runs(static_cast<int>(vocab)) * sizeof(float2));
  grow(copies_, num_copies_ * vocab * sizeof(float));
}

void Sampler::launch(const DeviceContext& context, TensorView logits, Piece& piece) {
  const size_t params_bytes = params_.size() * sizeof(SampleRowParams);
  std::memcpy(piece.input.as(), params_.data(), params_bytes);
  std::memcpy(piece.input.as() + params_bytes, lists_.data(), lists_.size() * sizeof(int32_t));
  check_cuda(cudaMemcpyAsync(input_.data(), piece.input.as(), input_bytes(), cudaMemcpyHostToDevice,
                             context.stream));
  SampleArrays arrays;
  arrays.logits = logits.as<float>();
  arrays.stride = logits.row_stride;
  arrays.vocab = static_cast<int>(logits.cols());
  arrays.num_rows = static_cast<int>(params_.size());
  arrays.num_raw_rows = num_raw_rows_;
  arrays.rows = input_.as<SampleRowParams>();
  arrays.lists = reinterpret_cast<const int32_t*>(input_.as() + params_bytes);
  arrays.copies = copies_.as<float>();
  arrays.runs = runs_.as<float2>();
  arrays.raw_runs = arrays.runs + static_cast<int64_t>(arrays.num_rows) * num_runs(arrays.vocab);
  arrays.tokens = piece.output.as<SampledToken>();
  arrays.entries = reinterpret_cast<LogprobEntry*>(arrays.tokens + arrays.num_rows);
  for (const Rebuild& rebuild : rebuilds_) {
    count_history(
        {rebuild.counts, arrays.lists + rebuild.history_at, static_cast<int>(rebuild.num_tokens),
         static_cast<int>(rebuild.num_prompt_tokens), arrays.vocab},
        context.stream);
  }
  sample_statistics(arrays, context.stream);
  sample_draw(arrays, context.stream);
}

void Sampler::unpack(const Piece& piece) {
  const auto* tokens = piece.output.as<const SampledToken>();
  const auto* entries = reinterpret_cast<const LogprobEntry*>(tokens + piece.targets.size());
  constexpr LogprobEntry kMissing{-1, std::numeric_limits<float>::quiet_NaN(), 0};
  StepResult& result = *piece.result;
  for (size_t i = 0; i < piece.targets.size(); ++i) {
    const Target& target = piece.targets[i];
    if (target.is_draw) result.token_ids[target.batch_row] = tokens[i].token_id;
    if (tokens[i].is_invalid != 0) result.is_invalid[target.batch_row] = 1;
    auto& out = target.is_draw ? result.logprobs : result.prompt_logprobs;
    const LogprobEntry* first = entries + target.first_entry;
    if (tokens[i].is_invalid != 0) {
      out.insert(out.end(), target.num_entries, kMissing);
    } else {
      out.insert(out.end(), first, first + target.num_entries);
    }
  }
}

void Sampler::begin_step() {
  check(num_ended_ - num_waited_ < kMaxStepsInFlight, "sample: too many steps in flight");
  steps_[num_ended_ % kMaxStepsInFlight].num_pieces = 0;
}

void Sampler::sample(const DeviceContext& context, TensorView logits,
                     std::span<const SampleRow> rows, StepResult& result) {
  check(logits.dtype == DType::kFloat32 && logits.rows() == std::ssize(rows),
        "sample: a row of float32 logits for each sample row");
  if (rows.empty()) return;
  params_.clear();
  lists_.clear();
  rebuilds_.clear();
  num_entries_ = num_raw_rows_ = num_copies_ = 0;
  for (const SampleRow& row : rows) pack_row(row, logits.cols());
  Step& step = steps_[num_ended_ % kMaxStepsInFlight];
  if (step.num_pieces == step.pieces.size()) step.pieces.emplace_back();
  Piece& piece = step.pieces[step.num_pieces];
  piece.result = &result;
  add_targets(rows, piece);
  reserve(logits.cols(), piece);
  launch(context, logits, piece);
  ++step.num_pieces;
}

void Sampler::end_step(const DeviceContext& context) {
  steps_[num_ended_ % kMaxStepsInFlight].done.record(context.stream);
  ++num_ended_;
}

void Sampler::wait_step() {
  check(num_waited_ < num_ended_, "sample: no step is in flight");
  const Step& step = steps_[num_waited_++ % kMaxStepsInFlight];
  step.done.synchronize();
  for (const Piece& piece : std::span(step.pieces).first(step.num_pieces)) unpack(piece);
}

}  // namespace octavo::cuda
