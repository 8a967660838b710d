#include <pybind11/stl.h>

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "base/dequantize.h"
#include "base/errors.h"
#include "bindings/bind.h"
#include "checkpoint/coded_matrix.h"

namespace octavo::bindings {
namespace {

namespace py = pybind11;

constexpr std::array<std::pair<std::string_view, CodeLayout>, 5> kLayouts = {{
    {"float8", CodeLayout::kFloat8},
    {"int8", CodeLayout::kInt8},
    {"packed4", CodeLayout::kPacked4},
    {"gptq4", CodeLayout::kGptq4},
    {"awq4", CodeLayout::kAwq4},
}};

CodeLayout layout_of(const std::string& name) {
  for (const auto& [known, layout] : kLayouts) {
    if (known == name) return layout;
  }
  throw ConfigError("unknown layout of codes '" + name + "'");
}

std::span<const int32_t> words_of(const BufferBytes& bytes) {
  return {reinterpret_cast<const int32_t*>(bytes.data()),
          static_cast<size_t>(bytes.size_bytes()) / sizeof(int32_t)};
}

// A matrix whose arrays come with each call.
struct Description {
  CodedMatrix matrix;
  DType scale_dtype = DType::kFloat32;
  DType out_dtype = DType::kFloat32;
};

// `out` becomes float32, or what Description::out_dtype says.
void decode_matrix(const Description& description, const py::object& codes,
                   const py::object& scales, const py::object& zeros,
                   const py::object& group_of_col, const py::object& out) {
  const BufferBytes code_bytes(codes, false), scale_bytes(scales, false);
  const BufferBytes zero_bytes(zeros, false), group_bytes(group_of_col, false);
  const BufferBytes target(out, true);
  const py::gil_scoped_release release;
  const DType dtype = description.scale_dtype;
  std::vector<float> floats(scale_bytes.size_bytes() / dtype_info(dtype).block_bytes);
  dequantize(dtype, scale_bytes.data(), std::ssize(floats), floats.data());
  CodedMatrix matrix = description.matrix;
  matrix.codes = {code_bytes.data(), static_cast<size_t>(code_bytes.size_bytes())};
  matrix.scales = floats;
  matrix.zeros = words_of(zero_bytes);
  matrix.group_of_col = words_of(group_bytes);
  validate(matrix);
  const int64_t num_elements = matrix.rows * matrix.cols;
  const DType out_dtype = description.out_dtype;
  const bool is_plain = out_dtype == DType::kFloat32;
  if ((!is_plain && !can_repack(matrix, out_dtype)) ||
      target.size_bytes() != dtype_bytes(out_dtype, num_elements)) {
    throw CheckpointError("a quantised matrix does not fit the buffer for it");
  }
  if (is_plain) {
    decode(matrix, {reinterpret_cast<float*>(target.data()), static_cast<size_t>(num_elements)});
  } else {
    repack(matrix, out_dtype, {target.data(), static_cast<size_t>(target.size_bytes())});
  }
}

}  // namespace

void bind_coded_matrix(py::module_& module) {
  using D = Description;
  py::class_<D>(module, "CodedMatrix")
      .def(py::init([](const std::string& layout, int64_t rows, int64_t cols) {
             D description;
             description.matrix.layout = layout_of(layout);
             description.matrix.rows = rows;
             description.matrix.cols = cols;
             return description;
           }),
           py::arg("layout"), py::arg("rows"), py::arg("cols"))
      .def_property(
          "block", [](const D& d) { return std::pair(d.matrix.row_block, d.matrix.col_block); },
          [](D& d, std::pair<int64_t, int64_t> block) {
            d.matrix.row_block = block.first;
            d.matrix.col_block = block.second;
          })
      .def_property(
          "zero_offset", [](const D& d) { return d.matrix.zero_offset; },
          [](D& d, int32_t offset) { d.matrix.zero_offset = offset; })
      .def_property(
          "scale_dtype", [](const D& d) { return std::string(dtype_info(d.scale_dtype).name); },
          [](D& d, const std::string& name) { d.scale_dtype = parse_dtype(name); })
      .def_property(
          "out_dtype", [](const D& d) { return std::string(dtype_info(d.out_dtype).name); },
          [](D& d, const std::string& name) { d.out_dtype = parse_dtype(name); })
      .def("decode", &decode_matrix, py::arg("codes"), py::arg("scales"), py::arg("zeros"),
           py::arg("group_of_col"), py::arg("out"));
}

}  // namespace octavo::bindings
