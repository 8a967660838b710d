// The Markdown table of what a step consists of.
#pragma once

#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "model/layers.h"
#include "timed_backend.h"

namespace octavo::bench {

// An operation of a step, or several: what it did in one step, and its time in every step.
struct Row {
  std::string name;
  OperationTime one_step;
  std::vector<double> microseconds;

  // Requires: the same operation in every step.
  void add(const OperationTime& step) {
    check(microseconds.empty() ||
              (one_step.name == step.name && one_step.num_calls == step.num_calls),
          "equal steps had different operations");
    one_step = step;
    microseconds.push_back(step.microseconds);
  }

  double median() const {
    std::vector<double> sorted = microseconds;
    std::ranges::nth_element(sorted, sorted.begin() + std::ssize(sorted) / 2);
    return sorted[sorted.size() / 2];
  }
};

// The method, and which of the model's weights it had, told by the shape.
inline std::string label(const OperationTime& time, const ModelConfig& config) {
  if (time.out_features == 0) return std::string(time.name);
  const auto is = [&](int64_t out, int64_t in) {
    return time.out_features == out && time.in_features == in;
  };
  const char* which = is(config.vocab_size, config.hidden_size)              ? " head"
                      : is(qkv_size(config), config.hidden_size)             ? " qkv"
                      : is(config.hidden_size, q_size(config))               ? " o"
                      : is(2 * config.intermediate_size, config.hidden_size) ? " gate_up"
                      : is(config.hidden_size, config.intermediate_size)     ? " down"
                                                                             : "";
  return std::string(time.name) + which + " [" + std::to_string(time.out_features) + ", " +
         std::to_string(time.in_features) + "]";
}

inline void print_row(const Row& row, double step_us) {
  const double us = row.median();
  const auto rate = [&](double work) {
    char text[32] = "";
    if (work > 0.0) std::snprintf(text, sizeof(text), "%.1f", work * 1e-3 / us);
    return std::string(text);
  };
  const std::string calls =
      row.one_step.num_calls == 0 ? "" : std::to_string(row.one_step.num_calls);
  std::printf("| %s | %s | %.1f | %.1f | %.1f %% | %s | %s |\n", row.name.c_str(), calls.c_str(),
              us, std::ranges::min(row.microseconds), 100.0 * us / step_us,
              rate(row.one_step.work.ops).c_str(), rate(row.one_step.work.bytes).c_str());
}

inline void print_table(const std::string& title, std::vector<Row> operations,
                        const std::vector<double>& steps) {
  Row sum{"**all operations**", {}, std::vector<double>(steps.size())}, rest{"the rest", {}, steps};
  for (const Row& row : operations) {
    sum.one_step.work.ops += row.one_step.work.ops;
    sum.one_step.work.bytes += row.one_step.work.bytes;
    sum.one_step.num_calls += row.one_step.num_calls;
    for (size_t i = 0; i < steps.size(); ++i) {
      sum.microseconds[i] += row.microseconds[i];
      rest.microseconds[i] -= row.microseconds[i];
    }
  }
  const Row step{"**step**", {}, steps};
  std::ranges::sort(operations, std::greater{}, &Row::median);
  std::printf("\n%s, %zu steps\n\n", title.c_str(), steps.size());
  std::printf(
      "| operation | calls | us | least | share | Gop/s | GB/s |\n|---|--:|--:|--:|--:|--:|--:|\n");
  for (const Row& row : operations) print_row(row, step.median());
  for (const Row& row : {sum, rest, step}) print_row(row, step.median());
  std::fflush(stdout);
}

}  // namespace octavo::bench
