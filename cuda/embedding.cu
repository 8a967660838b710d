// One block a token, 16 bytes a thread and turn. Bound by latency at decode sizes, by memory above.
#include "cuda/common/element.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/embedding.h"

namespace octavo::cuda {
namespace {

template <typename T, typename Out>
__global__ void embed_kernel(const T* table, const int32_t* token_ids, Out* out, int hidden) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const T* source = table + static_cast<int64_t>(token_ids[blockIdx.x]) * hidden;
  Out* target = out + static_cast<int64_t>(blockIdx.x) * hidden;
  for (int i = threadIdx.x * 8; i < hidden; i += blockDim.x * 8) {
    float v[8];
    load8(source + i, v);
    store8(target + i, v);
  }
}

}  // namespace

void embed(const DeviceContext& context, TensorView table, const int32_t* token_ids,
           TensorView out) {
  const int hidden = static_cast<int>(out.cols());
  check(hidden % 8 == 0 && table.cols() == hidden, "embed: hidden size");
  if (out.rows() == 0) return;
  // The first kernel of a step: those behind it may rely on what was copied before it.
  const LaunchShape shape{.grid = dim3(out.rows()), .block = dim3(128), .overlap = false};
  dispatch_half(table.dtype, [&]<typename T>(T) {
    if (out.dtype == DType::kFloat32) {
      launch(embed_kernel<T, float>, shape, context.stream, table.as<T>(), token_ids,
             out.as<float>(), hidden);
    } else {
      launch(embed_kernel<T, T>, shape, context.stream, table.as<T>(), token_ids, out.as<T>(),
             hidden);
    }
  });
}

}  // namespace octavo::cuda
