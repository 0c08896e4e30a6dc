// The tensor-core kernel's parameters: the layer, and what the host computes of it once for all blocks.
#pragma once

#include "fast_divmod.h"
#include "tile_shape.h"

namespace dcnv2 {

// `tensors.weight` is [out_channels, kernel_h, kernel_w, channels].
struct TileParams {
  Problem problem;
  Tensors tensors;
  int32_t log_split_k;  // of the number of blocks that share a tile, each a slice of K; they form a cluster
  int32_t k_tiles;      // of all slices together
  int32_t vectors;      // of a pixel's channels, 16 bytes each
  bool multi_tap;       // a K tile spans several taps, since a pixel has less than 128 bytes
  bool multi_group;     // a K tile spans several offset groups
  FastDivmod taps, kernel_w, slots;
  FastDivmod group;        // vectors of an offset group if `multi_group`, else its K tiles at one tap
  FastDivmod tap_vectors;  // that a K tile reads at one tap
  FastDivmod tiles_m, tile_columns, tile_rows;

  // First K tile of a block of the cluster; `rank` may be one past the last.
  DCNV2_FN int32_t firstKTile(int32_t rank) const { return (k_tiles * rank) >> log_split_k; }

  // The samples, by their numbers in `Offsets`, in the sample table of a block with `count` K tiles from `begin` on:
  // one for each K tile, or all from `first` on that the K tiles read.
  struct SampleRange {
    bool per_k_tile;
    int32_t first, count;
  };
  DCNV2_FN SampleRange sampleRange(int32_t begin, int32_t count) const {
    const int32_t all = taps.divisor * problem.offset_groups;
    const int32_t last = begin + count - 1;
    if (!multi_tap && !multi_group) return {count <= all, 0, count <= all ? count : all};
    if (multi_tap && multi_group) return {false, 0, all};
    if (multi_tap) {
      const int32_t first_tap = tap_vectors.div(begin * 8);
      const int32_t last_tap = tap_vectors.div(last * 8 + 7);
      return {false, first_tap, (last_tap < taps.divisor ? last_tap + 1 : taps.divisor) - first_tap};
    }
    const int32_t end = (taps.div(last) + 1) * 8;
    const int32_t first_group = group.div(taps.div(begin) * 8);
    const int32_t last_group = group.div((end < vectors ? end : vectors) - 1);
    return {false, first_group * taps.divisor, (last_group - first_group + 1) * taps.divisor};
  }
};

// The tile that a block computes: first output channel, upper left pixel, image; and which slice of K.
struct BlockCoord {
  int32_t rank, m, x, y, image;
};

// What a layer looks like in tiles of one shape.
template <class Shape>
struct Tiling {
  static DCNV2_FN int32_t taps(const Problem& p) { return p.kernel_h * p.kernel_w; }
  // K tiles at one tap, unless `multiTap`.
  static DCNV2_FN int32_t channelTiles(const Problem& p) { return (p.channels + Shape::kK - 1) / Shape::kK; }
  static DCNV2_FN int32_t vectors(const Problem& p) { return p.channels / Shape::kVector; }
  static DCNV2_FN bool multiTap(const Problem& p) { return vectors(p) < 8; }
  static DCNV2_FN bool multiGroup(const Problem& p) {
    return p.offset_groups > 1 && p.channels / p.offset_groups % Shape::kK != 0;
  }
  static DCNV2_FN int32_t kTiles(const Problem& p) {
    return multiTap(p) ? (taps(p) * vectors(p) + 7) / 8 : channelTiles(p) * taps(p);
  }
  static DCNV2_FN int32_t tilesM(const Problem& p) { return (p.out_channels + Shape::kM - 1) / Shape::kM; }
  static DCNV2_FN int32_t tileColumns(const Problem& p) {
    return (p.out_width + Shape::kColumns - 1) / Shape::kColumns;
  }
  static DCNV2_FN int32_t tileRows(const Problem& p) {
    return (p.out_height + Shape::kRows - 1) / Shape::kRows;
  }
  static DCNV2_FN int64_t blocks(const Problem& p, int32_t split_k) {
    return static_cast<int64_t>(p.batch) * tileRows(p) * tileColumns(p) * tilesM(p) * split_k;
  }

  static TileParams params(const Problem& p, const Tensors& tensors, int32_t log_split_k) {
    TileParams a = {};
    a.problem = p;
    a.tensors = tensors;
    a.log_split_k = log_split_k;
    a.k_tiles = kTiles(p);
    a.vectors = vectors(p);
    a.multi_tap = multiTap(p);
    a.multi_group = multiGroup(p);
    a.taps = FastDivmod::of(taps(p));
    a.kernel_w = FastDivmod::of(p.kernel_w);
    a.group = FastDivmod::of((a.multi_group ? a.vectors : channelTiles(p)) / p.offset_groups);
    a.tap_vectors = FastDivmod::of(a.multi_tap ? a.vectors : 8);
    int32_t slots = 0;
    for (int32_t rank = 0; rank < 1 << log_split_k; ++rank) {
      const int32_t begin = a.firstKTile(rank);
      const int32_t count = a.sampleRange(begin, a.firstKTile(rank + 1) - begin).count;
      slots = count > slots ? count : slots;
    }
    a.slots = FastDivmod::of(slots);
    a.tiles_m = FastDivmod::of(tilesM(p));
    a.tile_columns = FastDivmod::of(tileColumns(p));
    a.tile_rows = FastDivmod::of(tileRows(p));
    return a;
  }
  static int64_t sharedBytes(const TileParams& params) {
    const int64_t mainloop =
        Shape::kStages * Shape::kStageBytes + static_cast<int64_t>(params.slots.divisor) * Shape::kSlotBytes;
    return mainloop > Shape::kAccumulatorBytes ? mainloop : Shape::kAccumulatorBytes;
  }

  static DCNV2_FN BlockCoord blockCoord(const TileParams& params, int32_t block) {
    BlockCoord coord;
    coord.rank = block & ((1 << params.log_split_k) - 1);
    block >>= params.log_split_k;
    coord.m = params.tiles_m.divmod(block) * Shape::kM;
    coord.x = params.tile_columns.divmod(block) * Shape::kColumns;
    coord.y = params.tile_rows.divmod(block) * Shape::kRows;
    coord.image = block;
    return coord;
  }

  // From one pixel of the input to the next, and from a pixel to one of its channels; in kNCHW32 both are within a
  // plane of 32 channels.
  static DCNV2_FN int32_t pixelBytes(const Problem& p) {
    return p.layout == Layout::kNCHW32 ? 32 : p.input_stride * Shape::kBytes;
  }
  static DCNV2_FN uint32_t channelBytes(const Problem& p, int32_t channel) {
    if (p.layout != Layout::kNCHW32) return static_cast<uint32_t>(channel * Shape::kBytes);
    return static_cast<uint32_t>(channel / 32 * (p.height * p.width)) * 32 +
           static_cast<uint32_t>(channel % 32);
  }
};

}  // namespace dcnv2
