// The operator on the host, by the kernels' own source.
#pragma once

#include "plan.h"

// What the host stands for: as Hopper.
constexpr dcnv2::Device kHostDevice{9, 132, 227 << 10};

// Nonzero if the tactic cannot run the problem. `warpgroups` takes the path of SM90 in place of that of SM80.
extern "C" int32_t dcnv2_host_forward(const dcnv2::Problem* problem, const dcnv2::Tensors* tensors,
                                      int32_t tactic, int32_t warpgroups);
