// The host's side of sampling: packs the rows' parameters, keeps token counts, unpacks the results.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "cuda/common/device_context.h"
#include "cuda/common/memory.h"
#include "cuda/common/stream.h"
#include "cuda/sampling.h"

namespace octavo::cuda {

class Sampler {
 public:
  static constexpr int32_t kMaxStepsInFlight = 2;
  static constexpr int64_t kMaxSlots = 65536;

  // As in Backend. One copy to the device and two kernels; `result` is written by wait_step().
  void begin_step();
  void sample(const DeviceContext& context, TensorView logits, std::span<const SampleRow> rows,
              StepResult& result);
  void end_step(const DeviceContext& context);
  void wait_step();

  // [kMaxSlots] device memory: the token last drawn in each slot.
  const int32_t* drawn_ids() const { return drawn_ids_.as<int32_t>(); }

 private:
  // Where one row's results go.
  struct Target {
    int32_t batch_row;
    int32_t first_entry;
    int32_t num_entries;
    bool is_draw;
  };
  // One call of sample().
  struct Piece {
    std::vector<Target> targets;
    StepResult* result = nullptr;
    PinnedMemory input;   // params, then lists
    PinnedMemory output;  // tokens, then entries
  };
  struct Step {
    std::vector<Piece> pieces;  // those in use first: their memory stays
    size_t num_pieces = 0;
    Event done;
  };

  // The token counts of a slot whose sequence has penalties, and whose they are.
  struct SlotCounts {
    DeviceMemory counts;
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
  void add_targets(std::span<const SampleRow> rows, Piece& piece) const;
  void reserve(int64_t vocab, Piece& piece);
  void launch(const DeviceContext& context, TensorView logits, Piece& piece);
  static void unpack(const Piece& piece);
  int64_t input_bytes() const;
  int64_t output_bytes() const;

  std::vector<SampleRowParams> params_;
  std::vector<int32_t> lists_;
  std::vector<Rebuild> rebuilds_;
  std::vector<SlotCounts> slots_;
  int32_t num_entries_ = 0;
  int32_t num_raw_rows_ = 0;
  int32_t num_copies_ = 0;

  // Steps in flight take turns; the device's own memory is shared, since it works in order.
  std::array<Step, kMaxStepsInFlight> steps_;
  int64_t num_ended_ = 0;
  int64_t num_waited_ = 0;
  DeviceMemory drawn_ids_{kMaxSlots * static_cast<int64_t>(sizeof(int32_t))};
  DeviceMemory input_;  // params_, then lists_
  DeviceMemory runs_;   // of the rows, then of those that want entries
  DeviceMemory copies_;
};

}  // namespace octavo::cuda
