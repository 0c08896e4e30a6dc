// Chooses and launches the kernels.
#include "dcnv2.h"
#include "generic.h"

namespace dcnv2 {
namespace {

constexpr int32_t kGeneric = 1;

template <class T>
__global__ void __launch_bounds__(Generic<T>::kThreads)
    genericKernel(const __grid_constant__ Problem problem, const __grid_constant__ Tensors tensors) {
  Generic<T>::run(problem, tensors);
}

template <class T>
cudaError_t launchGeneric(const Problem& problem, const Tensors& tensors, cudaStream_t stream) {
  const int64_t blocks = Generic<T>::blocks(problem);
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  if (blocks == 0) return cudaSuccess;
  genericKernel<T><<<static_cast<unsigned>(blocks), Generic<T>::kThreads, Generic<T>::kSharedBytes, stream>>>(
      problem, tensors);
  return cudaGetLastError();
}

}  // namespace

int32_t tactics(const Problem&, int32_t* numbers, int32_t capacity) noexcept {
  if (capacity > 0) numbers[0] = kGeneric;
  return 1;
}

size_t workspaceSize(const Problem&, int32_t) noexcept { return 0; }

cudaError_t forward(const Problem& problem, const Tensors& tensors, int32_t tactic,
                    cudaStream_t stream) noexcept {
  if (tactic != kGeneric) return cudaErrorNotSupported;
  switch (problem.type) {
    case DataType::kFloat:
      return launchGeneric<Float>(problem, tensors, stream);
    case DataType::kHalf:
      return launchGeneric<Half>(problem, tensors, stream);
    case DataType::kBfloat16:
      return launchGeneric<Bfloat16>(problem, tensors, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace dcnv2
