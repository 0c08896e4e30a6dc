// The sizes of the tensor-core kernel, for the host that launches it and for the kernel itself.
#pragma once

#include "numeric.h"

namespace dcnv2 {

// `tensors.weight` is [out_channels, kernel_h, kernel_w, channels].
struct TileArguments {
  Problem problem;
  Tensors tensors;
  int32_t
      log_split;  // of the number of blocks that share a tile, each a part of the depth; they form a cluster
  int32_t steps;
  Divisor taps, kernel_w, slots, group_chunks, out_tiles, column_tiles, row_tiles;
};

template <class T, int32_t kOut, int32_t kPixels, int32_t kWarps>
struct TileShape {
  static constexpr int32_t kThreads = kWarps * 32;
  static constexpr int32_t kBytes = sizeof(typename T::Storage);
  static constexpr int32_t kVector = 16 / kBytes;
  static constexpr int32_t kRowBytes = 128;
  static constexpr int32_t kDepth = kRowBytes / kBytes;  // channels of one step, at one tap
  static constexpr int32_t kColumns = kPixels >= 128 ? 16 : 8;
  static constexpr int32_t kRows = kPixels / kColumns;
  static constexpr int32_t kStageBytes = (kPixels + kOut) * kRowBytes;
  static constexpr int32_t kPitch = kOut + 4;  // of the FP32 sums: pixels two apart fall into different banks
  // The samples of a tap: for each pixel the offset in bytes from the image to the first corner, then four
  // weights. One vector more than that, so that taps fall into different banks.
  static constexpr int32_t kWeightBytes = 4 * kBytes;
  static constexpr int32_t kSlotBytes = kPixels * (4 + kWeightBytes) + 16;

  static TileArguments arguments(const Problem& p, const Tensors& tensors, int32_t log_split) {
    return {p,
            tensors,
            log_split,
            steps(p),
            Divisor::of(taps(p)),
            Divisor::of(p.kernel_w),
            Divisor::of(slots(p, 1 << log_split)),
            Divisor::of(chunks(p) / p.offset_groups),
            Divisor::of(outTiles(p)),
            Divisor::of(columnTiles(p)),
            Divisor::of(rowTiles(p))};
  }
  static DCNV2_FN int32_t taps(const Problem& p) { return p.kernel_h * p.kernel_w; }
  static DCNV2_FN int32_t chunks(const Problem& p) { return (p.channels + kDepth - 1) / kDepth; }
  static DCNV2_FN int32_t steps(const Problem& p) { return chunks(p) * taps(p); }
  static DCNV2_FN int32_t outTiles(const Problem& p) { return (p.out_channels + kOut - 1) / kOut; }
  static DCNV2_FN int32_t columnTiles(const Problem& p) { return (p.out_width + kColumns - 1) / kColumns; }
  static DCNV2_FN int32_t rowTiles(const Problem& p) { return (p.out_height + kRows - 1) / kRows; }
  static DCNV2_FN int64_t blocks(const Problem& p, int32_t split) {
    return static_cast<int64_t>(p.batch) * rowTiles(p) * columnTiles(p) * outTiles(p) * split;
  }
  // Sampling positions that a block keeps: one per step, or one per tap where it meets a tap again.
  static DCNV2_FN int32_t slots(const Problem& p, int32_t split) {
    const int32_t own = (steps(p) + split - 1) / split;
    const int32_t all = taps(p) * p.offset_groups;
    return own < all ? own : all;
  }
  static DCNV2_FN int64_t sharedBytes(const Problem& p, int32_t split) {
    const int64_t loop = 2 * kStageBytes + static_cast<int64_t>(slots(p, split)) * kSlotBytes;
    const int64_t sums = static_cast<int64_t>(kPixels) * kPitch * sizeof(float);
    return loop > sums ? loop : sums;
  }
};

}  // namespace dcnv2
