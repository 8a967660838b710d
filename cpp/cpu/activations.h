// The rows that a product reads, in the formats in which its weights' kernels take them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "base/tensor_view.h"
#include "cpu/kernels.h"
#include "cpu/packed_weight.h"
#include "cpu/scratch.h"
#include "cpu/thread_pool.h"

namespace octavo::cpu {

class Activations {
 public:
  struct Rows {
    const std::byte* data = nullptr;
    int64_t stride_bytes = 0;
  };

  Activations(const Kernels& kernels, ThreadPool& pool) : kernels_(kernels), pool_(pool) {}

  // Converts x [T, in], float32, to every format that `weight` wants. Rows that are wanted as they
  // are stay where they lie, so x must live as long as they are read.
  void convert(const PackedWeight& weight, TensorView x);

  // The one format that all of `weight` wants of so many rows, if it is one.
  std::optional<ActivationFormat> only_format(const PackedWeight& weight, int64_t num_rows) const;
  // Makes `num_rows` rows of `depth` features for the caller to fill; they are all that there is
  // until the next call. Requires: the format is not kFloat32.
  std::byte* reserve(ActivationFormat format, int64_t num_rows, int64_t depth);

  // What the kernel of a panel format reads. Requires: it was converted or reserved.
  const Rows& rows(PanelFormat format) const {
    return rows_[static_cast<int>(kernels_.activation_format_for(format, num_rows_))];
  }
  int64_t num_rows() const { return num_rows_; }

 private:
  void convert_to(ActivationFormat format, TensorView x);

  const Kernels& kernels_;
  ThreadPool& pool_;
  int64_t num_rows_ = 0;
  std::array<Rows, kNumActivationFormats> rows_;
  std::array<Scratch, kNumActivationFormats> scratch_;
};

}  // namespace octavo::cpu
