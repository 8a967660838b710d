// From the architecture's name to the model.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model/model.h"

namespace octavo {

// What config.architecture may be, in alphabetic order.
std::vector<std::string> architecture_names();

// Makes the model that config.architecture names, its weights declared but not yet allocated.
// Throws: UnsupportedModelError naming the architectures that this build knows.
std::unique_ptr<Model> create_model(const ModelConfig& config, Backend& backend);

}  // namespace octavo
