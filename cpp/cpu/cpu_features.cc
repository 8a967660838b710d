#include "cpu/cpu_features.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/errors.h"

namespace octavo::cpu {
namespace {

enum Register : uint8_t { kEax, kEbx, kEcx, kEdx };

// Register state that the operating system must save for a feature to be usable (bits of XCR0).
constexpr uint64_t kAvxState = 0x6;
constexpr uint64_t kAvx512State = 0xE6;
constexpr uint64_t kTileState = 0x60000;

struct Feature {
  std::string_view name;
  uint32_t leaf, subleaf;
  Register reg;
  int bit;
  uint64_t state;
};

// Source: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E.
constexpr Feature kFeatures[] = {
    {"avx2", 7, 0, kEbx, 5, kAvxState},
    {"fma", 1, 0, kEcx, 12, kAvxState},
    {"f16c", 1, 0, kEcx, 29, kAvxState},
    {"bmi2", 7, 0, kEbx, 8, 0},
    {"avx512f", 7, 0, kEbx, 16, kAvx512State},
    {"avx512bw", 7, 0, kEbx, 30, kAvx512State},
    {"avx512vl", 7, 0, kEbx, 31, kAvx512State},
    {"avx512dq", 7, 0, kEbx, 17, kAvx512State},
    {"avx512_vnni", 7, 0, kEcx, 11, kAvx512State},
    {"avx512_bf16", 7, 1, kEax, 5, kAvx512State},
    {"amx_tile", 7, 0, kEdx, 24, kTileState},
    {"amx_bf16", 7, 0, kEdx, 22, kTileState},
    {"amx_int8", 7, 0, kEdx, 25, kTileState},
};

uint64_t enabled_state() {
  uint32_t eax, ebx, ecx, edx;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || (ecx >> 27 & 1) == 0) return 0;
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

bool has(const Feature& feature, uint64_t state) {
  uint32_t regs[4];
  if (__get_cpuid_count(feature.leaf, feature.subleaf, &regs[kEax], &regs[kEbx], &regs[kEcx],
                        &regs[kEdx]) == 0) {
    return false;
  }
  return (regs[feature.reg] >> feature.bit & 1) != 0 && (state & feature.state) == feature.state;
}

bool has_all(std::initializer_list<std::string_view> names) {
  const uint64_t state = enabled_state();
  for (const std::string_view name : names) {
    bool found = false;
    for (const Feature& f : kFeatures) found = found || (f.name == name && has(f, state));
    if (!found) return false;
  }
  return true;
}

// Linux gives the tile registers only to processes that ask. Source: Documentation/arch/x86/xstate.
bool request_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
}

}  // namespace

std::vector<std::string> cpu_features() {
  const uint64_t state = enabled_state();
  std::vector<std::string> names;
  for (const Feature& f : kFeatures) {
    if (has(f, state)) names.emplace_back(f.name);
  }
  return names;
}

bool is_supported(Isa isa) {
  if (!has_all({"avx2", "fma", "f16c", "bmi2"})) return false;
  if (isa == Isa::kAvx2) return true;
  if (!has_all({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16"})) {
    return false;
  }
  if (isa == Isa::kAvx512) return true;
  return has_all({"amx_tile", "amx_bf16", "amx_int8"}) && request_tiles();
}

Isa choose_isa(std::string_view name) {
  for (const Isa isa : {Isa::kAmx, Isa::kAvx512, Isa::kAvx2}) {
    if (!name.empty() && name != isa_name(isa)) continue;
    if (is_supported(isa)) return isa;
    if (!name.empty()) throw ConfigError("this processor has no " + std::string(name));
  }
  if (!name.empty()) throw ConfigError("unknown instruction set: " + std::string(name));
  throw ConfigError("this processor has no AVX2, which the CPU backend needs");
}

std::string_view isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAmx:
      return "amx";
  }
  return "unknown";
}

}  // namespace octavo::cpu
