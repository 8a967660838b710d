// Between rows of float32 and packed panels (layouts in kernels.h), once, at load; activations for
// them.
#pragma once

#include "cpu/kernels.h"
#include "cpu/kernels/vec_math.h"

namespace octavo::cpu {
namespace {

template <typename T>
void pack_panel(const float* rows, int64_t num_rows, int64_t depth, std::byte* panel) {
  T* out = reinterpret_cast<T*>(panel);
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t lane = 0; lane < kPanelRows; ++lane) {
      narrow(lane < num_rows ? rows[lane * depth + k] : 0.0f, out + k * kPanelRows + lane);
    }
  }
}

template <typename T>
void unpack_row(const std::byte* panel, int64_t lane, int64_t depth, float* out) {
  const T* in = reinterpret_cast<const T*>(panel) + lane;
  for (int64_t k = 0; k < depth; ++k) out[k] = widen(in[k * kPanelRows]);
}

inline int64_t paired_index(int64_t k, int64_t lane) {
  return (k / 2 * kPanelRows + lane) * 2 + k % 2;
}

inline void pack_panel_bfloat16(const float* rows, int64_t num_rows, int64_t depth,
                                std::byte* panel) {
  uint16_t* out = reinterpret_cast<uint16_t*>(panel);
  const int64_t padded =
      (depth + kBFloat16DepthMultiple - 1) / kBFloat16DepthMultiple * kBFloat16DepthMultiple;
  for (int64_t k = 0; k < padded; ++k) {
    for (int64_t lane = 0; lane < kPanelRows; ++lane) {
      const bool inside = k < depth && lane < num_rows;
      out[paired_index(k, lane)] = inside ? bfloat16_bits(rows[lane * depth + k]) : 0;
    }
  }
}

inline void unpack_row_bfloat16(const std::byte* panel, int64_t lane, int64_t depth, float* out) {
  const auto* in = reinterpret_cast<const BFloat16*>(panel);
  for (int64_t k = 0; k < depth; ++k) out[k] = widen(in[paired_index(k, lane)]);
}

// A row of activations, zero up to a multiple of 32.
inline void round_row_bfloat16(const float* x, int64_t depth, std::byte* out) {
  for (int64_t i = 0; i < round_up(depth, kBFloat16DepthMultiple); i += kLanes) {
    const Vec a = i < depth ? load_first(x + i, smaller(kLanes, depth - i)) : zero();
    store_bfloat16(reinterpret_cast<uint16_t*>(out + 2 * i), a);
  }
}

inline void round_blocks_bfloat16(const float* x, int64_t first_block, int64_t num_blocks,
                                  int64_t /*depth*/, std::byte* row) {
  round_row_bfloat16(x, num_blocks * kBlockDepth, row + first_block * kBlockDepth * 2);
}

}  // namespace
}  // namespace octavo::cpu
