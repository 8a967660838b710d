#include "model/registry.h"

#include "base/errors.h"

// One line an architecture: its name, and the function that its file defines.
#define OCTAVO_ARCHITECTURES(X)   \
  X("gemma2", create_gemma2)      \
  X("gemma3", create_gemma3)      \
  X("granite", create_granite)    \
  X("llama", create_llama)        \
  X("ministral", create_llama)    \
  X("mistral", create_llama)      \
  X("mixtral", create_mixtral)    \
  X("olmo2", create_olmo2)        \
  X("olmoe", create_olmoe)        \
  X("phi3", create_phi3)          \
  X("qwen2", create_llama)        \
  X("qwen3", create_qwen3)        \
  X("qwen3moe", create_qwen3_moe) \
  X("smollm3", create_smollm3)

namespace octavo {

#define DECLARE(name, create) \
  std::unique_ptr<Model> create(const ModelConfig& config, Backend& backend);
OCTAVO_ARCHITECTURES(DECLARE)
#undef DECLARE

namespace {

struct Architecture {
  std::string name;
  std::unique_ptr<Model> (*create)(const ModelConfig&, Backend&);
};

#define ENTRY(name, create) {name, create},
const Architecture kArchitectures[] = {OCTAVO_ARCHITECTURES(ENTRY)};
#undef ENTRY

}  // namespace

std::vector<std::string> architecture_names() {
  std::vector<std::string> names;
  for (const Architecture& architecture : kArchitectures) names.push_back(architecture.name);
  return names;
}

std::unique_ptr<Model> create_model(const ModelConfig& config, Backend& backend) {
  std::string known;
  for (const Architecture& architecture : kArchitectures) {
    if (architecture.name == config.architecture) return architecture.create(config, backend);
    known += (known.empty() ? "" : ", ") + architecture.name;
  }
  throw UnsupportedModelError("architecture '" + config.architecture +
                              "' is not supported; supported are " + known);
}

}  // namespace octavo
