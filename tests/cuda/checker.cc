#include "checker.h"

#include <cuda_fp8.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>

namespace octavo::cuda::testing {
namespace {

struct State {
  State() : context(describe_device(0)) { context.stream = stream.get(); }
  Stream stream;
  DeviceContext context;
  std::mt19937_64 generator;
  int failures = 0;
};

std::unique_ptr<State> state;

float from_fp8(uint8_t bits) {
  const __half_raw raw = __nv_cvt_fp8_to_halfraw(bits, __NV_E4M3);
  return from_bits(raw.x, DType::kFloat16);
}
uint8_t to_fp8(float value) { return __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3); }

// Returns the number of failures.
int run_case(const Case& test) {
  state->failures = 0;
  try {
    test.run();
    synchronize();
  } catch (const std::exception& error) {
    fail(std::string("exception: ") + error.what());
  }
  std::printf("%s %s\n", state->failures == 0 ? "ok  " : "FAIL", test.name);
  std::fflush(stdout);
  return state->failures;
}

}  // namespace

std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

void fail(const std::string& what) {
  constexpr int kMaxPrinted = 12;
  if (state->failures++ < kMaxPrinted) std::printf("  %s\n", what.c_str());
}

const DeviceContext& context() { return state->context; }
void synchronize() { state->stream.synchronize(); }
std::mt19937_64& generator() { return state->generator; }

int64_t random_int(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(generator());
}

float rounded(float value, DType dtype) {
  if (dtype == DType::kFloat32) return value;
  if (dtype == DType::kFloat8E4M3) return from_fp8(to_fp8(value));
  return from_bits(to_bits(value, dtype), dtype);
}

std::vector<float> random_values(int64_t size, DType dtype, float scale) {
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(size);
  for (float& v : values) v = rounded(normal(generator()), dtype);
  return values;
}

Array::Array(DType dtype, int64_t size)
    : dtype_(dtype), size_(size), memory_(dtype_bytes(dtype, size)) {
  check_cuda(cudaMemset(memory_.data(), 0xff, memory_.size_bytes()));
  check_cuda(cudaDeviceSynchronize());
}

Array::Array(DType dtype, const std::vector<float>& values) : Array(dtype, std::ssize(values)) {
  upload(values);
}

void Array::upload(const std::vector<float>& values) {
  std::vector<std::byte> bytes(memory_.size_bytes());
  for (int64_t i = 0; i < std::ssize(values); ++i) {
    if (dtype_ == DType::kFloat32) {
      reinterpret_cast<float*>(bytes.data())[i] = values[i];
    } else if (dtype_ == DType::kFloat8E4M3) {
      reinterpret_cast<uint8_t*>(bytes.data())[i] = to_fp8(values[i]);
    } else {
      reinterpret_cast<uint16_t*>(bytes.data())[i] = to_bits(values[i], dtype_);
    }
  }
  check_cuda(cudaMemcpy(memory_.data(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
  check_cuda(cudaDeviceSynchronize());
}

std::vector<float> Array::download() const {
  synchronize();
  std::vector<std::byte> bytes(memory_.size_bytes());
  check_cuda(cudaMemcpy(bytes.data(), memory_.data(), bytes.size(), cudaMemcpyDeviceToHost));
  std::vector<float> values(size_);
  for (int64_t i = 0; i < size_; ++i) {
    if (dtype_ == DType::kFloat32) {
      values[i] = reinterpret_cast<const float*>(bytes.data())[i];
    } else if (dtype_ == DType::kFloat8E4M3) {
      values[i] = from_fp8(reinterpret_cast<const uint8_t*>(bytes.data())[i]);
    } else {
      values[i] = from_bits(reinterpret_cast<const uint16_t*>(bytes.data())[i], dtype_);
    }
  }
  return values;
}

void expect_close(const std::vector<float>& out, const std::vector<double>& ref, double tolerance,
                  const std::string& what) {
  if (out.size() != ref.size()) return fail(what + ": sizes differ");
  double error = 0.0;
  double norm = 0.0;
  size_t worst = 0;
  double worst_error = -1.0;
  for (size_t i = 0; i < ref.size(); ++i) {
    const double d = std::abs(out[i] - ref[i]);
    if (!(d <= worst_error)) {  // NaN too
      worst_error = d;
      worst = i;
    }
    error += d * d;
    norm += ref[i] * ref[i];
  }
  const double relative = std::sqrt(error / std::max(norm, 1e-300));
  if (relative <= tolerance) return;
  char text[160];
  std::snprintf(text, sizeof(text), ": relative error %.3g > %.3g; worst at %zu: %g, not %g",
                relative, tolerance, worst, out[worst], ref[worst]);
  fail(what + text);
}

// Runs the cases whose name holds argv[2], with the seed argv[1]. Returns the exit code.
int run_all(int argc, char** argv) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    std::printf("no CUDA device\n");
    return 1;
  }
  state = std::make_unique<State>();
  state->generator.seed(argc > 1 ? std::stoull(argv[1]) : std::random_device{}());
  const std::string filter = argc > 2 ? argv[2] : "";
  int failed = 0;
  int run = 0;
  for (const Case& test : cases()) {
    if (std::string(test.name).find(filter) == std::string::npos) continue;
    failed += run_case(test) > 0 ? 1 : 0;
    ++run;
  }
  std::printf("%d of %d cases passed\n", run - failed, run);
  state.reset();
  return failed == 0 && run > 0 ? 0 : 1;
}

}  // namespace octavo::cuda::testing

// test_cuda [seed] [part of a case's name]
int main(int argc, char** argv) { return octavo::cuda::testing::run_all(argc, argv); }
