// Values for weights that no checkpoint brings.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/dtype.h"

namespace octavo {

// Small values of bfloat16, kInt4G* or a type of kFloat8*, uniform or nearly so. Tensors are cut
// from it at different places, so that none needs random numbers of its own.
class DummyPool {
 public:
  DummyPool(DType dtype, uint64_t seed);

  DType dtype() const { return dtype_; }
  int64_t num_elements() const;
  // From element `begin` on, rounded down to a whole block.
  const std::byte* at(int64_t begin) const;

 private:
  DType dtype_;
  std::vector<std::byte> bytes_;
};

// Whether DummyPool has values of a type.
bool has_dummies(DType dtype);

}  // namespace octavo
