#include "cpu/kernels.h"

#include "cpu/isa_tables.h"

namespace octavo::cpu {

const Kernels& kernels_for(Isa isa) {
  static const Kernels amx = [] {
    Kernels k = kAvx512Kernels;
    add_amx_kernels(k);
    return k;
  }();
  switch (isa) {
    case Isa::kAvx2:
      return kAvx2Kernels;
    case Isa::kAvx512:
      return kAvx512Kernels;
    case Isa::kAmx:
      return amx;
  }
  return kAvx2Kernels;
}

}  // namespace octavo::cpu
