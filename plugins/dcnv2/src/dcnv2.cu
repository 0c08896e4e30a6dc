// Chooses and launches the kernels.
#include <algorithm>

#include "dcnv2.h"
#include "generic.h"
#include "repack.h"
#include "tactic.h"

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

template <class T, int32_t kOut, int32_t kPixels, int32_t kWarps, int32_t kResident>
__global__ void __launch_bounds__(kWarps * 32, kResident)
    tileKernel(const __grid_constant__ TileArguments arguments) {
  Tile<T, kOut, kPixels, kWarps, DCNV2_WARPGROUPS>::run(arguments);
}

struct Device {
  int32_t major = 8;
  int32_t multiprocessors = 80;
  int32_t shared_bytes = 99 << 10;  // the least of all supported devices

  // Engines are also built where there is no GPU.
  Device() {
    int device;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
        cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess ||
        cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) !=
            cudaSuccess) {
      cudaGetLastError();
    }
  }
};

// What a tile shape would cost; `blocks` is zero where it cannot run.
struct Plan {
  int32_t tactic = 0;
  int64_t blocks = 0;
  double cost = 0.0;
};

template <class T, int32_t kOut, int32_t kPixels, int32_t kWarps, int32_t kResident>
Plan planTile(const Problem& problem, const Device& device, int32_t shape, int32_t log_split) {
  using Shape = TileShape<T, kOut, kPixels, kWarps>;
  const int32_t split = 1 << log_split;
  const int64_t shared = Shape::sharedBytes(problem, split);
  const int32_t steps = Shape::steps(problem);
  if (shared > device.shared_bytes || (split > 1 && (device.major < 9 || steps < 2 * split))) return {};
  const int64_t blocks = Shape::blocks(problem, split);
  const int64_t widest =
      std::max({Shape::outTiles(problem), Shape::columnTiles(problem), Shape::rowTiles(problem)});
  if (blocks * widest > int64_t{UINT32_MAX}) return {};  // where Divisor is exact
  const int64_t resident = std::clamp<int64_t>((228 << 10) / (shared + 1024), 1, kResident);
  const int64_t waves =
      (blocks + device.multiprocessors * resident - 1) / (device.multiprocessors * resident);
  // Cycles of shared memory and cache: gathers and products of a step; filling the pipeline and writing out.
  const double step = 5.0 * kPixels + 1.5 * kOut;
  const double cost = static_cast<double>(waves * resident) *
                      (steps * step / split + 8.0 * kPixels + 400.0 * (log_split > 0));
  return {tacticNumber(shape, log_split), blocks, cost + 2000.0 * static_cast<double>(waves)};
}

template <class T>
int32_t rankTiles(const Problem& problem, const Device& device, Plan* plans) {
  int32_t count = 0;
  for (int32_t log_split = 0; log_split <= kMaxLogSplit; ++log_split) {
#define DCNV2_PLAN(number, out, ...)                                                  \
  if (out == 64 || out - 64 < problem.out_channels) {                                 \
    plans[count] = planTile<T, out, __VA_ARGS__>(problem, device, number, log_split); \
    if (plans[count].blocks > 0) ++count;                                             \
  }
    DCNV2_TILES(DCNV2_PLAN)
#undef DCNV2_PLAN
  }
  std::sort(plans, plans + count, [](const Plan& a, const Plan& b) { return a.cost < b.cost; });
  return count;
}

size_t weightBytes(const Problem& p) {
  const size_t elements = static_cast<size_t>(p.out_channels) * p.channels * p.kernel_h * p.kernel_w;
  return (elements * (p.type == DataType::kFloat ? 4 : 2) + kAlignment - 1) / kAlignment * kAlignment;
}

template <class Storage>
cudaError_t transpose(const void* from, void* to, int32_t batch, int32_t rows, int32_t columns,
                      cudaStream_t stream) {
  const int64_t blocks = Transpose<Storage>::blocks(batch, rows, columns);
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  transposeKernel<Storage><<<static_cast<unsigned>(blocks), Transpose<Storage>::kThreads,
                             Transpose<Storage>::kSharedBytes, stream>>>(from, to, rows, columns);
  return cudaGetLastError();
}

template <class T>
cudaError_t launchGeneric(const Problem& problem, const Tensors& tensors, cudaStream_t stream) {
  const int64_t blocks = Generic<T>::blocks(problem);
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  genericKernel<T><<<static_cast<unsigned>(blocks), Generic<T>::kThreads, Generic<T>::kSharedBytes, stream>>>(
      problem, tensors);
  return cudaGetLastError();
}

template <class T, int32_t kOut, int32_t kPixels, int32_t kWarps, int32_t kResident>
cudaError_t launchTile(const Problem& problem, const Tensors& tensors, int32_t tactic, cudaStream_t stream) {
  using Shape = TileShape<T, kOut, kPixels, kWarps>;
  auto* kernel = tileKernel<T, kOut, kPixels, kWarps, kResident>;
  const int32_t split = splitOf(tactic);
  const int64_t blocks = Shape::blocks(problem, split);
  const int64_t shared = Shape::sharedBytes(problem, split);
  if (blocks > INT32_MAX || shared > INT32_MAX) return cudaErrorInvalidConfiguration;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(split), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = {static_cast<unsigned>(blocks), 1, 1};
  config.blockDim = {Shape::kThreads, 1, 1};
  config.dynamicSmemBytes = static_cast<size_t>(shared);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = split > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, Shape::arguments(problem, tensors, tactic % 16));
}

template <class T>
cudaError_t launch(const Problem& problem, const Tensors& tensors, int32_t tactic, cudaStream_t stream) {
  if (problem.batch == 0 || problem.out_height == 0 || problem.out_width == 0) return cudaSuccess;
  if (!Offsets<T>::fits(problem)) return cudaErrorInvalidConfiguration;
  if (tactic == kGeneric) return launchGeneric<T>(problem, tensors, stream);
  if (!tileRuns(problem)) return cudaErrorNotSupported;

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
  switch (shapeOf(tactic)) {
#define DCNV2_LAUNCH(number, ...) \
  case number:                    \
    return launchTile<T, __VA_ARGS__>(packedProblem(problem), packed, tactic, stream);
    DCNV2_TILES(DCNV2_LAUNCH)
#undef DCNV2_LAUNCH
    default:
      return cudaErrorNotSupported;
  }
}

}  // namespace

int32_t tactics(const Problem& problem, int32_t* numbers, int32_t capacity) noexcept {
  Plan plans[16 * (kMaxLogSplit + 1)];
  int32_t count = 0;
  if (tileRuns(problem)) {
    const Problem packed = packedProblem(problem);
    const Device device;
    count = problem.type == DataType::kFloat ? rankTiles<Float>(packed, device, plans)
                                             : rankTiles<Half>(packed, device, plans);
  }
  plans[count++].tactic = kGeneric;
  for (int32_t i = 0; i < std::min(count, capacity); ++i) numbers[i] = plans[i].tactic;
  return count;
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
  }
  return cudaErrorInvalidValue;
}

}  // namespace dcnv2
