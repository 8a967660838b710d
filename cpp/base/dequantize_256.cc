#include "base/dequantize_256.h"

#include "base/float_formats.h"

namespace octavo {
namespace {

// The 8 scales and 8 minima of Q4_K and Q5_K, 6 bits each in 12 bytes: bytes 0..3 and 4..7 hold
// the first four of either, and on top of them the high 2 bits of the last four, whose low 4 bits
// are in bytes 8..11.
struct ScaleMin {
  uint8_t scale;
  uint8_t min;
};

ScaleMin unpack_scale_min(const uint8_t* packed, int i) {
  if (i < 4) {
    return {static_cast<uint8_t>(packed[i] & 0x3F), static_cast<uint8_t>(packed[i + 4] & 0x3F)};
  }
  const uint8_t low = packed[i + 4];
  return {static_cast<uint8_t>((low & 0xF) | (packed[i - 4] >> 6) << 4),
          static_cast<uint8_t>((low >> 4) | (packed[i] >> 6) << 4)};
}

// Where Q2_K and Q3_K keep their low 2 bits: four runs of 32 values in the bits of 32 bytes, twice.
struct TwoBitRun {
  const uint8_t* bytes;
  int shift;
};

TwoBitRun two_bit_run(const uint8_t* packed, int run) {
  return {packed + int64_t{32} * (run / 4), run % 4 * 2};
}

// Scale `i` of Q3_K, 6 bits in 12 bytes: low halves in bytes 0..7, first eight below, and the high
// 2 bits of scales i, i + 4, i + 8, i + 12 in byte 8 + i.
int q3_k_scale(const uint8_t* packed, int i) {
  const int low = (packed[i % 8] >> (i / 8 * 4)) & 0xF;
  const int high = (packed[8 + i % 4] >> (i / 4 * 2)) & 3;
  return (low | high << 4) - 32;
}

}  // namespace

// Q2_K: 16 bytes with a scale in the low half and a minimum in the high one, for 16 values each,
// 64 bytes of 2-bit values, float16 d and dmin; value = d scale q - dmin min.
void dequantize_q2_k(const uint8_t* __restrict block, float* __restrict out) {
  const float d = load_float16(block + 80);
  const float dmin = load_float16(block + 82);
  for (int group = 0; group < 16; ++group) {
    const float ds = d * static_cast<float>(block[group] & 0xF);
    const float dm = dmin * static_cast<float>(block[group] >> 4);
    const auto [bytes, shift] = two_bit_run(block + 16, group / 2);
    const uint8_t* q = bytes + int64_t{16} * (group % 2);
    for (int i = 0; i < 16; ++i) {
      out[group * 16 + i] = ds * static_cast<float>((q[i] >> shift) & 3) - dm;
    }
  }
}

// Q3_K: 32 bytes of third bits, bit `run` of byte i, 64 bytes of 2-bit values, 12 bytes of scales,
// float16 d; value = d scale (q - 4).
void dequantize_q3_k(const uint8_t* __restrict block, float* __restrict out) {
  const float d = load_float16(block + 108);
  for (int group = 0; group < 16; ++group) {
    const float ds = d * static_cast<float>(q3_k_scale(block + 96, group));
    const int run = group / 2;
    const auto [bytes, shift] = two_bit_run(block + 32, run);
    const uint8_t* low = bytes + int64_t{16} * (group % 2);
    const uint8_t* high = block + int64_t{16} * (group % 2);
    for (int i = 0; i < 16; ++i) {
      const int q = ((low[i] >> shift) & 3) | ((high[i] >> run) & 1) << 2;
      out[group * 16 + i] = ds * static_cast<float>(q - 4);
    }
  }
}

// Q4_K: float16 d and dmin, 12 bytes of scales and minima, 128 bytes of values: 32 bytes hold
// sub-block 2k in their low halves and 2k + 1 in their high ones; value = d scale q - dmin min.
void dequantize_q4_k(const uint8_t* __restrict block, float* __restrict out) {
  const float d = load_float16(block);
  const float dmin = load_float16(block + 2);
  for (int sub = 0; sub < 8; ++sub) {
    const auto [scale, min] = unpack_scale_min(block + 4, sub);
    const float ds = d * static_cast<float>(scale);
    const float dm = dmin * static_cast<float>(min);
    const uint8_t* q = block + 16 + int64_t{32} * (sub / 2);
    const int shift = sub % 2 * 4;
    for (int i = 0; i < 32; ++i) {
      out[sub * 32 + i] = ds * static_cast<float>((q[i] >> shift) & 0xF) - dm;
    }
  }
}

// Q5_K: Q4_K with 32 bytes of fifth bits before the values: bit `sub` of byte i.
void dequantize_q5_k(const uint8_t* __restrict block, float* __restrict out) {
  const float d = load_float16(block);
  const float dmin = load_float16(block + 2);
  const uint8_t* high = block + 16;
  for (int sub = 0; sub < 8; ++sub) {
    const auto [scale, min] = unpack_scale_min(block + 4, sub);
    const float ds = d * static_cast<float>(scale);
    const float dm = dmin * static_cast<float>(min);
    const uint8_t* low = block + 48 + int64_t{32} * (sub / 2);
    const int shift = sub % 2 * 4;
    for (int i = 0; i < 32; ++i) {
      const int q = ((low[i] >> shift) & 0xF) | ((high[i] >> sub) & 1) << 4;
      out[sub * 32 + i] = ds * static_cast<float>(q) - dm;
    }
  }
}

// Q6_K: 128 bytes of low halves, 64 bytes of high 2 bits, int8 scale[16], float16 d. Each half of
// the block has four runs of 32 values; value = d scale (q - 32), a scale for 16 values.
void dequantize_q6_k(const uint8_t* __restrict block, float* __restrict out) {
  const float d = load_float16(block + 208);
  const auto* scales = reinterpret_cast<const int8_t*>(block + 192);
  for (int run = 0; run < 8; ++run) {
    const int64_t half = run / 4;
    const int quarter = run % 4;
    const uint8_t* low = block + half * 64 + int64_t{32} * (quarter % 2);
    const uint8_t* high = block + 128 + half * 32;
    const int low_shift = quarter / 2 * 4;
    const int high_shift = quarter * 2;
    for (int i = 0; i < 32; ++i) {
      const int q = ((low[i] >> low_shift) & 0xF) | ((high[i] >> high_shift) & 3) << 4;
      out[run * 32 + i] = static_cast<float>(q - 32);
    }
    for (int group = run * 2; group < run * 2 + 2; ++group) {
      const float ds = d * static_cast<float>(scales[group]);
      for (int i = 0; i < 16; ++i) out[group * 16 + i] *= ds;
    }
  }
}

// IQ4_XS: float16 d, 8 scales of 6 bits, their high 2 bits in a uint16 and their low halves in 4
// bytes, 128 bytes: 8 runs of 16 as in IQ4_NL; value = d (scale - 32) level[q].
void dequantize_iq4_xs(const uint8_t* __restrict block, float* __restrict out) {
  const float d = load_float16(block);
  const int high = block[2] | block[3] << 8;
  for (int run = 0; run < 8; ++run) {
    const int low = (block[4 + run / 2] >> (run % 2 * 4)) & 0xF;
    const float ds = d * static_cast<float>((low | ((high >> (run * 2)) & 3) << 4) - 32);
    const uint8_t* q = block + 8 + int64_t{16} * run;
    for (int i = 0; i < 16; ++i) {
      out[run * 32 + i] = ds * kNonlinearLevels[q[i] & 0xF];
      out[run * 32 + 16 + i] = ds * kNonlinearLevels[q[i] >> 4];
    }
  }
}

}  // namespace octavo
