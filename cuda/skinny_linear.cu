#include "cuda/skinny_linear.cuh"
#include "cuda/skinny_linear.h"

namespace octavo::cuda {
namespace {

constexpr int kStages = 5;

// Rows of W that the busiest block gets with tiles of `tile_rows`.
int longest_share(int out_features, int tile_rows, int num_sms) {
  const int tiles = (out_features + tile_rows - 1) / tile_rows;
  return (tiles + num_sms - 1) / num_sms * tile_rows;
}

template <int kColumnTiles, typename T, typename Out>
void run(const DeviceContext& context, const SkinnyArgs<T, Out>& args) {
  // Larger tiles read x less often, but divide less evenly.
  const int n = args.out_features;
  if (longest_share(n, 32, context.num_sms) <= longest_share(n, 16, context.num_sms)) {
    launch_skinny<SkinnyShape<kColumnTiles, 2, kStages>>(args, context.num_sms, context.stream);
  } else {
    launch_skinny<SkinnyShape<kColumnTiles, 1, kStages>>(args, context.num_sms, context.stream);
  }
}

template <typename T, typename Out>
void run(const DeviceContext& context, const SkinnyArgs<T, Out>& args) {
  if (args.num_rows <= 8) {
    run<1>(context, args);
  } else {
    run<2>(context, args);
  }
}

}  // namespace

void skinny_linear(const DeviceContext& context, TensorView weight, const void* bias, TensorView x,
                   TensorView out) {
  check(x.rows() <= kMaxSkinnyRows && x.cols() % 8 == 0 && x.row_stride % 8 == 0 &&
            weight.cols() == x.cols() && weight.rows() == out.cols(),
        "skinny_linear: shape");
  if (x.rows() == 0) return;
  dispatch_half(x.dtype, [&]<typename T>(T) {
    const auto args = [&]<typename Out>(Out* target) {
      return SkinnyArgs<T, Out>{weight.as<const T>(),
                                x.as<const T>(),
                                static_cast<const T*>(bias),
                                target,
                                x.row_stride,
                                out.row_stride,
                                static_cast<int>(x.rows()),
                                static_cast<int>(x.cols()),
                                static_cast<int>(out.cols())};
    };
    if (out.dtype == DType::kFloat32) {
      run(context, args(out.as<float>()));
    } else {
      run(context, args(out.as<T>()));
    }
  });
}

}  // namespace octavo::cuda
