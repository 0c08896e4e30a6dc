// Chooses and launches the kernels.
#include <algorithm>

#include "dcnv2.h"
#include "plan.h"
#include "transpose.h"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define DCNV2_WARPGROUPS true
#else
#define DCNV2_WARPGROUPS false
#endif

namespace dcnv2 {
namespace {

constexpr size_t kAlignment = 256;

template <class T>
__global__ void __launch_bounds__(Generic<T>::kThreads)
    genericKernel(const __grid_constant__ Problem problem, const __grid_constant__ Tensors tensors) {
  Generic<T>::run(problem, tensors);
}

template <class Storage>
__global__ void __launch_bounds__(Transpose<Storage>::kThreads)
    transposeKernel(const void* from, void* to, int32_t rows, int32_t columns) {
  Transpose<Storage>::run(from, to, rows, columns);
}

template <class T, int32_t kM, int32_t kN, int32_t kWarps, int32_t kResident>
__global__ void __launch_bounds__(kWarps * 32, kResident)
    tileKernel(const __grid_constant__ TileParams params) {
  Tile<T, kM, kN, kWarps, DCNV2_WARPGROUPS>::run(params);
}

Device currentDevice() {
  Device found;
  int device;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&found.major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&found.multiprocessors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&found.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) !=
          cudaSuccess) {
    cudaGetLastError();
    return {};
  }
  return found;
}

struct Launch {
  int64_t blocks;
  int32_t threads;
  int64_t shared_bytes;
  int32_t cluster;
  cudaStream_t stream;
};

// Returns this launch's own error, not an earlier one, and leaves none behind for a later call to find.
template <class... Parameters, class... Arguments>
cudaError_t launchKernel(void (*kernel)(Parameters...), const Launch& launch, const Arguments&... arguments) {
  if (launch.blocks > INT32_MAX) return cudaErrorNotSupported;
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(launch.cluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = {static_cast<unsigned>(launch.blocks), 1, 1};
  config.blockDim = {static_cast<unsigned>(launch.threads), 1, 1};
  config.dynamicSmemBytes = static_cast<size_t>(launch.shared_bytes);
  config.stream = launch.stream;
  config.attrs = &cluster;
  config.numAttrs = launch.cluster > 1 ? 1 : 0;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(launch.shared_bytes));
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, arguments...);
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

size_t weightBytes(const Problem& p) {
  const size_t elements = static_cast<size_t>(p.out_channels) * p.channels * p.kernel_h * p.kernel_w;
  return (elements * elementBytes(p) + kAlignment - 1) / kAlignment * kAlignment;
}

template <class Storage>
cudaError_t transpose(const void* from, void* to, int32_t batch, int32_t rows, int32_t columns,
                      cudaStream_t stream) {
  using Kernel = Transpose<Storage>;
  return launchKernel(
      transposeKernel<Storage>,
      {Kernel::blocks(batch, rows, columns), Kernel::kThreads, Kernel::kSharedBytes, 1, stream}, from, to,
      rows, columns);
}

template <class T, int32_t kM, int32_t kN, int32_t kWarps, int32_t kResident>
cudaError_t launchTile(const Problem& problem, const Tensors& tensors, const Plan& plan,
                       cudaStream_t stream) {
  using Shape = TileShape<T, kM, kN, kWarps>;
  const TileParams params = Tiling<Shape>::params(problem, tensors, logSplitKOf(plan.tactic));
  return launchKernel(
      tileKernel<T, kM, kN, kWarps, kResident>,
      {plan.blocks, Shape::kThreads, Tiling<Shape>::sharedBytes(params), splitKOf(plan.tactic), stream},
      params);
}

template <class T>
cudaError_t launch(const Problem& problem, const Tensors& tensors, int32_t tactic, cudaStream_t stream) {
  if (problem.batch == 0 || problem.out_height == 0 || problem.out_width == 0) return cudaSuccess;
  const Plan plan = planTactic(problem, currentDevice(), tactic);
  if (plan.blocks == 0) return cudaErrorNotSupported;
  if (tactic == kGeneric) {
    return launchKernel(genericKernel<T>,
                        {plan.blocks, Generic<T>::kThreads, Generic<T>::kSharedBytes, 1, stream}, problem,
                        tensors);
  }

  using Storage = typename T::Storage;
  Tensors packed = tensors;
  auto* workspace = static_cast<char*>(tensors.workspace);
  if (!problem.weight_ohwi) {
    const cudaError_t error =
        transpose<Storage>(tensors.weight, workspace, problem.out_channels, problem.channels,
                           problem.kernel_h * problem.kernel_w, stream);
    if (error != cudaSuccess) return error;
    packed.weight = workspace;
    workspace += weightBytes(problem);
  }
  if (problem.layout == Layout::kNCHW) {
    const cudaError_t error = transpose<Storage>(tensors.input, workspace, problem.batch, problem.channels,
                                                 problem.height * problem.width, stream);
    if (error != cudaSuccess) return error;
    packed.input = workspace;
  }
  switch (tileOf(tactic)) {
#define DCNV2_LAUNCH(number, ...) \
  case number:                    \
    return launchTile<T, __VA_ARGS__>(packedProblem(problem), packed, plan, stream);
    DCNV2_TILES(DCNV2_LAUNCH)
#undef DCNV2_LAUNCH
    default:
      return cudaErrorNotSupported;
  }
}

}  // namespace

int32_t tactics(const Problem& problem, int32_t* numbers, int32_t capacity) noexcept {
  Plan plans[kTileTactics];
  const int32_t tiles = rankTiles(problem, currentDevice(), plans);
  for (int32_t i = 0; i < std::min(tiles + 1, capacity); ++i) {
    numbers[i] = i < tiles ? plans[i].tactic : kGeneric;
  }
  return tiles + 1;
}

bool canRun(const Problem& problem, int32_t tactic) noexcept {
  return planTactic(problem, currentDevice(), tactic).blocks > 0;
}

size_t workspaceSize(const Problem& problem, int32_t tactic) noexcept {
  if (tactic == kGeneric || !tileRunsKind(problem)) return 0;
  size_t bytes = problem.weight_ohwi ? 0 : weightBytes(problem);
  if (problem.layout == Layout::kNCHW) {
    bytes += static_cast<size_t>(problem.batch) *
             static_cast<size_t>(std::min<int64_t>(imageBytes(packedProblem(problem)), INT32_MAX));
  }
  return bytes;
}

cudaError_t forward(const Problem& problem, const Tensors& tensors, int32_t tactic,
                    cudaStream_t stream) noexcept {
  switch (problem.type) {
    case DataType::kFloat:
      return launch<Float>(problem, tensors, tactic, stream);
    case DataType::kHalf:
      return launch<Half>(problem, tensors, tactic, stream);
    case DataType::kBfloat16:
      return launch<Bfloat16>(problem, tensors, tactic, stream);
    case DataType::kInt8:
      return launch<Int8>(problem, tensors, tactic, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace dcnv2
