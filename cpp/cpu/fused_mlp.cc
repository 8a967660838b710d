#include "cpu/fused_mlp.h"

#include <algorithm>

#include "base/check.h"

namespace octavo::cpu {
namespace {

// The buffer of so many rows is small enough for L2 and still several panels wide.
constexpr int64_t kMaxChunkRows = 128;
// Of gate and up together. With the panels of a task it has to stay in L2.
constexpr int64_t kBufferFloats = int64_t{128} * 256;
// Tasks have whole blocks of features, in every activation format.
constexpr int64_t kPanelsPerBlock = kBlockDepth / kPanelRows;
constexpr int64_t kTasksPerThread = 2;
// Of a task's widened panels, where more than one block of features is so small.
constexpr int64_t kWidenedBytes = int64_t{1} << 20;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

bool FusedMlp::multiply_gate_up(const PackedWeight& gate_up, Function function, TensorView x,
                                TensorView out) {
  check(out.dtype == DType::kFloat32 && out.rows() == x.rows() &&
            2 * out.cols() == gate_up.out_features(),
        "gate and up: out has the wrong type or shape");
  if (!plan(gate_up, x.rows())) return false;
  multiply(gate_up, x,
           {function, ActivationFormat::kFloat32, out.as<std::byte>(), out.row_stride * 4});
  return true;
}

bool FusedMlp::run(const PackedWeight& gate_up, Function function, const PackedWeight& down,
                   TensorView x, TensorView gated, TensorView out) {
  const auto format = gated_.only_format(down, x.rows());
  if (!format.has_value()) return false;
  if (*format == ActivationFormat::kFloat32) {
    if (!multiply_gate_up(gate_up, function, x, gated)) return false;
    linear_.run(down, gated, out);
    return true;
  }
  check(2 * down.in_features() == gate_up.out_features() && out.rows() == x.rows(),
        "gated MLP: shapes do not match");
  if (!plan(gate_up, x.rows())) return false;
  const auto is_whole = [](const Task& task) { return task.col % kBlockDepth == 0; };
  if (inner_ % kBlockDepth != 0 || !std::ranges::all_of(tasks_, is_whole)) return false;
  std::byte* rows = gated_.reserve(*format, x.rows(), inner_);
  multiply(gate_up, x, {function, *format, rows, activation_row_bytes(*format, inner_)});
  linear_.multiply(down, gated_, out);
  return true;
}

// False where a panel would hold features of gate that no panel of up has.
bool FusedMlp::plan(const PackedWeight& gate_up, int64_t num_rows) {
  inner_ = gate_up.out_features() / 2;
  widens_ = widens(kernels_, gate_up, num_rows);
  const int64_t num_chunks = std::max<int64_t>(1, ceil_div(num_rows, kMaxChunkRows));
  chunk_rows_ = std::min(num_rows, round_up(ceil_div(num_rows, num_chunks), kPanelRows));
  const int64_t width = panels_per_task(gate_up);
  widened_bytes_ = widens_ ? width * panel_bytes(PanelFormat::kBFloat16, gate_up.in_features()) : 0;
  tasks_.clear();
  for (int64_t col = 0; col < inner_;) {
    const PanelSegment& gate = gate_up.segment_of(col);
    const PanelSegment& up = gate_up.segment_of(inner_ + col);
    const int64_t gate_row = col - gate.row_begin, up_row = inner_ + col - up.row_begin;
    if (gate_row % kPanelRows != 0 || up_row % kPanelRows != 0) return false;
    const int64_t rows = std::min({gate.num_rows - gate_row, up.num_rows - up_row, inner_ - col});
    const int64_t num_panels = ceil_div(rows, kPanelRows);
    for (int64_t first = 0; first < num_panels; first += width) {
      const int64_t count = std::min(width, num_panels - first);
      tasks_.push_back({{&gate, gate_row / kPanelRows + first, count},
                        {&up, up_row / kPanelRows + first, count},
                        col + first * kPanelRows,
                        std::min(count * kPanelRows, rows - first * kPanelRows)});
    }
    col += rows;
  }
  return true;
}

// Of gate, and as many of up: what the buffer holds of a chunk, less where the threads would not
// end together.
int64_t FusedMlp::panels_per_task(const PackedWeight& gate_up) const {
  const int64_t row_floats = 2 * kPanelsPerBlock * kPanelRows, threads = pool_.num_threads();
  const int64_t blocks = ceil_div(inner_, kPanelsPerBlock * kPanelRows);
  int64_t most = kBufferFloats / (std::max<int64_t>(1, chunk_rows_) * row_floats);
  if (widens_) {
    const int64_t bytes = panel_bytes(PanelFormat::kBFloat16, gate_up.in_features());
    most = std::clamp<int64_t>(kWidenedBytes / (2 * kPanelsPerBlock * bytes), 1, most);
  }
  const int64_t least = std::min(most, ceil_div(blocks, threads * kTasksPerThread));
  const auto length = [&](int64_t width) {
    return ceil_div(ceil_div(blocks, width), threads) * width;
  };
  int64_t best = least;
  for (int64_t width = least + 1; width <= std::min(most, 2 * least); ++width) {
    if (length(width) < length(best)) best = width;
  }
  return best * kPanelsPerBlock;
}

void FusedMlp::multiply(const PackedWeight& gate_up, TensorView x, const Output& out) {
  check(x.dtype == DType::kFloat32 && x.cols() == gate_up.in_features(),
        "gated MLP: x has the wrong type or shape");
  if (x.rows() == 0) return;
  x_.convert(gate_up, x);
  const int64_t threads = pool_.num_threads();
  float* products = buffers_.get<float>(kBufferFloats * threads);
  std::byte* widened = widened_.get<std::byte>(2 * widened_bytes_ * threads);
  pool_.parallel_for(std::ssize(tasks_), [&](int64_t task, int thread) {
    const Buffers buffers{products + thread * kBufferFloats, widened + thread * 2 * widened_bytes_};
    run_task(tasks_[task], gate_up, x.rows(), buffers, out);
  });
}

void FusedMlp::run_task(const Task& task, const PackedWeight& gate_up, int64_t num_rows,
                        const Buffers& buffers, const Output& out) const {
  GemmArgs gate = gemm_args(task.gate, gate_up, x_), up = gemm_args(task.up, gate_up, x_);
  gate.num_cols = up.num_cols = task.num_cols;
  gate.out_stride = up.out_stride = 2 * task.num_cols;
  gate.out = buffers.products;
  up.out = buffers.products + task.num_cols;
  const GemmKernel gate_gemm =
      choose_gemm(kernels_, task.gate.segment->format, num_rows, gate, buffers.widened);
  const GemmKernel up_gemm = choose_gemm(kernels_, task.up.segment->format, num_rows, up,
                                         buffers.widened + widened_bytes_);
  for (int64_t row = 0; row < num_rows; row += chunk_rows_) {
    gate.num_rows = up.num_rows = std::min(chunk_rows_, num_rows - row);
    gate_gemm(gate);
    up_gemm(up);
    for (int64_t r = 0; r < gate.num_rows; ++r) {
      finish_row(task, buffers.products + r * gate.out_stride,
                 out.data + (row + r) * out.stride_bytes, out);
    }
    gate.x += chunk_rows_ * gate.x_stride_bytes;
    up.x += chunk_rows_ * up.x_stride_bytes;
  }
}

void FusedMlp::finish_row(const Task& task, float* gate_up, std::byte* row,
                          const Output& out) const {
  const float* up = gate_up + task.num_cols;
  if (out.format == ActivationFormat::kFloat32) {
    out.function(gate_up, up, task.num_cols, reinterpret_cast<float*>(row) + task.col);
    return;
  }
  out.function(gate_up, up, task.num_cols, gate_up);
  kernels_.convert_blocks[static_cast<int>(out.format)](gate_up, task.col / kBlockDepth,
                                                        task.num_cols / kBlockDepth, inner_, row);
}

}  // namespace octavo::cpu
