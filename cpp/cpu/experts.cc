#include "cpu/experts.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "cpu/panel_gemm.h"

namespace octavo::cpu {
namespace {

// Indices of the `count` greatest logits, descending; of equal ones the first.
void choose(const float* logits, int64_t size, int64_t count, int32_t* chosen) {
  for (int64_t k = 0; k < count; ++k) {
    const auto is_taken = [&](int64_t e) {
      return std::find(chosen, chosen + k, static_cast<int32_t>(e)) != chosen + k;
    };
    int64_t best = -1;
    for (int64_t e = 0; e < size; ++e) {
      if ((best < 0 || logits[e] > logits[best]) && !is_taken(e)) best = e;
    }
    chosen[k] = static_cast<int32_t>(best);
  }
}

}  // namespace

void Experts::run(TensorView x, TensorView router_logits, const ExpertBank& bank,
                  const ExpertScratch& scratch, TensorView out) {
  const auto& gate_up = static_cast<const PackedWeight&>(bank.gate_up);
  const auto& down = static_cast<const PackedWeight&>(bank.down);
  const int64_t pairs = x.rows() * bank.experts_per_token;
  check(router_logits.cols() == bank.num_experts && x.cols() == gate_up.in_features() &&
            gate_up.out_features() == bank.num_experts * scratch.gate_up.cols() &&
            scratch.plan.num_elements() >= expert_plan_size(pairs, bank.num_experts),
        "experts: shapes do not match");
  if (pairs == 0) return;
  auto* plan_memory = scratch.plan.as<int32_t>();
  const Plan plan{plan_memory,
                  reinterpret_cast<float*>(plan_memory + pairs),
                  plan_memory + 2 * pairs,
                  plan_memory + 3 * pairs,
                  plan_memory + 4 * pairs,
                  bank.num_experts,
                  bank.experts_per_token,
                  pairs};
  route(router_logits, bank.renormalize, plan);
  sort_by_expert(plan);
  multiply(gate_up, x, plan.token_of_row, plan, scratch.gate_up);
  const int64_t inner = scratch.gated.cols();
  pool_.parallel_for(pairs, [&](int64_t row, int) {
    const float* gate = scratch.gate_up.as<float>() + row * 2 * inner;
    kernels_.silu_mul(gate, gate + inner, inner, scratch.gated.as<float>() + row * inner);
  });
  multiply(down, scratch.gated, nullptr, plan, scratch.out);
  combine(scratch.out, plan, out);
}

void Experts::route(TensorView router_logits, bool renormalize, const Plan& plan) {
  const int64_t per_token = plan.experts_per_token;
  pool_.parallel_for(router_logits.rows(), [&](int64_t token, int) {
    const float* logits = router_logits.as<float>() + token * router_logits.row_stride;
    int32_t* chosen = plan.expert + token * per_token;
    float* weights = plan.weight + token * per_token;
    choose(logits, plan.num_experts, per_token, chosen);
    const float greatest = logits[chosen[0]];
    float total = 0.0f;
    for (int64_t k = 0; k < per_token; ++k) {
      weights[k] = std::exp(logits[chosen[k]] - greatest);
      if (renormalize) total += weights[k];
    }
    for (int64_t e = 0; !renormalize && e < plan.num_experts; ++e) {
      total += std::exp(logits[e] - greatest);
    }
    for (int64_t k = 0; k < per_token; ++k) weights[k] /= total;
  });
}

void Experts::sort_by_expert(const Plan& plan) {
  std::fill_n(plan.first_row, plan.num_experts + 1, 0);
  for (int64_t p = 0; p < plan.num_pairs; ++p) ++plan.first_row[plan.expert[p] + 1];
  for (int64_t e = 0; e < plan.num_experts; ++e) plan.first_row[e + 1] += plan.first_row[e];
  // Places are handed out by moving each expert's first row up, and it back afterwards.
  for (int64_t p = 0; p < plan.num_pairs; ++p) {
    const int32_t row = plan.first_row[plan.expert[p]]++;
    plan.row[p] = row;
    plan.token_of_row[row] = static_cast<int32_t>(p / plan.experts_per_token);
  }
  for (int64_t e = plan.num_experts; e > 0; --e) plan.first_row[e] = plan.first_row[e - 1];
  plan.first_row[0] = 0;
}

void Experts::multiply(const PackedWeight& weight, TensorView x, const int32_t* tokens,
                       const Plan& plan, TensorView out) {
  activations_.fill({});
  const int64_t rows = rows_of_an_expert(plan);
  for (const PanelSegment& segment : weight.segments()) {
    const ActivationFormat format = kernels_.activation_format_for(segment.format, rows);
    Activations& activations = activations_[static_cast<int>(format)];
    if (activations.data == nullptr) activations = gather(format, x, tokens, plan.num_pairs);
  }
  plan_tasks(weight, plan);
  const int64_t buffer_bytes = widened_bytes(kernels_, weight, rows);
  std::byte* buffers = widened_.get<std::byte>(buffer_bytes * pool_.num_threads());
  pool_.parallel_for(std::ssize(tasks_), [&](int64_t task, int thread) {
    run_task(tasks_[task], weight, plan, buffers + thread * buffer_bytes, out);
  });
}

// Long runs of panels, so that a batch's rows are read few times, but enough of them for all
// threads.
void Experts::plan_tasks(const PackedWeight& weight, const Plan& plan) {
  constexpr int64_t kTaskPanels = 16;
  const int64_t rows_per_expert = weight.out_features() / plan.num_experts;
  tasks_.clear();
  for (const PanelSegment& segment : weight.segments()) {
    const int64_t expert = segment.row_begin / rows_per_expert;
    check(segment.row_begin + segment.num_rows <= (expert + 1) * rows_per_expert,
          "experts: a tensor holds more than one");
    if (plan.first_row[expert] == plan.first_row[expert + 1]) continue;
    for (int64_t first = 0; first < segment.num_panels(); first += kTaskPanels) {
      const int64_t count = std::min(kTaskPanels, segment.num_panels() - first);
      tasks_.push_back({&segment, first, count, expert});
    }
  }
}

Experts::Activations Experts::gather(ActivationFormat format, TensorView x, const int32_t* tokens,
                                     int64_t rows) {
  const bool is_plain = format == ActivationFormat::kFloat32;
  if (is_plain && tokens == nullptr) return {x.as<std::byte>(), x.row_stride * 4};
  const int64_t stride = activation_row_bytes(format, x.cols());
  std::byte* gathered = scratch_[static_cast<int>(format)].get<std::byte>(rows * stride);
  const auto convert_row = kernels_.convert_row[static_cast<int>(format)];
  pool_.parallel_for(rows, [&](int64_t row, int) {
    const float* source = x.as<float>() + (tokens == nullptr ? row : tokens[row]) * x.row_stride;
    if (is_plain) {
      std::memcpy(gathered + row * stride, source, stride);
    } else {
      convert_row(source, x.cols(), gathered + row * stride);
    }
  });
  return {gathered, stride};
}

void Experts::run_task(const Task& task, const PackedWeight& weight, const Plan& plan,
                       std::byte* buffer, TensorView out) const {
  const PanelSegment& segment = *task.segment;
  const int64_t rows = rows_of_an_expert(plan);
  const ActivationFormat format = kernels_.activation_format_for(segment.format, rows);
  const Activations& activations = activations_[static_cast<int>(format)];
  const int64_t rows_per_expert = weight.out_features() / plan.num_experts;
  const int64_t first_row = plan.first_row[task.expert];
  const int64_t panel_col = task.first_panel * kPanelRows;
  const int64_t col = segment.row_begin - task.expert * rows_per_expert + panel_col;
  GemmArgs args;
  args.x = activations.data + first_row * activations.stride_bytes;
  args.x_stride_bytes = activations.stride_bytes;
  args.num_rows = plan.first_row[task.expert + 1] - first_row;
  args.panels = segment.panel(task.first_panel);
  args.panel_bytes = segment.panel_bytes;
  args.depth = weight.in_features();
  args.num_cols = std::min(task.num_panels * kPanelRows, segment.num_rows - panel_col);
  args.out = out.as<float>() + first_row * out.row_stride + col;
  args.out_stride = out.row_stride;
  multiply_panels(kernels_, segment.format, rows, args, buffer);
}

// In the order of a token's experts, whatever else is in the batch.
void Experts::combine(TensorView rows, const Plan& plan, TensorView out) {
  const int64_t per_token = plan.experts_per_token;
  pool_.parallel_for(out.rows(), [&](int64_t token, int) {
    float* sum = out.as<float>() + token * out.row_stride;
    std::fill_n(sum, out.cols(), 0.0f);
    for (int64_t p = token * per_token; p < (token + 1) * per_token; ++p) {
      const float* row = rows.as<float>() + plan.row[p] * rows.row_stride;
      for (int64_t i = 0; i < out.cols(); ++i) sum[i] += plan.weight[p] * row[i];
    }
  });
}

}  // namespace octavo::cpu
