#include "cpu/lora.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/dequantize.h"

namespace octavo::cpu {
namespace {

constexpr int64_t kTaskRows = 64;    // of a task: its products stay in the cache of a core
constexpr int64_t kTaskPanels = 16;  // likewise

int64_t num_panels(int64_t rows) { return (rows + kPanelRows - 1) / kPanelRows; }

int64_t matrix_bytes(PanelFormat format, int64_t rows, int64_t depth) {
  return num_panels(rows) * panel_bytes(format, depth);
}

// Bytes of one slot: A and B of each part.
int64_t slot_bytes(PanelFormat format, int64_t in_features, std::span<const LoraPart> parts,
                   int64_t max_rank) {
  int64_t bytes = 0;
  for (const LoraPart& part : parts) {
    bytes += matrix_bytes(format, max_rank, in_features);
    bytes += matrix_bytes(format, part.num_rows, max_rank);
  }
  return bytes;
}

void pack(const Kernels& kernels, PanelFormat format, const WeightView& view, std::byte* panels) {
  std::vector<float> rows(kPanelRows * view.cols);
  const int64_t stride = panel_bytes(format, view.cols);
  for (int64_t first = 0; first < view.rows; first += kPanelRows) {
    const int64_t count = std::min(kPanelRows, view.rows - first);
    const auto* source =
        static_cast<const std::byte*>(view.data) + dtype_bytes(view.dtype, first * view.cols);
    dequantize(view.dtype, source, count * view.cols, rows.data());
    kernels.pack_panel[static_cast<int>(format)](rows.data(), count, view.cols,
                                                 panels + first / kPanelRows * stride);
  }
}

}  // namespace

CpuLoraBank::CpuLoraBank(PanelFormat format, int64_t in_features, std::span<const LoraPart> parts,
                         const LoraLimits& limits)
    : format_(format),
      in_features_(in_features),
      max_rank_(limits.max_rank),
      parts_(parts.begin(), parts.end()),
      pairs_(limits.num_slots * std::ssize(parts)),
      pages_(planned_bytes(format, in_features, parts, limits)) {
  std::byte* next = pages_.data();
  for (size_t i = 0; i < pairs_.size(); ++i) {
    pairs_[i].a = next;
    next += matrix_bytes(format, max_rank_, in_features);
    pairs_[i].b = next;
    next += matrix_bytes(format, parts_[i % parts_.size()].num_rows, max_rank_);
  }
}

int64_t CpuLoraBank::planned_bytes(PanelFormat format, int64_t in_features,
                                   std::span<const LoraPart> parts, const LoraLimits& limits) {
  return limits.num_slots * slot_bytes(format, in_features, parts, limits.max_rank);
}

void CpuLoraBank::load(const Kernels& kernels, int32_t slot, int64_t part, const LoraView& view) {
  Pair& pair = pairs_[slot * num_parts() + part];
  check(view.a.rows > 0 && view.a.rows <= max_rank_ && view.a.cols == in_features_ &&
            view.b.cols == view.a.rows && view.b.rows == parts_[part].num_rows,
        "an adapter does not fit its bank");
  pack(kernels, format_, view.a, pair.a);
  pack(kernels, format_, view.b, pair.b);
  pair.rank = view.a.rows;
  pair.scale = view.scale;
}

void CpuLoraBank::clear(int32_t slot) {
  for (int64_t part = 0; part < num_parts(); ++part) pairs_[slot * num_parts() + part].rank = 0;
}

void LoraLinear::plan(const int32_t* slots, const int32_t* rows, const LoraPlan& plan) {
  int32_t* sorted = plan.memory;
  int32_t* first_row = plan.memory + plan.num_rows;
  const auto slot_of = [&](int64_t i) { return slots[rows == nullptr ? i : rows[i]]; };
  int32_t next = 0;
  for (int32_t slot = 0; slot < plan.num_slots; ++slot) {
    first_row[slot] = next;
    for (int64_t i = 0; i < plan.num_rows; ++i) {
      if (slot_of(i) == slot) sorted[next++] = static_cast<int32_t>(i);
    }
  }
  first_row[plan.num_slots] = next;
}

void LoraLinear::add(const CpuLoraBank& bank, const LoraPlan& plan, TensorView x, TensorView out) {
  check(x.dtype == DType::kFloat32 && out.dtype == DType::kFloat32 && x.rows() == plan.num_rows &&
            out.rows() == plan.num_rows && x.cols() == bank.in_features(),
        "add_lora: shapes do not match");
  plan_tasks(bank, plan, false);
  if (tasks_.empty()) return;
  format_ = kernels_.activation_format[static_cast<int>(bank.format())];
  const int32_t* sorted = plan.memory;
  const int64_t num_rows = plan.memory[plan.num_rows + plan.num_slots];
  gather(sorted, num_rows, x);
  products_ = products_memory_.get<float>(num_rows * bank.num_parts() * bank.max_rank());
  if (format_ != ActivationFormat::kFloat32) {
    shrunk_.stride_bytes = activation_row_bytes(format_, bank.max_rank());
    shrunk_.data =
        shrunk_memory_.get<std::byte>(num_rows * bank.num_parts() * shrunk_.stride_bytes);
  } else {
    shrunk_ = {reinterpret_cast<std::byte*>(products_), bank.max_rank() * 4};
  }
  pool_.parallel_for(std::ssize(tasks_), [&](int64_t task, int) { shrink(tasks_[task], bank); });
  plan_tasks(bank, plan, true);
  pool_.parallel_for(std::ssize(tasks_), [&](int64_t task, int thread) {
    expand(tasks_[task], bank, sorted, thread, out);
  });
}

// The first product is one task a part and block of rows, since the ranks are small; the second is
// divided by panels too.
void LoraLinear::plan_tasks(const CpuLoraBank& bank, const LoraPlan& plan, bool is_second) {
  const int32_t* first_row = plan.memory + plan.num_rows;
  tasks_.clear();
  for (int32_t slot = 0; slot < plan.num_slots; ++slot) {
    if (first_row[slot] == first_row[slot + 1]) continue;  // another thread may be loading it
    for (int64_t part = 0; part < bank.num_parts(); ++part) {
      const int64_t rank = bank.pair(slot, part).rank;
      if (rank == 0) continue;
      const int64_t panels = num_panels(is_second ? bank.part(part).num_rows : rank);
      const int64_t width = is_second ? kTaskPanels : panels;
      for (int64_t row = first_row[slot]; row < first_row[slot + 1]; row += kTaskRows) {
        const int64_t count = std::min<int64_t>(kTaskRows, first_row[slot + 1] - row);
        for (int64_t panel = 0; panel < panels; panel += width) {
          tasks_.push_back({slot, part, row, count, panel, std::min(width, panels - panel)});
        }
      }
    }
  }
}

void LoraLinear::gather(const int32_t* sorted, int64_t num_rows, TensorView x) {
  gathered_.stride_bytes = activation_row_bytes(format_, x.cols());
  gathered_.data = gathered_memory_.get<std::byte>(num_rows * gathered_.stride_bytes);
  pool_.parallel_for(num_rows, [&](int64_t row, int) {
    const float* source = x.as<float>() + sorted[row] * x.row_stride;
    if (format_ == ActivationFormat::kFloat32) {
      std::memcpy(gathered_.row(row), source, x.cols() * sizeof(float));
    } else {
      kernels_.convert_row[static_cast<int>(format_)](source, x.cols(), gathered_.row(row));
    }
  });
}

std::byte* LoraLinear::shrunk_row(int64_t row, int64_t part, const CpuLoraBank& bank) const {
  return shrunk_.row(row * bank.num_parts() + part);
}

void LoraLinear::shrink(const Task& task, const CpuLoraBank& bank) {
  const CpuLoraBank::Pair& pair = bank.pair(task.slot, task.part);
  const int64_t row_floats = bank.num_parts() * bank.max_rank();
  float* products = products_ + task.first_row * row_floats + task.part * bank.max_rank();
  GemmArgs args;
  args.x = gathered_.row(task.first_row);
  args.x_stride_bytes = gathered_.stride_bytes;
  args.num_rows = task.num_rows;
  args.panels = pair.a;
  args.panel_bytes = panel_bytes(bank.format(), bank.in_features());
  args.depth = bank.in_features();
  args.num_cols = pair.rank;
  args.out = products;
  args.out_stride = row_floats;
  kernels_.gemm[static_cast<int>(bank.format())](args);
  for (int64_t r = 0; r < task.num_rows; ++r) {
    float* row = products + r * row_floats;
    kernels_.scale(row, pair.scale, pair.rank);
    if (format_ == ActivationFormat::kFloat32) continue;
    kernels_.convert_row[static_cast<int>(format_)](
        row, pair.rank, shrunk_row(task.first_row + r, task.part, bank));
  }
}

void LoraLinear::expand(const Task& task, const CpuLoraBank& bank, const int32_t* sorted,
                        int thread, TensorView out) {
  const CpuLoraBank::Pair& pair = bank.pair(task.slot, task.part);
  const LoraPart& part = bank.part(task.part);
  const int64_t col = task.first_panel * kPanelRows;
  const int64_t width = std::min(task.num_panels * kPanelRows, part.num_rows - col);
  float* delta = delta_[thread].get<float>(kTaskRows * kTaskPanels * kPanelRows);
  GemmArgs args;
  args.x = shrunk_row(task.first_row, task.part, bank);
  args.x_stride_bytes = bank.num_parts() * shrunk_.stride_bytes;
  args.num_rows = task.num_rows;
  args.panel_bytes = panel_bytes(bank.format(), pair.rank);
  args.panels = pair.b + task.first_panel * args.panel_bytes;
  args.depth = pair.rank;
  args.num_cols = width;
  args.out = delta;
  args.out_stride = width;
  kernels_.gemm[static_cast<int>(bank.format())](args);
  for (int64_t r = 0; r < task.num_rows; ++r) {
    float* row = out.as<float>() + sorted[task.first_row + r] * out.row_stride;
    kernels_.add(row + part.row_begin + col, delta + r * width, width);
  }
}

}  // namespace octavo::cpu
