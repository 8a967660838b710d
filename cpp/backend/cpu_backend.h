// The factory that cpu/ provides to create_backend().
#pragma once

#include <memory>

#include "backend/backend.h"

namespace octavo {

// Throws ConfigError: an instruction set that does not run here, an unknown weight dtype.
std::unique_ptr<Backend> create_cpu_backend(const BackendOptions& options);

}  // namespace octavo
