// The part of cuBLASLt's C interface that gemm needs, resolved with dlopen. Values and layouts are
// those of cublasLt.h, unchanged between versions 12 and 13.
#pragma once

#include <cuda_runtime_api.h>
#include <library_types.h>

#include <cstddef>
#include <cstdint>

namespace octavo::cuda {

using LtHandle = void*;
using LtMatmulDesc = void*;
using LtLayout = void*;
using LtPreference = void*;

struct LtAlgorithm {
  uint64_t data[8];
};
struct LtHeuristicResult {
  LtAlgorithm algorithm;
  size_t workspace_bytes;
  int status;
  float waves;
  int reserved[4];
};

inline constexpr int kLtCompute32F = 68;
inline constexpr int32_t kLtTranspose = 1;
inline constexpr uint32_t kLtEpilogueBias = 4;

inline constexpr int32_t kLtScalePerRow = 3;  // of A or of B: a float a row

enum LtMatmulAttribute {
  kLtTransA = 3,
  kLtEpilogue = 7,
  kLtBiasPointer = 8,
  kLtScaleA = 17,
  kLtScaleB = 18,
  kLtScaleModeA = 31,
  kLtScaleModeB = 32
};
enum LtLayoutAttribute { kLtColumns = 3 };
enum LtPreferenceAttribute { kLtMaxWorkspaceBytes = 1, kLtReductionSchemeMask = 3 };

class CublasLtLibrary {
 public:
  // Throws ConfigError when no library is found.
  CublasLtLibrary();
  ~CublasLtLibrary();
  CublasLtLibrary(const CublasLtLibrary&) = delete;
  CublasLtLibrary& operator=(const CublasLtLibrary&) = delete;

  LtHandle handle() const { return handle_; }

  int (*create)(LtHandle*) = nullptr;
  int (*destroy)(LtHandle) = nullptr;
  int (*create_desc)(LtMatmulDesc*, int compute, cudaDataType scale) = nullptr;
  int (*destroy_desc)(LtMatmulDesc) = nullptr;
  int (*set_desc)(LtMatmulDesc, int attribute, const void*, size_t) = nullptr;
  int (*create_layout)(LtLayout*, cudaDataType, uint64_t rows, uint64_t cols, int64_t ld) = nullptr;
  int (*destroy_layout)(LtLayout) = nullptr;
  int (*set_layout)(LtLayout, int attribute, const void*, size_t) = nullptr;
  int (*create_preference)(LtPreference*) = nullptr;
  int (*destroy_preference)(LtPreference) = nullptr;
  int (*set_preference)(LtPreference, int attribute, const void*, size_t) = nullptr;
  int (*find_algorithms)(LtHandle, LtMatmulDesc, LtLayout a, LtLayout b, LtLayout c, LtLayout d,
                         LtPreference, int wanted, LtHeuristicResult*, int* found) = nullptr;
  // Whether the problem can be run with the algorithm; what it needs.
  int (*check_algorithm)(LtHandle, LtMatmulDesc, LtLayout a, LtLayout b, LtLayout c, LtLayout d,
                         const LtAlgorithm*, LtHeuristicResult*) = nullptr;
  size_t (*version)() = nullptr;
  int (*matmul)(LtHandle, LtMatmulDesc, const void* alpha, const void* a, LtLayout, const void* b,
                LtLayout, const void* beta, const void* c, LtLayout, void* d, LtLayout,
                const LtAlgorithm*, void* workspace, size_t workspace_bytes,
                cudaStream_t) = nullptr;

 private:
  void resolve_functions();

  void* library_ = nullptr;
  LtHandle handle_ = nullptr;
};

// Throws DeviceError naming the call when `status` is not success.
void check_lt(int status, const char* what);

}  // namespace octavo::cuda
