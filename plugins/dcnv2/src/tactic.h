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
constexpr int32_t kMaxLogSplit = 3;  // as large as a cluster may be everywhere

#define DCNV2_COUNT(...) +1
constexpr int32_t kTileTactics = (DCNV2_TILES(DCNV2_COUNT)) * (kMaxLogSplit + 1);
#undef DCNV2_COUNT

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

inline int32_t elementBytes(DataType type) {
  return type == DataType::kFloat ? 4 : type == DataType::kInt8 ? 1 : 2;
}
inline int32_t elementBytes(const Problem& p) { return elementBytes(p.type); }

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
  // Up to there a float holds every position; `sampleAxis` stays inside the image.
  constexpr int32_t kLongest = 1 << 24;
  return tileRunsKind(p) && p.height <= kLongest && p.width <= kLongest && p.channels % vector == 0 &&
         packedProblem(p).input_stride % vector == 0 && p.channels / p.offset_groups % vector == 0 &&
         imageBytes(packedProblem(p)) <= INT32_MAX && weight_row * weight_rows <= INT32_MAX &&
         Offsets<Float>::fits(p);
}

}  // namespace dcnv2
