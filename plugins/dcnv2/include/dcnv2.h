// The operator, without TensorRT: what the plugin, the tests and the benchmarks call.
#pragma once

#include <cuda_runtime_api.h>

#include "dcnv2_problem.h"

namespace dcnv2 {

// Writes at most `capacity` tactic numbers (positive, stable between versions) for `problem`, best guess
// first; returns how many there are. The last one is the plain kernel, which is always there.
int32_t tactics(const Problem& problem, int32_t* numbers, int32_t capacity) noexcept;

// Whether `tactic` can run `problem` on this device.
bool canRun(const Problem& problem, int32_t tactic) noexcept;

// In place of a tactic: whichever needs most, at any shape up to that of the problem.
constexpr int32_t kAnyTactic = 0;

size_t workspaceSize(const Problem& problem, int32_t tactic) noexcept;

// Enqueues the layer on `stream`. A failed launch is returned, never printed, and does not stay behind as
// CUDA's last error; a tactic that cannot run `problem` is cudaErrorNotSupported.
cudaError_t forward(const Problem& problem, const Tensors& tensors, int32_t tactic,
                    cudaStream_t stream) noexcept;

}  // namespace dcnv2
