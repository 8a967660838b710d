#include <pybind11/stl.h>

#include <string>
#include <variant>

#include "base/errors.h"
#include "bindings/bind.h"
#include "checkpoint/gguf_file.h"

namespace octavo::bindings {
namespace {

namespace py = pybind11;

py::object to_python(const GgufValue& value);

// GGUF calls its strings UTF-8, but nobody checks.
py::object to_python(std::string_view text) {
  PyObject* decoded =
      PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace");
  if (decoded == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(decoded);
}

py::object to_python(const GgufStrings& strings) {
  py::list list(strings.size());
  for (int64_t i = 0; i < strings.size(); ++i) list[i] = to_python(strings[i]);
  return list;
}

template <typename T>
py::object to_python(const std::vector<T>& values) {
  py::list list(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    if constexpr (std::is_same_v<T, GgufValue>) {
      list[i] = to_python(values[i]);
    } else {
      list[i] = py::cast(static_cast<T>(values[i]));
    }
  }
  return list;
}

py::object to_python(const GgufValue& value) {
  return std::visit(
      [](const auto& held) -> py::object {
        using T = std::decay_t<decltype(held)>;
        if constexpr (std::is_same_v<T, GgufArray>) {
          return std::visit([](const auto& array) { return to_python(array); }, held);
        } else if constexpr (std::is_same_v<T, std::string>) {
          return to_python(std::string_view(held));
        } else {
          return py::cast(held);
        }
      },
      value.data);
}

py::dict metadata(const GgufFile& file) {
  py::dict result;
  for (const auto& [key, value] : file.metadata()) {
    result[to_python(std::string_view(key))] = to_python(value);
  }
  return result;
}

py::list tensors(const GgufFile& file) {
  py::list result;
  for (const GgufTensor& tensor : file.tensors()) {
    const std::string_view dtype = dtype_info(tensor.dtype).name;
    result.append(
        py::make_tuple(tensor.name, dtype, py::tuple(py::cast(tensor.shape)), tensor.num_bytes));
  }
  return result;
}

void read_tensor(const GgufFile& file, const std::string& name, const py::object& out,
                 int64_t begin) {
  const GgufTensor* tensor = file.find(name);
  if (tensor == nullptr) throw CheckpointError("the file has no tensor '" + name + "'");
  const BufferBytes bytes(out, true);
  const int64_t size = bytes.size_bytes();
  if (begin < 0 || size > tensor->num_bytes || begin > tensor->num_bytes - size) {
    throw py::value_error("tensor '" + name + "' has " + std::to_string(tensor->num_bytes) +
                          " bytes, the buffer " + std::to_string(size) + " from " +
                          std::to_string(begin) + " on");
  }
  const py::gil_scoped_release release;
  file.read_tensor(*tensor, begin, {bytes.data(), static_cast<size_t>(bytes.size_bytes())});
}

}  // namespace

void bind_gguf(py::module_& module) {
  py::class_<GgufFile>(module, "GgufFile")
      .def(py::init<const std::string&>(), py::arg("path"),
           py::call_guard<py::gil_scoped_release>())
      .def("metadata", &metadata)
      .def("tensors", &tensors)
      .def("read_tensor", &read_tensor, py::arg("name"), py::arg("out"), py::arg("begin") = 0);
}

}  // namespace octavo::bindings
