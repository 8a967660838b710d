// Adapters of low rank beside linear weights; see Backend::add_lora. Two kernels a weight: the
// products with A of all its parts, split along the input features, then those with B.
#pragma once

#include <span>
#include <vector>

#include "backend/backend.h"
#include "cuda/common/device_context.h"
#include "cuda/common/memory.h"
#include "cuda/weights.h"

namespace octavo::cuda {

// Ranks are padded with zeros to multiples of this: the depth of a matrix instruction.
inline constexpr int64_t kLoraRankMultiple = 16;

// What a part of a slot is multiplied by; `rank` is padded, 0 where nothing is loaded.
struct LoraPartInfo {
  int32_t rank = 0;
  float scale = 0.0f;
};

// The arrays of a bank as kernels see them. A of slot s and part p begins at
// (s * num_parts + p) * max_rank * in_features and is [rank, in_features]; its B at
// (s * out_rows + row_begin) * max_rank and is [num_rows, rank], with out_rows the sum over parts.
struct LoraOperand {
  const void* a = nullptr;
  const void* b = nullptr;
  const LoraPartInfo* infos = nullptr;  // [num_slots, num_parts]
  LoraPart parts[kMaxLoraParts];
  int num_parts = 0;
  int max_rank = 0;
  int in_features = 0;
  int out_rows = 0;
};

class CudaLoraBank : public LoraBank {
 public:
  // Every slot is empty. Requires: parts one below the other from row 0 on. Throws:
  // OutOfMemoryError.
  CudaLoraBank(DType dtype, int64_t in_features, std::span<const LoraPart> parts,
               const LoraLimits& limits);

  int64_t size_bytes() const override {
    return a_.size_bytes() + b_.size_bytes() + infos_.size_bytes();
  }
  static int64_t planned_bytes(DType dtype, int64_t in_features, std::span<const LoraPart> parts,
                               const LoraLimits& limits);

  // Complete on return.
  void load(WeightUploader& uploader, int32_t slot, int64_t part, const LoraView& view);
  void clear(WeightUploader& uploader, int32_t slot);

  const LoraOperand& operand() const { return operand_; }

 private:
  void set_info(WeightUploader& uploader, int32_t slot, int64_t part, LoraPartInfo info);

  const DType dtype_;
  DeviceMemory a_;
  DeviceMemory b_;
  DeviceMemory infos_;
  LoraOperand operand_;
};

// Plans the rows of a pass and runs both products. Memory that a captured graph may use is kept
// when more is needed.
class LoraLinear {
 public:
  // See Backend::plan_lora.
  static void plan(const DeviceContext& context, const int32_t* slots, const int32_t* rows,
                   const LoraPlan& plan);

  // The first product, of x [T, in]; then, behind it, the second, added to out [T, out]. Other work
  // that touches neither may be launched between them.
  void shrink(const DeviceContext& context, const LoraOperand& lora, const LoraPlan& plan,
              TensorView x);
  void expand(const DeviceContext& context, const LoraOperand& lora, const LoraPlan& plan,
              TensorView out) const;

 private:
  std::vector<DeviceMemory> products_;  // float32 [splits, rows, parts, max_rank]; the last is used
};

}  // namespace octavo::cuda
