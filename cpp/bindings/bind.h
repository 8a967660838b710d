// The pieces of octavo._core, each in the file of its name. The surface is python/octavo/_core.pyi.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>

#include "base/dtype.h"
#include "engine/types.h"
#include "model/weights.h"

namespace octavo::bindings {

void bind_errors();  // C++ exceptions become the classes of octavo.errors
void bind_config(pybind11::module_& module);
void bind_sampling(pybind11::module_& module);
void bind_gguf(pybind11::module_& module);
void bind_coded_matrix(pybind11::module_& module);
void bind_engine(pybind11::module_& module);
void bind_info(pybind11::module_& module);  // plan_memory, cpu_features, has_cuda

// By the names of the fields; num_finished is spread by reason.
pybind11::dict stats_dict(const EngineStats& stats);

// By the names of dtype_info(). Throws: ConfigError.
DType parse_dtype(std::string_view name);

// Types by names of tensors; what is not named has the type of plain weights. The result refers to
// `weight_dtypes`.
using WeightTypes = std::unordered_map<std::string, std::string>;
Weights::TypeOf type_of(const WeightTypes& weight_dtypes, const EngineConfig& config);

// The contiguous bytes of a Python buffer, held while this lives. The GIL is needed to make and to
// end it, not in between.
class BufferBytes {
 public:
  // Throws: py::error_already_set when `object` has no such buffer.
  BufferBytes(const pybind11::object& object, bool writable) {
    const int flags = writable ? PyBUF_WRITABLE : PyBUF_SIMPLE;
    if (PyObject_GetBuffer(object.ptr(), &view_, flags) != 0) throw pybind11::error_already_set();
  }
  ~BufferBytes() { PyBuffer_Release(&view_); }
  BufferBytes(const BufferBytes&) = delete;
  BufferBytes& operator=(const BufferBytes&) = delete;

  std::byte* data() const { return static_cast<std::byte*>(view_.buf); }
  int64_t size_bytes() const { return view_.len; }

 private:
  Py_buffer view_;
};

}  // namespace octavo::bindings
