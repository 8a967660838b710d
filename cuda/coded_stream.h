// Linear layers for few rows whose weights keep a checkpoint's codes, at the speed of reading them.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <map>
#include <tuple>

#include "base/tensor_view.h"
#include "cuda/common/device_context.h"
#include "cuda/common/memory.h"
#include "cuda/linear_operand.h"

namespace octavo::cuda {

class CodedStream {
 public:
  static constexpr int64_t kMaxRows = 64;  // of a pass

  explicit CodedStream(const DeviceContext& context);

  // Whether such rows can be taken: their number, and that the copy engine can address them.
  static bool accepts(TensorView x);

  // out = x weight^T + bias. x [M, K] and out [M, N] of one half type; rows may be strided.
  // Requires: accepts(x), has_units(weight), N even.
  void run(const DeviceContext& context, const LinearOperand& weight, TensorView x, TensorView out);

  // out = silu(gate) * up where gate and up are the halves of x weight^T + bias, each rounded to
  // x's type. weight [2 * I, K], out [M, I]. Requires: as run(), I a multiple of 64.
  void run_gated(const DeviceContext& context, const LinearOperand& weight, TensorView x,
                 TensorView out);

 private:
  struct Call;

  const CUtensorMap& find_map(TensorView x);
  void run_call(const DeviceContext& context, const Call& call);

  // Address, rows, columns, row stride.
  std::map<std::tuple<const void*, int64_t, int64_t, int64_t>, CUtensorMap> maps_;
  DeviceMemory partials_;
  DeviceMemory flags_;
};

}  // namespace octavo::cuda
