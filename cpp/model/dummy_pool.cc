#include "model/dummy_pool.h"

#include <bit>
#include <cstring>

#include "base/check.h"
#include "base/philox.h"

namespace octavo {
namespace {

// 2 MiB of bfloat16: stays in a core's L2 while every dummy tensor is cut from it. Codes go to the
// device in whole pieces, of which there should be few.
constexpr int64_t kPlainElements = int64_t{1} << 20;
constexpr int64_t kCodedElements = int64_t{1} << 22;
constexpr float kMagnitude = 0.035f;  // uniform with the deviation 0.02 of common initialisers

void put_word(uint32_t word, std::byte* out) { std::memcpy(out, &word, sizeof(word)); }

}  // namespace

bool has_dummies(DType dtype) {
  return dtype == DType::kBFloat16 || is_int4(dtype) || is_scaled_float8(dtype);
}

DummyPool::DummyPool(DType dtype, uint64_t seed)
    : dtype_(dtype), bytes_(dtype_bytes(dtype, num_elements())) {
  check(has_dummies(dtype), "dummy values of another type");
  const auto random = [&](int64_t i) { return philox_uniform(seed, i, 0); };
  if (dtype == DType::kBFloat16) {
    for (int64_t i = 0; i < num_elements(); ++i) {
      const auto bits = std::bit_cast<uint32_t>((2.0f * random(i) - 1.0f) * kMagnitude);
      const auto half = static_cast<uint16_t>(bits >> 16);
      std::memcpy(&bytes_[2 * i], &half, sizeof(half));
    }
    return;
  }
  constexpr uint32_t kZero = 8, kNoNan = 0xF7;  // with this bit clear e4m3 ends at 240
  for (std::byte& byte : bytes_) {
    const auto value = static_cast<uint32_t>(random(&byte - bytes_.data()) * 256.0f);
    byte = static_cast<std::byte>(is_scaled_float8(dtype) ? value & kNoNan : value);
  }
  const uint32_t term = is_scaled_float8(dtype)
                            ? std::bit_cast<uint32_t>(kMagnitude / 240.0f)
                            : (std::bit_cast<uint32_t>(kMagnitude / 8.0f) & ~kInt4ZeroMask) | kZero;
  const int64_t block_bytes = dtype_info(dtype).block_bytes;
  for (int64_t at = 0; at < std::ssize(bytes_); at += block_bytes) put_word(term, &bytes_[at]);
}

int64_t DummyPool::num_elements() const {
  return dtype_ == DType::kBFloat16 ? kPlainElements : kCodedElements;
}

const std::byte* DummyPool::at(int64_t begin) const {
  const int64_t block = dtype_info(dtype_).block_elements;
  return bytes_.data() + dtype_bytes(dtype_, begin / block * block);
}

}  // namespace octavo
