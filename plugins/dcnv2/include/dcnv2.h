// The operator, without TensorRT: what the plugin, the tests and the benchmarks call.
#pragma once

#include <cuda_runtime_api.h>

#include "dcnv2_problem.h"

namespace dcnv2 {

// Writes at most `capacity` tactic numbers (positive, stable between versions) that can run `problem`, best
// guess first; returns how many there are. There is always at least one.
int32_t tactics(const Problem& problem, int32_t* numbers, int32_t capacity) noexcept;

// In place of a tactic: whichever needs most, at any shape up to that of the problem.
constexpr int32_t kAnyTactic = 0;

size_t workspaceSize(const Problem& problem, int32_t tactic) noexcept;

// Enqueues the layer on `stream`. A failed launch is returned, never printed; a tactic that cannot run
// `problem` is cudaErrorNotSupported.
cudaError_t forward(const Problem& problem, const Tensors& tensors, int32_t tactic,
                    cudaStream_t stream) noexcept;

}  // namespace dcnv2
