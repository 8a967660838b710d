#include "cpu/cpu_features.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "base/errors.h"

namespace octavo::cpu {
namespace {

// The flags that Linux reports for the first processor.
std::vector<std::string> linux_flags() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    if (!line.starts_with("flags")) continue;
    std::istringstream words(line.substr(line.find(':') + 1));
    return {std::istream_iterator<std::string>(words), {}};
  }
  return {};
}

TEST(CpuFeatures, AreThoseThatLinuxNames) {
  const auto flags = linux_flags();
  const auto features = cpu_features();
  for (const char* name :
       {"avx2", "fma", "f16c", "bmi2", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni",
        "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"}) {
    EXPECT_EQ(std::ranges::count(features, name), std::ranges::count(flags, name)) << name;
  }
}

TEST(CpuFeatures, ChoosesTheBestThatRuns) {
  const Isa best = choose_isa("");
  EXPECT_TRUE(is_supported(best));
  for (const Isa better : {Isa::kAvx512, Isa::kAmx}) {
    if (better > best) {
      EXPECT_FALSE(is_supported(better));
      EXPECT_THROW(choose_isa(isa_name(better)), ConfigError);
    }
  }
}

TEST(CpuFeatures, TakesTheSetThatIsNamed) {
  EXPECT_EQ(choose_isa("avx2"), Isa::kAvx2);
  EXPECT_THROW(choose_isa("sse2"), ConfigError);
  EXPECT_THROW(choose_isa("AVX2"), ConfigError);
}

}  // namespace
}  // namespace octavo::cpu
