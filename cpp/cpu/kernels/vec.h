// The vector type of the instruction set that this file is compiled for.
#pragma once

#if defined(__AVX512F__)
#include "cpu/kernels/vec_avx512.h"
#else
#include "cpu/kernels/vec_avx2.h"
#endif
