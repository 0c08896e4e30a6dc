// Which tactics can run a layer on a device, and what they would cost there.
#pragma once

#include <algorithm>

#include "generic.h"
#include "tile.h"

namespace dcnv2 {

// The defaults are the least of all supported devices: engines are also built where there is no GPU.
struct Device {
  int32_t major = 8;
  int32_t multiprocessors = 80;
  int32_t shared_bytes = 99 << 10;  // that one block may have
};

// `blocks` is zero where the tactic cannot run, or has nothing to do.
struct Plan {
  int32_t tactic = 0;
  int64_t blocks = 0;
  double cost = 0.0;
};

// `p` as the tensor-core kernel sees it: channels-last input and packed weights, if need be copies of them.
inline Problem packedProblem(const Problem& p) {
  Problem packed = p;
  packed.weight_ohwi = true;
  if (p.layout == Layout::kNCHW) {
    packed.layout = Layout::kNHWC;
    packed.input_stride = p.channels;
  }
  return packed;
}

inline int32_t elementBytes(const Problem& p) {
  return p.type == DataType::kFloat ? 4 : p.type == DataType::kInt8 ? 1 : 2;
}

inline int64_t imageBytes(const Problem& p) {
  return static_cast<int64_t>(p.height) * p.width * p.input_stride * elementBytes(p);
}

// Whether the tensor-core kernel computes layers of this kind, at some number of channels and some size.
inline bool tileRunsKind(const Problem& p) {
  return (p.type != DataType::kFloat || p.allow_tf32) && p.groups == 1;
}

// Whether the tensor-core kernel computes `p` at all, whatever the tile.
inline bool tileRuns(const Problem& p) {
  const int32_t vector = 16 / elementBytes(p);
  const int64_t weight_row = static_cast<int64_t>(p.channels) * p.kernel_h * p.kernel_w * elementBytes(p);
  const int64_t weight_rows = (static_cast<int64_t>(p.out_channels) + 255) / 256 * 256;  // of whole tiles
  // Up to there a float holds every position, and `sampleAxis` stays inside the image.
  constexpr int32_t kLongest = 1 << 24;
  return tileRunsKind(p) && p.height <= kLongest && p.width <= kLongest && p.channels % vector == 0 &&
         packedProblem(p).input_stride % vector == 0 && p.channels / p.offset_groups % vector == 0 &&
         imageBytes(packedProblem(p)) <= INT32_MAX && weight_row * weight_rows <= INT32_MAX &&
         Offsets<Float>::fits(p);
}

// Costs are clock cycles of a multiprocessor's L1 cache, which bounds most layers (docs/performance.md). They only
// choose the tactics that TensorRT times: for the 63 layers timed in docs/gpu, the best of the 16 cheapest tactics
// takes at most 14 % longer than the fastest of all.
namespace cost {

// CUDA C++ Programming Guide, compute capability 9.0: shared memory of a multiprocessor, what a block reserves of it.
constexpr int64_t kSharedBytes = 228 << 10;
constexpr int64_t kReservedBytes = 1024;

// At 128 bytes a cycle, the cache's width, a pixel reads four corners and writes a row of 128 bytes for each K tile.
constexpr double kGather = 5.0;
// Chosen by hand.
constexpr double kWeights = 1.5;    // of an output channel and K tile
constexpr double kEpilogue = 8.0;   // of a pixel, with its part in the sample table
constexpr double kCluster = 400.0;  // of a block: the cluster's barriers and sums
constexpr double kWave = 2000.0;    // of the blocks that run together: their start and end

}  // namespace cost

// `problem` is a `packedProblem`.
template <class T, int32_t kM, int32_t kN, int32_t kWarps, int32_t kResident>
Plan planTile(const Problem& problem, const Device& device, int32_t tactic) {
  using Shape = TileShape<T, kM, kN, kWarps>;
  using Tiling = dcnv2::Tiling<Shape>;
  const int32_t split_k = splitKOf(tactic);
  const int32_t k_tiles = Tiling::kTiles(problem);
  // Clusters came with SM90, and each of their blocks needs K tiles of its own to fill its stages with.
  if (split_k > 1 && (device.major < 9 || k_tiles < Shape::kStages * split_k)) return {};
  const TileParams params = Tiling::params(problem, {}, logSplitKOf(tactic));
  const int64_t shared_bytes = Tiling::sharedBytes(params);
  if (shared_bytes > device.shared_bytes) return {};
  const int64_t blocks = Tiling::blocks(problem, split_k);
  const int64_t widest =
      std::max({Tiling::tilesM(problem), Tiling::tileColumns(problem), Tiling::tileRows(problem)});
  const int64_t groups = params.multi_group ? params.vectors : Tiling::channelTiles(problem);
  if (blocks > INT32_MAX || !FastDivmod::exact(blocks, widest) ||
      !FastDivmod::exact(k_tiles, Tiling::taps(problem)) || !FastDivmod::exact(groups, groups)) {
    return {};
  }
  const int64_t resident =
      std::clamp<int64_t>(cost::kSharedBytes / (shared_bytes + cost::kReservedBytes), 1, kResident);
  const int64_t at_once = device.multiprocessors * resident;
  const int64_t waves = (blocks + at_once - 1) / at_once;
  const double k_tile = cost::kGather * kN + cost::kWeights * kM;
  const double block = k_tiles * k_tile / split_k + cost::kEpilogue * kN + cost::kCluster * (split_k > 1);
  return {tactic, blocks,
          static_cast<double>(waves * resident) * block + cost::kWave * static_cast<double>(waves)};
}

template <class T>
Plan planTyped(const Problem& problem, const Device& device, int32_t tactic) {
  if (tactic == kGeneric) {
    const int64_t blocks = Generic<T>::blocks(problem);
    return Offsets<Float>::fits(problem) && blocks <= INT32_MAX ? Plan{kGeneric, blocks, 0.0} : Plan{};
  }
  if (!tileRuns(problem) || logSplitKOf(tactic) > kMaxLogSplitK) return {};
  switch (tileOf(tactic)) {
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

// Writes the tensor-core tactics that can run `problem`, cheapest first; returns how many there are.
inline int32_t rankTiles(const Problem& problem, const Device& device, Plan (&plans)[kTileTactics]) {
  int32_t count = 0;
  for (int32_t log_split_k = 0; log_split_k <= kMaxLogSplitK; ++log_split_k) {
#define DCNV2_PLAN(number, m, ...)                                                 \
  if (m == 64 || m - 64 < problem.out_channels) {                                  \
    plans[count] = planTactic(problem, device, tacticNumber(number, log_split_k)); \
    if (plans[count].blocks > 0) ++count;                                          \
  }
    DCNV2_TILES(DCNV2_PLAN)
#undef DCNV2_PLAN
  }
  std::sort(plans, plans + count, [](const Plan& a, const Plan& b) { return a.cost < b.cost; });
  return count;
}

}  // namespace dcnv2
