// Timing of device work: many calls in one graph, so that launch gaps are those of a served step.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "cuda/common/device_context.h"
#include "cuda/common/memory.h"
#include "cuda/common/stream.h"

namespace octavo::cuda::bench {

// What one H200 was measured to reach.
inline constexpr double kRoofBytesPerSecond = 4.3e12;
inline constexpr double kRoofFlops = 790e12;

struct Device {
  Stream stream;
  DeviceContext context;
  Device() : context(describe_device(0)) { context.stream = stream.get(); }
};

inline double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

// Median time of replaying `graph`, in microseconds.
inline double time_graph_us(cudaStream_t stream, const Graph& graph, int repeats = 7) {
  Event begin(cudaEventDefault), end(cudaEventDefault);
  for (int i = 0; i < 2; ++i) graph.launch(stream);
  std::vector<double> times;
  for (int i = 0; i < repeats; ++i) {
    begin.record(stream);
    graph.launch(stream);
    end.record(stream);
    end.synchronize();
    float ms = 0.0f;
    check_cuda(cudaEventElapsedTime(&ms, begin.get(), end.get()));
    times.push_back(ms * 1000.0);
  }
  return median(times);
}

// Time of one call of f(i) among `calls` in a row, in microseconds.
template <typename F>
double time_us(cudaStream_t stream, int calls, F&& f) {
  f(0);
  check_cuda(cudaStreamSynchronize(stream));
  Graph::begin_capture(stream);
  for (int i = 0; i < calls; ++i) f(i);
  const Graph graph(stream);
  return time_graph_us(stream, graph) / calls;
}

struct Work {
  double bytes = 0.0;
  double flops = 0.0;
};

inline void print_row(const std::string& op, const std::string& shape, double us, Work work) {
  const double by_bytes = work.bytes / kRoofBytesPerSecond;
  const double by_flops = work.flops / kRoofFlops;
  std::printf("| %-22s | %-30s | %9.2f | %7.0f | %7.1f | %5.1f %% |\n", op.c_str(), shape.c_str(),
              us, work.bytes / us * 1e-3, work.flops / us * 1e-6,
              100.0 * std::max(by_bytes, by_flops) / (us * 1e-6));
  std::fflush(stdout);
}

inline void print_header(const char* title) {
  std::printf(
      "\n### %s\n\n| op | shape | us | GB/s | TFLOP/s | share of roof |\n"
      "|---|---|---|---|---|---|\n",
      title);
}

}  // namespace octavo::cuda::bench
