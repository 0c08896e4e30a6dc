// The operator as a C library, for tests and benchmarks in Python: libdcnv2_kernel.so.
#include "dcnv2.h"

#define DCNV2_EXPORT extern "C" __attribute__((visibility("default")))

DCNV2_EXPORT int32_t dcnv2_tactics(const dcnv2::Problem* problem, int32_t* numbers, int32_t capacity) {
  return dcnv2::tactics(*problem, numbers, capacity);
}

DCNV2_EXPORT size_t dcnv2_workspace_size(const dcnv2::Problem* problem, int32_t tactic) {
  return dcnv2::workspaceSize(*problem, tactic);
}

DCNV2_EXPORT int32_t dcnv2_forward(const dcnv2::Problem* problem, const dcnv2::Tensors* tensors,
                                   int32_t tactic, void* stream) {
  return dcnv2::forward(*problem, *tensors, tactic, static_cast<cudaStream_t>(stream));
}

DCNV2_EXPORT const char* dcnv2_error_name(int32_t error) {
  return cudaGetErrorName(static_cast<cudaError_t>(error));
}
