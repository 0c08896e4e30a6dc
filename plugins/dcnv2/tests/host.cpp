// libdcnv2_host.so, or a part of the host test.
#include "host.h"

#include "generic.h"
#include "tactic.h"

using namespace dcnv2;

namespace {

template <class T, int32_t kOut, int32_t kPixels, int32_t kWarps>
void runTile(const Problem& problem, const Tensors& tensors, int32_t tactic, bool warpgroups) {
  using Shape = TileShape<T, kOut, kPixels, kWarps>;
  const int32_t split = splitOf(tactic);
  const TileArguments arguments = Shape::arguments(problem, tensors, tactic % 16);
  emulation::launch(Shape::blocks(problem, split), split, Shape::kThreads,
                    static_cast<size_t>(Shape::sharedBytes(problem, split)), [&] {
                      if (warpgroups) {
                        Tile<T, kOut, kPixels, kWarps, true>::run(arguments);
                      } else {
                        Tile<T, kOut, kPixels, kWarps, false>::run(arguments);
                      }
                    });
}

template <class T>
int32_t run(const Problem& problem, const Tensors& tensors, int32_t tactic, bool warpgroups) {
  if (tactic == kGeneric) {
    emulation::launch(Generic<T>::blocks(problem), 1, Generic<T>::kThreads, Generic<T>::kSharedBytes,
                      [&] { Generic<T>::run(problem, tensors); });
    return 0;
  }
  if (!tileRuns(problem) || !problem.weight_ohwi) return 1;
  switch (shapeOf(tactic)) {
#define DCNV2_RUN(number, out, pixels, warps, ...)                        \
  case number:                                                            \
    runTile<T, out, pixels, warps>(problem, tensors, tactic, warpgroups); \
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
  }
  return 1;
}
