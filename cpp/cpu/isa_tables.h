// The tables that the isa_*.cc files define; kernels_for() picks one.
#pragma once

#include "cpu/kernels.h"

namespace octavo::cpu {

extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;

// Puts the kernels that have tiles into a copy of the AVX-512 table.
void add_amx_kernels(Kernels& kernels);

}  // namespace octavo::cpu
