// What a consumer of an engine has seen, sequence by sequence.
#pragma once

#include <algorithm>
#include <chrono>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "engine/engine.h"

namespace octavo::testing {

struct TakenSequence {
  uint16_t connection = 0;
  std::vector<int32_t> token_ids;
  FinishReason finish_reason = FinishReason::kNone;
  std::vector<LogprobEntry> logprobs;
  uint32_t num_cached_tokens = 0;
  std::string error;
};

class TakenOutputs {
 public:
  // What waits, within `timeout`. False once the engine has ended and nothing is left. Throws if a
  // sequence goes on after its last record.
  bool take(Engine& engine, std::chrono::nanoseconds timeout = {}) {
    const bool is_open = engine.take_outputs(batches_, timeout);
    for (const OutputBatch& batch : batches_) read(batch);
    return is_open;
  }

  const TakenSequence& at(uint64_t request_id, uint32_t index = 0) const {
    return sequences_.at({request_id, index});
  }
  const auto& all() const { return sequences_; }
  bool empty() const { return sequences_.empty(); }
  int64_t num_finished() const {
    return std::ssize(sequences_) - num_finished(FinishReason::kNone);
  }
  int64_t num_finished(FinishReason reason) const {
    return std::ranges::count_if(
        sequences_, [reason](const auto& item) { return item.second.finish_reason == reason; });
  }

 private:
  void read(const OutputBatch& batch) {
    auto token = batch.token_ids.begin();
    auto logprob = batch.logprobs.begin();
    for (const OutputRecord& record : batch.records) {
      TakenSequence& sequence = sequences_[{record.request_id, record.sequence_index}];
      check(sequence.finish_reason == FinishReason::kNone, "a record after the last one");
      sequence.connection = batch.connection;
      sequence.token_ids.insert(sequence.token_ids.end(), token, token + record.num_tokens);
      token += record.num_tokens;
      sequence.logprobs.insert(sequence.logprobs.end(), logprob, logprob + record.num_logprobs);
      logprob += record.num_logprobs;
      sequence.finish_reason = static_cast<FinishReason>(record.finish_reason);
      sequence.num_cached_tokens = record.num_cached_tokens;
    }
    check(token == batch.token_ids.end(), "tokens without a record");
    for (const auto& [id, message] : batch.errors) {
      for (auto& [name, sequence] : sequences_) {
        if (name.first == id) sequence.error = message;
      }
    }
  }

  std::vector<OutputBatch> batches_;
  std::map<std::pair<uint64_t, uint32_t>, TakenSequence> sequences_;
};

}  // namespace octavo::testing
