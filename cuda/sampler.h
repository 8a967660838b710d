// The host's side of sampling: packs the rows' parameters, keeps token counts, unpacks the results.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "cuda/common/device_context.h"
#include "cuda/common/memory.h"
#include "cuda/sampling.h"

namespace octavo::cuda {

class Sampler {
 public:
  // See Backend::sample. One copy to the device, two kernels, one copy back.
  void sample(const DeviceContext& context, TensorView logits, std::span<const SampleRow> rows,
              StepResult& result);

 private:
  // The token counts of a slot whose sequence has penalties, and whose they are.
  struct SlotCounts {
    DeviceMemory counts;
    const SamplingParams* sampling = nullptr;
    uint64_t seed = 0;
    int64_t num_prompt_tokens = 0;
    int64_t num_counted = 0;  // tokens of the sequence, the one being drawn included
    int64_t vocab = 0;
  };
  // Counts that must be made anew from the history in lists_.
  struct Rebuild {
    int32_t* counts;
    int64_t history_at;
    int64_t num_tokens;
    int64_t num_prompt_tokens;
  };

  void pack_row(const SampleRow& row, int64_t vocab);
  void pack_entries(const SampleRow& row, SampleRowParams& params);
  void pack_rules(const ScheduledSequence& sequence, int64_t vocab, SampleRowParams& params);
  void pack_mask(const ScheduledSequence& sequence, int64_t vocab, SampleRowParams& params);
  void pack_counts(const ScheduledSequence& sequence, int64_t vocab, SampleRowParams& params);
  void reserve(int64_t vocab);
  void launch(const DeviceContext& context, TensorView logits);
  void unpack(std::span<const SampleRow> rows, StepResult& result) const;
  int64_t input_bytes() const;
  int64_t output_bytes() const;

  std::vector<SampleRowParams> params_;
  std::vector<int32_t> lists_;
  std::vector<Rebuild> rebuilds_;
  std::vector<SlotCounts> slots_;
  int32_t num_entries_ = 0;
  int32_t num_raw_rows_ = 0;
  int32_t num_copies_ = 0;

  PinnedMemory host_input_;
  DeviceMemory input_;  // params_, then lists_
  PinnedMemory host_output_;
  DeviceMemory output_;  // tokens, then entries
  DeviceMemory runs_;    // of the rows, then of those that want entries
  DeviceMemory copies_;
};

}  // namespace octavo::cuda
