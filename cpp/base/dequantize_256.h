// One block of 256 values of each type that has such blocks. Source: the ggml block layouts.
#pragma once

#include <cstdint>

namespace octavo {

// What the 16 codes of IQ4_NL and IQ4_XS stand for.
inline constexpr float kNonlinearLevels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                               1,    13,   25,  38,  53,  69,  89,  113};

// Each reads one block and writes 256 values.
void dequantize_q2_k(const uint8_t* block, float* out);
void dequantize_q3_k(const uint8_t* block, float* out);
void dequantize_q4_k(const uint8_t* block, float* out);
void dequantize_q5_k(const uint8_t* block, float* out);
void dequantize_q6_k(const uint8_t* block, float* out);
void dequantize_iq4_xs(const uint8_t* block, float* out);

}  // namespace octavo
