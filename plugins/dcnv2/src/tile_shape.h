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
  int32_t vectors;  // of a pixel's channels, 16 bytes each
  bool narrow;      // a step reads several taps, since a pixel has less than 128 bytes
  bool spread;      // and several offset groups
  Divisor taps, kernel_w, slots;
  Divisor group;  // vectors of an offset group if `spread`, else steps at one tap
  Divisor row;    // vectors that a step reads at one tap
  Divisor out_tiles, column_tiles, row_tiles;

  // Of a block of the cluster; of the one behind the last: how many steps there are.
  DCNV2_FN int32_t firstStep(int32_t rank) const { return (steps * rank) >> log_split; }

  // Samples, by their numbers in `Offsets`, that a block keeps for `count` steps from `begin` on: those of
  // the steps, one of each, or all from `first` on that the steps read.
  struct Samples {
    bool per_step;
    int32_t first, count;
  };
  DCNV2_FN Samples samples(int32_t begin, int32_t count) const {
    const int32_t all = taps.value * problem.offset_groups;
    const int32_t last = begin + count - 1;
    if (!narrow && !spread) return {count <= all, 0, count <= all ? count : all};
    if (narrow && spread) return {false, 0, all};
    if (narrow) {
      const int32_t first_tap = row.divide(begin * 8);
      const int32_t last_tap = row.divide(last * 8 + 7);
      return {false, first_tap, (last_tap < taps.value ? last_tap + 1 : taps.value) - first_tap};
    }
    const int32_t end = (taps.divide(last) + 1) * 8;
    const int32_t first_group = group.divide(taps.divide(begin) * 8);
    const int32_t last_group = group.divide((end < vectors ? end : vectors) - 1);
    return {false, first_group * taps.value, (last_group - first_group + 1) * taps.value};
  }
};

template <class T, int32_t kOut, int32_t kTilePixels, int32_t kWarps>
struct TileShape {
  static constexpr int32_t kPixels = kTilePixels;
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
  static constexpr int32_t kWeightBytes = kBytes == 4 ? 16 : 8;
  static constexpr int32_t kSlotBytes = kPixels * (4 + kWeightBytes) + 16;

  static TileArguments arguments(const Problem& p, const Tensors& tensors, int32_t log_split) {
    TileArguments a = {};
    a.problem = p;
    a.tensors = tensors;
    a.log_split = log_split;
    a.steps = steps(p);
    a.vectors = vectors(p);
    a.narrow = narrow(p);
    a.spread = spread(p);
    a.taps = Divisor::of(taps(p));
    a.kernel_w = Divisor::of(p.kernel_w);
    a.group = Divisor::of((a.spread ? a.vectors : chunks(p)) / p.offset_groups);
    a.row = Divisor::of(a.narrow ? a.vectors : 8);
    int32_t most = 0;
    for (int32_t rank = 0; rank < 1 << log_split; ++rank) {
      const int32_t begin = a.firstStep(rank);
      const int32_t count = a.samples(begin, a.firstStep(rank + 1) - begin).count;
      most = count > most ? count : most;
    }
    a.slots = Divisor::of(most);
    a.out_tiles = Divisor::of(outTiles(p));
    a.column_tiles = Divisor::of(columnTiles(p));
    a.row_tiles = Divisor::of(rowTiles(p));
    return a;
  }
  static DCNV2_FN int32_t taps(const Problem& p) { return p.kernel_h * p.kernel_w; }
  static DCNV2_FN int32_t chunks(const Problem& p) { return (p.channels + kDepth - 1) / kDepth; }
  static DCNV2_FN int32_t vectors(const Problem& p) { return p.channels / kVector; }
  static DCNV2_FN bool narrow(const Problem& p) { return vectors(p) < 8; }
  static DCNV2_FN bool spread(const Problem& p) {
    return p.offset_groups > 1 && p.channels / p.offset_groups % kDepth != 0;
  }
  static DCNV2_FN int32_t steps(const Problem& p) {
    return narrow(p) ? (taps(p) * vectors(p) + 7) / 8 : chunks(p) * taps(p);
  }
  // From one pixel to the next, and from a pixel to one of its channels; in kNCHW32 both are within a plane.
  static DCNV2_FN int32_t pixelBytes(const Problem& p) {
    return p.layout == Layout::kNCHW32 ? 32 : p.input_stride * kBytes;
  }
  static DCNV2_FN uint32_t channelBytes(const Problem& p, int32_t channel) {
    if (p.layout != Layout::kNCHW32) return static_cast<uint32_t>(channel * kBytes);
    return static_cast<uint32_t>(channel / 32 * (p.height * p.width)) * 32 +
           static_cast<uint32_t>(channel % 32);
  }
  static DCNV2_FN int32_t outTiles(const Problem& p) { return (p.out_channels + kOut - 1) / kOut; }
  static DCNV2_FN int32_t columnTiles(const Problem& p) { return (p.out_width + kColumns - 1) / kColumns; }
  static DCNV2_FN int32_t rowTiles(const Problem& p) { return (p.out_height + kRows - 1) / kRows; }
  static DCNV2_FN int64_t blocks(const Problem& p, int32_t split) {
    return static_cast<int64_t>(p.batch) * rowTiles(p) * columnTiles(p) * outTiles(p) * split;
  }
  static int64_t sharedBytes(const TileArguments& a) {
    const int64_t loop = 2 * kStageBytes + static_cast<int64_t>(a.slots.value) * kSlotBytes;
    const int64_t sums = static_cast<int64_t>(kPixels) * kPitch * sizeof(float);
    return loop > sums ? loop : sums;
  }
};

}  // namespace dcnv2
