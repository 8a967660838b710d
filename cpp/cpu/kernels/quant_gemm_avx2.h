// Quantised weights times int8 activations with vpmaddubsw: the same exact block sums and the same
// roundings as quant_gemm_avx512.h. Products of a pair are 16-bit sums, which hold as many groups
// as the width of the quants allows before they are widened. Eight-bit quants would overflow as
// unsigned: there the weight's sign moves to the activation.
// Bound: memory for few rows, vpmaddubsw and vpaddw issue for many.
#pragma once

#include "cpu/kernels.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/quant_row.h"
#include "cpu/kernels/vec_math.h"

namespace octavo::cpu {
namespace {

inline constexpr int kHalfBytes = 32;  // of a vector: eight columns

// One block of a panel, widened to bytes.
struct alignas(64) ByteBlock {
  uint8_t magnitude[kBlockVectors * kVectorBytes];  // the quant, or |quant - 128| for kInt8
  int8_t sign[kBlockVectors * kVectorBytes];        // quant - 128, for kInt8 only
};

inline __m256i load_bytes(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
inline void store_bytes(void* p, __m256i x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }

// Byte i is all ones where bit i of the mask is set.
inline __m256i spread_bits(const std::byte* p) {
  uint32_t bits;
  __builtin_memcpy(&bits, p, sizeof(bits));
  const __m256i which =
      _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i select = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
  const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(bits)), which);
  return _mm256_cmpeq_epi8(_mm256_and_si256(spread, select), select);
}

inline void unpack_int8(const std::byte* block, ByteBlock& out) {
  const __m256i flip = _mm256_set1_epi8(static_cast<char>(0x80));
  for (int i = 0; i < kBlockVectors * kVectorBytes; i += kHalfBytes) {
    const __m256i value = _mm256_xor_si256(load_bytes(block + i), flip);
    store_bytes(out.sign + i, value);
    store_bytes(out.magnitude + i, _mm256_abs_epi8(value));
  }
}

// The bits of vector g, half h above its nibbles.
template <PanelFormat kFormat>
inline __m256i top_bits(const std::byte* rest, int g, int h) {
  if constexpr (kFormat == PanelFormat::kInt5Min) {
    return _mm256_and_si256(spread_bits(rest + g * 8 + h * 4), _mm256_set1_epi8(16));
  } else if constexpr (kFormat == PanelFormat::kInt6) {
    const __m256i bits = load_bytes(rest + g / 4 * kVectorBytes + h * kHalfBytes);
    const __m256i shifted = _mm256_srl_epi16(bits, _mm_cvtsi32_si128(g % 4 * 2));
    return _mm256_slli_epi16(_mm256_and_si256(shifted, _mm256_set1_epi8(3)), 4);
  } else {
    return _mm256_setzero_si256();
  }
}

template <PanelFormat kFormat>
inline void unpack_block(const std::byte* block, ByteBlock& out) {
  if constexpr (kFormat == PanelFormat::kInt8) return unpack_int8(block, out);
  const std::byte* rest = block + 4 * kVectorBytes;
  const __m256i low = _mm256_set1_epi8(15);
  for (int g = 0; g < 4; ++g) {
    for (int h = 0; h < 2; ++h) {
      const int at = g * kVectorBytes + h * kHalfBytes;
      const __m256i pairs = load_bytes(block + at);
      const __m256i first = _mm256_and_si256(pairs, low);
      const __m256i second = _mm256_and_si256(_mm256_srli_epi16(pairs, 4), low);
      store_bytes(out.magnitude + at, _mm256_or_si256(first, top_bits<kFormat>(rest, g, h)));
      store_bytes(out.magnitude + at + 4 * kVectorBytes,
                  _mm256_or_si256(second, top_bits<kFormat>(rest, g + 4, h)));
    }
  }
}

// Groups of four features whose pair sums fit 16 bits together: the greatest quant times 127, twice
// a group.
template <PanelFormat kFormat>
constexpr int groups_before_widening() {
  switch (kFormat) {
    case PanelFormat::kInt8:
      return 1;  // 128: 32512
    case PanelFormat::kInt6:
      return 2;  // 63: 32004
    case PanelFormat::kInt5Min:
      return 4;  // 31: 31496
    default:
      return 8;  // 15: 30480
  }
}

inline __m256i broadcast_four(const std::byte* p) {
  int32_t four;
  __builtin_memcpy(&four, p, sizeof(four));
  return _mm256_set1_epi32(four);
}

struct IntVec {
  __m256i lo, hi;
};

template <PanelFormat kFormat>
struct QuantProduct {
  static constexpr int kMaxRows = 4;
  static constexpr int kMaxVecs = 1;
  static constexpr QuantLayout kLayout = quant_layout(kFormat);
  static constexpr int kGroups = groups_before_widening<kFormat>();

  static __m256i multiply(const ByteBlock& w, int at, __m256i x) {
    if constexpr (kFormat == PanelFormat::kInt8) {
      x = _mm256_sign_epi8(x, load_bytes(w.sign + at));
    }
    return _mm256_maddubs_epi16(load_bytes(w.magnitude + at), x);
  }

  static __m256i widened(__m256i sum, __m256i pairs) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }

  // Adds the products of vectors [begin, begin + kGroups) to the sums of every row.
  template <int kRows>
  static void add_groups(const ByteBlock& w, const std::byte* x, int64_t stride, int begin,
                         IntVec (&sums)[kRows]) {
    IntVec pairs[kRows];
    for (int r = 0; r < kRows; ++r) pairs[r] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
#pragma GCC unroll 8
    for (int g = begin; g < begin + kGroups; ++g) {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const __m256i four = broadcast_four(x + r * stride + g * kVectorDepth);
        const int at = g * kVectorBytes;
        pairs[r].lo = _mm256_add_epi16(pairs[r].lo, multiply(w, at, four));
        pairs[r].hi = _mm256_add_epi16(pairs[r].hi, multiply(w, at + kHalfBytes, four));
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      sums[r] = {widened(sums[r].lo, pairs[r].lo), widened(sums[r].hi, pairs[r].hi)};
    }
  }

  // -zero times the sum of the activations that meet it; the signed products of kInt8 need none.
  static IntVec initial_sum(const std::byte* row, int64_t depth, int64_t block, int half) {
    int32_t offset = 0;
    if constexpr (kFormat == PanelFormat::kInt4 || kFormat == PanelFormat::kInt6) {
      offset = *QuantizedRow::offset<kFormat>(row, depth, block, half);
    }
    return {_mm256_set1_epi32(offset), _mm256_set1_epi32(offset)};
  }

  template <int kRows, int kVecs>
  static void run(const GemmArgs& args, const std::byte* x, const std::byte* panel,
                  Vec (&acc)[kRows][kVecs]) {
    static_assert(kVecs == 1);
    constexpr int kPerScale = kBlockVectors / static_cast<int>(kLayout.num_scales);
    const int64_t depth = args.depth, num_blocks = depth / kBlockDepth;
    ByteBlock w;
    for (int64_t b = 0; b < num_blocks; ++b) {
      const std::byte* record = panel + b * kLayout.record_bytes();
      unpack_block<kFormat>(record + kLayout.quants_offset(), w);
      const std::byte* quants = QuantizedRow::quants(x, b);
      for (int s = 0; s < kLayout.num_scales; ++s) {
        IntVec sums[kRows];
        for (int r = 0; r < kRows; ++r) {
          sums[r] = initial_sum(x + r * args.x_stride_bytes, depth, b, s);
        }
        for (int g = s * kPerScale; g < (s + 1) * kPerScale; g += kGroups) {
          add_groups(w, quants, args.x_stride_bytes, g, sums);
        }
        const Vec scale = load(scales_of(record, s));
        for (int r = 0; r < kRows; ++r) {
          const std::byte* row = x + r * args.x_stride_bytes;
          const Vec sum = {_mm256_cvtepi32_ps(sums[r].lo), _mm256_cvtepi32_ps(sums[r].hi)};
          const Vec both = mul(scale, set1(*QuantizedRow::scale(row, depth, b)));
          acc[r][0] = fma(sum, both, acc[r][0]);
        }
      }
      if constexpr (kLayout.has_minimum) {
        const Vec minimum = load(minima_of<kFormat>(record));
        for (int r = 0; r < kRows; ++r) {
          const std::byte* row = x + r * args.x_stride_bytes;
          acc[r][0] = fma(minimum, set1(*QuantizedRow::scaled_sum(row, depth, b)), acc[r][0]);
        }
      }
    }
  }
};

template <PanelFormat kFormat>
constexpr void add_quantized_gemm(Kernels& k) {
  k.gemm[static_cast<int>(kFormat)] = gemm<QuantProduct<kFormat>>;
}

constexpr void add_quantized_gemms(Kernels& k) {
  add_quantized_gemm<PanelFormat::kInt8>(k);
  add_quantized_gemm<PanelFormat::kInt4>(k);
  add_quantized_gemm<PanelFormat::kInt4Min>(k);
  add_quantized_gemm<PanelFormat::kInt5Min>(k);
  add_quantized_gemm<PanelFormat::kInt6>(k);
}

}  // namespace
}  // namespace octavo::cpu
