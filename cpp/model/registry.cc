#include "model/registry.h"

#include <string>
#include <string_view>

#include "base/errors.h"

namespace octavo {

std::unique_ptr<Model> create_llama(const ModelConfig& config, Backend& backend);

namespace {

struct Architecture {
  std::string_view name;
  std::unique_ptr<Model> (*create)(const ModelConfig&, Backend&);
};

constexpr Architecture kArchitectures[] = {
    {"llama", create_llama},
    {"mistral", create_llama},
    {"qwen2", create_llama},
};

}  // namespace

std::unique_ptr<Model> create_model(const ModelConfig& config, Backend& backend) {
  std::string known;
  for (const Architecture& architecture : kArchitectures) {
    if (architecture.name == config.architecture) return architecture.create(config, backend);
    known += (known.empty() ? "" : ", ") + std::string(architecture.name);
  }
  throw UnsupportedModelError("architecture '" + config.architecture +
                              "' is not supported; supported are " + known);
}

}  // namespace octavo
