// libdcnv2_host.so, or a part of the host test.
#include "host.h"

#include "plan.h"

using namespace dcnv2;

namespace {

template <class T, int32_t kM, int32_t kN, int32_t kWarps>
void runTile(const Problem& problem, const Tensors& tensors, const Plan& plan, bool warpgroups) {
  using Shape = TileShape<T, kM, kN, kWarps>;
  const TileParams params = Tiling<Shape>::params(problem, tensors, logSplitKOf(plan.tactic));
  emulation::launch(plan.blocks, splitKOf(plan.tactic), Shape::kThreads,
                    static_cast<size_t>(Tiling<Shape>::sharedBytes(params)), [&] {
                      if (warpgroups) {
                        Tile<T, kM, kN, kWarps, true>::run(params);
                      } else {
                        Tile<T, kM, kN, kWarps, false>::run(params);
                      }
                    });
}

template <class T>
int32_t run(const Problem& problem, const Tensors& tensors, int32_t tactic, bool warpgroups) {
  if (problem.batch == 0) return 0;
  const Plan plan = planTactic(problem, kHostDevice, tactic);
  if (plan.blocks == 0) return 1;
  if (tactic == kGeneric) {
    emulation::launch(plan.blocks, 1, Generic<T>::kThreads, Generic<T>::kSharedBytes,
                      [&] { Generic<T>::run(problem, tensors); });
    return 0;
  }
  if (problem.layout == Layout::kNCHW || !problem.weight_ohwi) return 1;
  switch (tileOf(tactic)) {
#define DCNV2_RUN(number, m, n, warps, ...)                      \
  case number:                                                   \
    runTile<T, m, n, warps>(problem, tensors, plan, warpgroups); \
    return 0;
    DCNV2_TILES(DCNV2_RUN)
#undef DCNV2_RUN
    default:
      return 1;
  }
}

}  // namespace

extern "C" int32_t dcnv2_host_forward(const Problem* problem, const Tensors* tensors, int32_t tactic,
                                      int32_t warpgroups) {
  switch (problem->type) {
    case DataType::kFloat:
      return run<Float>(*problem, *tensors, tactic, warpgroups != 0);
    case DataType::kHalf:
      return run<Half>(*problem, *tensors, tactic, warpgroups != 0);
    case DataType::kBfloat16:
      return run<Bfloat16>(*problem, *tensors, tactic, warpgroups != 0);
    case DataType::kInt8:
      return run<Int8>(*problem, *tensors, tactic, warpgroups != 0);
  }
  return 1;
}
