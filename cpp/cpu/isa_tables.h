// The tables that the isa_*.cc files define; kernels_for() picks one.
#pragma once

#include "cpu/kernels.h"

namespace octavo::cpu {

extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;

// AMX replaces only the GEMMs that have tiles; the rest is the AVX-512 table.
extern const GemmKernel kAmxGemmBFloat16;

}  // namespace octavo::cpu
