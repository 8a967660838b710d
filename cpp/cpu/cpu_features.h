// What the processor that we run on can do, and which set of kernels that makes possible.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace octavo::cpu {

// In ascending order of ability: each set runs where the next one does.
enum class Isa : uint8_t { kAvx2, kAvx512, kAmx };

// Features of the processor that matter here and that the operating system lets us use, by their
// Linux names: "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", ...
std::vector<std::string> cpu_features();

// Whether the kernels of `isa` run here. kAmx asks Linux for the tile registers the first time.
bool is_supported(Isa isa);

// The best supported set, or the one named "avx2", "avx512" or "amx"; "" chooses.
// Throws ConfigError for an unknown name, a set that does not run here, or a processor below AVX2.
Isa choose_isa(std::string_view name);

// "avx2", "avx512" or "amx".
std::string_view isa_name(Isa isa);

}  // namespace octavo::cpu
