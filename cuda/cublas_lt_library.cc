#include "cuda/cublas_lt_library.h"

#include <dlfcn.h>

#include <array>
#include <string>

#include "base/errors.h"

namespace octavo::cuda {
namespace {

// Newest first. The directories are those of the CUDA wheels, beside this module in site-packages.
struct Candidate {
  const char* name;
  const char* wheel_directory;
};
constexpr std::array<Candidate, 2> kCandidates = {{
    {"libcublasLt.so.13", "nvidia/cu13/lib"},
    {"libcublasLt.so.12", "nvidia/cublas/lib"},
}};

// The directory that holds the package of this module: site-packages when installed.
std::string packages_directory() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&packages_directory), &info) == 0) return {};
  const std::string path = info.dli_fname;
  const size_t package = path.rfind('/');
  if (package == std::string::npos || package == 0) return {};
  const size_t parent = path.rfind('/', package - 1);
  return parent == std::string::npos ? std::string() : path.substr(0, parent + 1);
}

void* open_library() {
  for (const Candidate& candidate : kCandidates) {
    if (void* library = dlopen(candidate.name, RTLD_NOW | RTLD_NOLOAD)) return library;
  }
  const std::string packages = packages_directory();
  for (const Candidate& candidate : kCandidates) {
    const std::string path = packages + candidate.wheel_directory + "/" + candidate.name;
    if (void* library = dlopen(path.c_str(), RTLD_NOW)) return library;
    if (void* library = dlopen(candidate.name, RTLD_NOW)) return library;
  }
  throw ConfigError(
      "cuBLASLt is not installed: pip install nvidia-cublas, or install torch with CUDA");
}

}  // namespace

void check_lt(int status, const char* what) {
  if (status == 0) return;
  const std::string message =
      std::string(what) + " failed: cuBLAS status " + std::to_string(status);
  throw DeviceError(message.c_str(), false);
}

CublasLtLibrary::CublasLtLibrary() : library_(open_library()) {
  resolve_functions();
  check_lt(create(&handle_), "cublasLtCreate");
}

CublasLtLibrary::~CublasLtLibrary() {
  destroy(handle_);
  dlclose(library_);
}

void CublasLtLibrary::resolve_functions() {
  const auto resolve = [this](auto& function, const char* name) {
    void* symbol = dlsym(library_, name);
    if (symbol == nullptr) throw ConfigError(std::string("cuBLASLt lacks ") + name);
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(symbol);
  };
  resolve(create, "cublasLtCreate");
  resolve(destroy, "cublasLtDestroy");
  resolve(create_desc, "cublasLtMatmulDescCreate");
  resolve(destroy_desc, "cublasLtMatmulDescDestroy");
  resolve(set_desc, "cublasLtMatmulDescSetAttribute");
  resolve(create_layout, "cublasLtMatrixLayoutCreate");
  resolve(destroy_layout, "cublasLtMatrixLayoutDestroy");
  resolve(set_layout, "cublasLtMatrixLayoutSetAttribute");
  resolve(create_preference, "cublasLtMatmulPreferenceCreate");
  resolve(destroy_preference, "cublasLtMatmulPreferenceDestroy");
  resolve(set_preference, "cublasLtMatmulPreferenceSetAttribute");
  resolve(find_algorithms, "cublasLtMatmulAlgoGetHeuristic");
  resolve(check_algorithm, "cublasLtMatmulAlgoCheck");
  resolve(version, "cublasLtGetVersion");
  resolve(matmul, "cublasLtMatmul");
}

}  // namespace octavo::cuda
