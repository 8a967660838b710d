// Owned streams, events and graphs.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <type_traits>

#include "cuda/common/error.h"

namespace octavo::cuda {

class Stream {
 public:
  Stream() {
    cudaStream_t stream = nullptr;
    check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    handle_.reset(stream);
  }
  cudaStream_t get() const { return handle_.get(); }
  void synchronize() const { check_cuda(cudaStreamSynchronize(get())); }

 private:
  struct Destroy {
    void operator()(cudaStream_t s) const { cudaStreamDestroy(s); }
  };
  std::unique_ptr<std::remove_pointer_t<cudaStream_t>, Destroy> handle_;
};

class Event {
 public:
  explicit Event(unsigned flags = cudaEventDisableTiming) {
    cudaEvent_t event = nullptr;
    check_cuda(cudaEventCreateWithFlags(&event, flags));
    handle_.reset(event);
  }
  cudaEvent_t get() const { return handle_.get(); }
  void record(cudaStream_t stream) { check_cuda(cudaEventRecord(get(), stream)); }
  // Waits on the host. An event never recorded is complete.
  void synchronize() const { check_cuda(cudaEventSynchronize(get())); }

 private:
  struct Destroy {
    void operator()(cudaEvent_t e) const { cudaEventDestroy(e); }
  };
  std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, Destroy> handle_;
};

// Work captured from a stream, replayed with one launch.
class Graph {
 public:
  static void begin_capture(cudaStream_t stream) {
    check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  }

  // Leaves capture mode and drops what was recorded.
  static void abandon_capture(cudaStream_t stream) {
    cudaGraph_t graph = nullptr;
    if (cudaStreamEndCapture(stream, &graph) == cudaSuccess) cudaGraphDestroy(graph);
    cudaGetLastError();
  }

  // Ends the capture that began on `stream`.
  explicit Graph(cudaStream_t stream) {
    cudaGraph_t graph = nullptr;
    check_cuda(cudaStreamEndCapture(stream, &graph));
    cudaGraphExec_t exec = nullptr;
    const cudaError_t status = cudaGraphInstantiate(&exec, graph, 0);
    cudaGraphDestroy(graph);
    check_cuda(status);
    handle_.reset(exec);
  }

  void launch(cudaStream_t stream) const { check_cuda(cudaGraphLaunch(handle_.get(), stream)); }

 private:
  struct Destroy {
    void operator()(cudaGraphExec_t g) const { cudaGraphExecDestroy(g); }
  };
  std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>, Destroy> handle_;
};

}  // namespace octavo::cuda
