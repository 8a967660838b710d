#include "cuda/skinny_linear.h"

#include "cuda/skinny_linear.cuh"

namespace octavo::cuda {
namespace {

template <typename T, typename Out>
void run(const DeviceContext& context, const SkinnyArgs<T, Out>& args) {
  if (args.num_rows <= 8) {
    launch_skinny<SkinnyShape<1, 8, 4>>(args, context.num_sms, context.stream);
  } else {
    launch_skinny<SkinnyShape<2, 8, 4>>(args, context.num_sms, context.stream);
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
