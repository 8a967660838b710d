// Tokens and log-probabilities from logits.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "cpu/kernels.h"
#include "cpu/logit_rules.h"
#include "cpu/thread_pool.h"
#include "cpu/token_draw.h"

namespace octavo::cpu {

// See Backend::sample. Rows are divided over the threads; each row's result depends on that row's
// logits and sequence alone.
class Sampler {
 public:
  Sampler(const Kernels& kernels, ThreadPool& pool)
      : kernels_(kernels), pool_(pool), scratch_(pool.num_threads()) {}

  void sample(TensorView logits, std::span<const SampleRow> rows, StepResult& result);

 private:
  struct RowScratch {
    std::vector<float> processed;  // [vocab], when the raw logits are still needed
    LogitRulesScratch rules;
    TokenDrawScratch draw;
  };
  struct RowOutcome {
    int32_t token_id = -1;
    bool is_invalid = false;
  };
  struct EntrySpan {
    LogprobEntry* begin = nullptr;
    int64_t size = 0;  // 1 + k, or 0
  };

  void reserve_entries(std::span<const SampleRow> rows, StepResult& result);
  RowOutcome run_row(const SampleRow& row, std::span<float> logits, EntrySpan entries,
                     RowScratch& scratch) const;
  int32_t choose(const SampleRow& row, std::span<float> logits, RowScratch& scratch) const;
  void write_entries(std::span<const float> logits, float max, int32_t token_id, EntrySpan entries,
                     RowScratch& scratch) const;

  const Kernels& kernels_;
  ThreadPool& pool_;
  std::vector<RowScratch> scratch_;  // one a thread
  std::vector<RowOutcome> outcomes_;
  std::vector<EntrySpan> entries_;
};

}  // namespace octavo::cpu
