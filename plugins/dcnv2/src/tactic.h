// The tile shapes that exist, and the numbers by which TensorRT remembers them.
#pragma once

#include "tile.h"

namespace dcnv2 {

constexpr int32_t kGeneric = 1;

// X(number, output channels, pixels, warps, blocks per multiprocessor the registers must leave room for).
// Numbers are never used again for another shape: plans and timing caches hold them.
#define DCNV2_TILES(X)  \
  X(1, 64, 128, 8, 2)   \
  X(2, 64, 64, 4, 3)    \
  X(3, 128, 128, 8, 2)  \
  X(4, 128, 64, 8, 2)   \
  X(5, 256, 32, 8, 2)   \
  X(6, 64, 32, 4, 4)    \
  X(7, 128, 256, 16, 1) \
  X(8, 256, 128, 16, 1)

// A tactic is a tile shape and the number of blocks that split its depth: 16 * shape + log2(split).
constexpr int32_t tacticNumber(int32_t shape, int32_t log_split) { return 16 * shape + log_split; }
constexpr int32_t shapeOf(int32_t tactic) { return tactic / 16; }
constexpr int32_t splitOf(int32_t tactic) { return 1 << tactic % 16; }
constexpr int32_t kMaxLogSplit = 3;

// `p` as the tensor-core kernel sees it: channels-last input and packed weights, if need be copies of them.
inline Problem packedProblem(const Problem& p) {
  Problem packed = p;
  packed.weight_ohwi = true;
  if (p.layout == Layout::kNCHW) packed.input_stride = p.channels;
  return packed;
}

inline int64_t imageBytes(const Problem& p) {
  return static_cast<int64_t>(p.height) * p.width * p.input_stride * (p.type == DataType::kFloat ? 4 : 2);
}

// Whether the tensor-core kernel computes layers of this kind, unless they are too large for its indices.
inline bool tileRunsKind(const Problem& p) {
  const bool single = p.type == DataType::kFloat;
  const int32_t vector = single ? 4 : 8;
  const int32_t stride = packedProblem(p).input_stride;
  return (!single || p.allow_tf32) && p.groups == 1 && p.channels % vector == 0 && stride % vector == 0 &&
         (p.offset_groups == 1 || p.channels / p.offset_groups % (8 * vector) == 0);
}

// Whether the tensor-core kernel computes `p` at all, whatever the tile.
inline bool tileRuns(const Problem& p) {
  return tileRunsKind(p) && imageBytes(packedProblem(p)) <= INT32_MAX && Offsets<Float>::fits(p);
}

}  // namespace dcnv2
