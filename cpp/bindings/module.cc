#include "bindings/bind.h"

PYBIND11_MODULE(_core, module) {
  module.doc() = "The engine extension.";
  octavo::bindings::bind_errors();
  octavo::bindings::bind_config(module);
  octavo::bindings::bind_gguf(module);
  octavo::bindings::bind_coded_matrix(module);
  octavo::bindings::bind_engine(module);
  octavo::bindings::bind_info(module);
}
