// Adapters beside linear weights: each adapter's rows are gathered and multiplied as one batch.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "cpu/kernels.h"
#include "cpu/scratch.h"
#include "cpu/thread_pool.h"
#include "cpu/zero_pages.h"

namespace octavo::cpu {

// The pairs A, B of every slot and part in panels of one plain format. Memory is reserved for the
// greatest rank and taken as it is written.
class CpuLoraBank final : public LoraBank {
 public:
  // `format` is not quantised. Throws: OutOfMemoryError.
  CpuLoraBank(PanelFormat format, int64_t in_features, std::span<const LoraPart> parts,
              const LoraLimits& limits);

  int64_t size_bytes() const override { return pages_.size_bytes(); }
  static int64_t planned_bytes(PanelFormat format, int64_t in_features,
                               std::span<const LoraPart> parts, const LoraLimits& limits);

  void load(const Kernels& kernels, int32_t slot, int64_t part, const LoraView& view);
  void clear(int32_t slot);

  // What one part of one slot adds; rank 0 adds nothing.
  struct Pair {
    int64_t rank = 0;
    float scale = 0.0f;
    std::byte* a = nullptr;  // panels of [rank, in_features]
    std::byte* b = nullptr;  // panels of [num_rows, rank]
  };
  const Pair& pair(int32_t slot, int64_t part) const { return pairs_[slot * num_parts() + part]; }
  const LoraPart& part(int64_t index) const { return parts_[index]; }
  int64_t num_parts() const { return std::ssize(parts_); }
  PanelFormat format() const { return format_; }
  int64_t in_features() const { return in_features_; }
  int64_t max_rank() const { return max_rank_; }

 private:
  const PanelFormat format_;
  const int64_t in_features_;
  const int64_t max_rank_;
  const std::vector<LoraPart> parts_;
  std::vector<Pair> pairs_;  // [num_slots, num_parts]
  ZeroPages pages_;
};

// Each element has one order of accumulation, whatever rows stand beside its own.
class LoraLinear {
 public:
  LoraLinear(const Kernels& kernels, ThreadPool& pool)
      : kernels_(kernels), pool_(pool), delta_(pool.num_threads()) {}

  // See Backend::plan_lora. The plan: the rows sorted by slot, [num_rows], then where each slot
  // begins among them, [num_slots + 1]; rows without an adapter are not among them.
  static void plan(const int32_t* slots, const int32_t* rows, const LoraPlan& plan);

  // See Backend::add_lora.
  void add(const CpuLoraBank& bank, const LoraPlan& plan, TensorView x, TensorView out);

 private:
  // Rows of one slot against one part; panels only in the second product.
  struct Task {
    int32_t slot;
    int64_t part;
    int64_t first_row;  // among the sorted rows
    int64_t num_rows;
    int64_t first_panel;
    int64_t num_panels;
  };
  struct Rows {
    std::byte* data = nullptr;
    int64_t stride_bytes = 0;
    std::byte* row(int64_t index) const { return data + index * stride_bytes; }
  };

  void plan_tasks(const CpuLoraBank& bank, const LoraPlan& plan, bool is_second);
  void gather(const int32_t* sorted, int64_t num_rows, TensorView x);
  void shrink(const Task& task, const CpuLoraBank& bank);
  void expand(const Task& task, const CpuLoraBank& bank, const int32_t* sorted, int thread,
              TensorView out);
  std::byte* shrunk_row(int64_t row, int64_t part, const CpuLoraBank& bank) const;

  const Kernels& kernels_;
  ThreadPool& pool_;
  ActivationFormat format_ = ActivationFormat::kFloat32;  // of both products
  std::vector<Task> tasks_;
  Scratch gathered_memory_, products_memory_, shrunk_memory_;
  Rows gathered_;               // x of the sorted rows
  float* products_ = nullptr;   // x A^T * scale of sorted rows: [rows, parts, max_rank]
  Rows shrunk_;                 // the same as activations: [rows][parts]
  std::vector<Scratch> delta_;  // one a thread
};

}  // namespace octavo::cpu
