// libdcnv2_host.so, or a part of the host test.
#include "host.h"

#include "plan.h"

using namespace dcnv2;

namespace {

template <class T, int32_t kOut, int32_t kPixels, int32_t kWarps>
void runTile(const Problem& problem, const Tensors& tensors, const Plan& plan, bool warpgroups) {
  using Shape = TileShape<T, kOut, kPixels, kWarps>;
  const TileArguments arguments = Shape::arguments(problem, tensors, plan.tactic % 16);
  emulation::launch(plan.blocks, splitOf(plan.tactic), Shape::kThreads,
                    static_cast<size_t>(Shape::sharedBytes(arguments)), [&] {
                      if (warpgroups) {
                        Tile<T, kOut, kPixels, kWarps, true>::run(arguments);
                      } else {
                        Tile<T, kOut, kPixels, kWarps, false>::run(arguments);
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
  switch (shapeOf(tactic)) {
#define DCNV2_RUN(number, out, pixels, warps, ...)                      \
  case number:                                                          \
    runTile<T, out, pixels, warps>(problem, tensors, plan, warpgroups); \
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
