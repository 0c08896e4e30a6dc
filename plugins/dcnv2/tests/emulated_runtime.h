// As much of CUDA's runtime as dcnv2.cu calls, for that file as C++: launches run in the emulation.
#pragma once

#include <cuda_runtime_api.h>

#include "device.h"

// The compiler's, not the headers'.
#define __launch_bounds__(...)

namespace dcnv2::emulation {

// What every launch returns in place of running, to see how failures are handled.
inline cudaError_t launch_error = cudaSuccess;

}  // namespace dcnv2::emulation

template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*)(Parameters...), cudaFuncAttribute, int) {
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  if (dcnv2::emulation::launch_error != cudaSuccess) return dcnv2::emulation::launch_error;
  const auto cluster = config->numAttrs > 0 ? static_cast<int32_t>(config->attrs[0].val.clusterDim.x) : 1;
  dcnv2::emulation::launch(config->gridDim.x, cluster, static_cast<int32_t>(config->blockDim.x),
                           config->dynamicSmemBytes, [&] { kernel(arguments...); });
  return cudaSuccess;
}
