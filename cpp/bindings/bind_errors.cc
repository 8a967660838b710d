#include <new>
#include <string>

#include "base/errors.h"
#include "bindings/bind.h"

namespace octavo::bindings {
namespace {

namespace py = pybind11;

void raise(const char* name, const char* message) {
  const py::object type = py::module_::import("octavo.errors").attr(name);
  // A file name can hold any bytes, a Python string cannot.
  const py::object text = py::reinterpret_steal<py::object>(PyUnicode_DecodeUTF8(
      message, static_cast<Py_ssize_t>(std::char_traits<char>::length(message)),
      "backslashreplace"));
  if (!text) throw py::error_already_set();
  PyErr_SetObject(type.ptr(), type(text).ptr());
}

void translate(std::exception_ptr exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const py::error_already_set&) {
    throw;  // Python's own, with its builtin siblings: the next translator knows them
  } catch (const py::builtin_exception&) {
    throw;
  } catch (const CheckpointError& error) {
    raise("CheckpointError", error.what());
  } catch (const UnsupportedModelError& error) {
    raise("UnsupportedModelError", error.what());
  } catch (const OutOfMemoryError& error) {
    raise("OutOfMemoryError", error.what());
  } catch (const std::bad_alloc&) {
    raise("OutOfMemoryError", "the host is out of memory");
  } catch (const ConfigError& error) {
    raise("ConfigError", error.what());
  } catch (const InvalidRequestError& error) {
    raise("InvalidRequestError", error.what());
  } catch (const UnknownModelError& error) {
    raise("UnknownModelError", error.what());
  } catch (const QueueFullError& error) {
    raise("QueueFullError", error.what());
  } catch (const NotReadyError& error) {
    raise("NotReadyError", error.what());
  } catch (const std::exception& error) {
    raise("EngineError", error.what());
  }
}

}  // namespace

void bind_errors() { py::register_local_exception_translator(translate); }

}  // namespace octavo::bindings
