// Random weights that keep codes.
#pragma once

#include <bit>

#include "cuda/coded_units.h"
#include "cuda/linear_operand.h"
#include "fill.cuh"

namespace octavo::cuda::bench {

// Random bits, those outside of `mask` zero.
static __global__ void fill_bits(uint32_t* out, int64_t count, uint32_t mask) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += stride) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u;
    x ^= x >> 15;
    x *= 2246822519u;
    out[i] = (x ^ x >> 13) & mask;
  }
}

static __global__ void fill_terms(uint8_t* units, int64_t num_units, UnitLayout layout,
                                  uint32_t term) {
  const int64_t per_unit = layout.groups_per_unit() * kUnitRows;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < num_units * per_unit;
       i += stride) {
    uint8_t* unit = units + i / per_unit * layout.unit_bytes();
    reinterpret_cast<uint32_t*>(unit + layout.code_bytes())[i % per_unit] = term;
  }
}

// Fills the matrix and scales of a weight that is not of a half type: small values of both signs.
inline void fill_operand(const LinearOperand& operand) {
  constexpr uint32_t kNoNan = 0xf7f7f7f7;  // of e4m3
  auto* words = operand.matrix.as<uint32_t>();
  if (has_units(operand.matrix.dtype)) {
    const UnitLayout layout = unit_layout(operand.matrix);
    const bool is_int4 = layout.code_bits == 4;
    const uint32_t term = is_int4 ? (std::bit_cast<uint32_t>(0.003f) & ~kInt4ZeroMask) | 8
                                  : std::bit_cast<uint32_t>(2e-4f);
    fill_bits<<<1024, 256>>>(words, layout.size_bytes() / 4, is_int4 ? ~0u : kNoNan);
    fill_terms<<<1024, 256>>>(operand.matrix.as<uint8_t>(),
                              layout.size_bytes() / layout.unit_bytes(), layout, term);
  } else {
    fill_bits<<<1024, 256>>>(words, operand.matrix.num_elements() / 4, kNoNan);
    fill_floats<<<64, 256>>>(const_cast<float*>(operand.scales), operand.matrix.rows(), 2e-4f);
  }
  check_cuda(cudaGetLastError());
  check_cuda(cudaDeviceSynchronize());
}

}  // namespace octavo::cuda::bench
