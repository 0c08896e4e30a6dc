// Which tactics can run a layer on a device, and what they would cost there.
#pragma once

#include <algorithm>

#include "generic.h"
#include "tactic.h"

namespace dcnv2 {

// The defaults are the least of all supported devices: engines are also built where there is no GPU.
struct Device {
  int32_t major = 8;
  int32_t multiprocessors = 80;
  int32_t shared_bytes = 99 << 10;
};

// `blocks` is zero where the tactic cannot run, or has nothing to do.
struct Plan {
  int32_t tactic = 0;
  int64_t blocks = 0;
  double cost = 0.0;
};

// `problem` is a `packedProblem`.
template <class T, int32_t kOut, int32_t kPixels, int32_t kWarps, int32_t kResident>
Plan planTile(const Problem& problem, const Device& device, int32_t tactic) {
  using Shape = TileShape<T, kOut, kPixels, kWarps>;
  const int32_t split = splitOf(tactic);
  const int32_t steps = Shape::steps(problem);
  // Clusters came with SM90, and each of their blocks must have steps of its own to fill its pipeline with.
  if (split > 1 && (device.major < 9 || steps < 2 * split)) return {};
  const TileArguments arguments = Shape::arguments(problem, {}, tactic % 16);
  const int64_t shared = Shape::sharedBytes(arguments);
  if (shared > device.shared_bytes) return {};
  const int64_t blocks = Shape::blocks(problem, split);
  const int64_t widest =
      std::max({Shape::outTiles(problem), Shape::columnTiles(problem), Shape::rowTiles(problem)});
  const int64_t groups = arguments.spread ? arguments.vectors : Shape::chunks(problem);
  if (blocks > INT32_MAX || !Divisor::exact(blocks, widest) || !Divisor::exact(steps, Shape::taps(problem)) ||
      !Divisor::exact(groups, groups)) {
    return {};
  }
  const int64_t resident = std::clamp<int64_t>((228 << 10) / (shared + 1024), 1, kResident);
  const int64_t waves =
      (blocks + device.multiprocessors * resident - 1) / (device.multiprocessors * resident);
  // Cycles of shared memory and cache: gathers and products of a step; filling the pipeline and writing out.
  const double step = 5.0 * kPixels + 1.5 * kOut;
  const double cost =
      static_cast<double>(waves * resident) * (steps * step / split + 8.0 * kPixels + 400.0 * (split > 1));
  return {tactic, blocks, cost + 2000.0 * static_cast<double>(waves)};
}

template <class T>
Plan planTyped(const Problem& problem, const Device& device, int32_t tactic) {
  if (tactic == kGeneric) {
    const int64_t blocks = Generic<T>::blocks(problem);
    return Offsets<Float>::fits(problem) && blocks <= INT32_MAX ? Plan{kGeneric, blocks, 0.0} : Plan{};
  }
  if (!tileRuns(problem) || tactic % 16 > kMaxLogSplit) return {};
  switch (shapeOf(tactic)) {
#define DCNV2_PLAN(number, ...) \
  case number:                  \
    return planTile<T, __VA_ARGS__>(packedProblem(problem), device, tactic);
    DCNV2_TILES(DCNV2_PLAN)
#undef DCNV2_PLAN
    default:
      return {};
  }
}

inline Plan planTactic(const Problem& problem, const Device& device, int32_t tactic) {
  switch (problem.type) {
    case DataType::kFloat:
      return planTyped<Float>(problem, device, tactic);
    case DataType::kInt8:
      return planTyped<Int8>(problem, device, tactic);
    default:
      return planTyped<Half>(problem, device, tactic);
  }
}

// Writes the tensor-core tactics that can run `problem`, best guess first; returns how many there are.
inline int32_t rankTiles(const Problem& problem, const Device& device, Plan (&plans)[kTileTactics]) {
  int32_t count = 0;
  for (int32_t log_split = 0; log_split <= kMaxLogSplit; ++log_split) {
#define DCNV2_PLAN(number, out, ...)                                             \
  if (out == 64 || out - 64 < problem.out_channels) {                            \
    plans[count] = planTactic(problem, device, tacticNumber(number, log_split)); \
    if (plans[count].blocks > 0) ++count;                                        \
  }
    DCNV2_TILES(DCNV2_PLAN)
#undef DCNV2_PLAN
  }
  std::sort(plans, plans + count, [](const Plan& a, const Plan& b) { return a.cost < b.cost; });
  return count;
}

}  // namespace dcnv2
