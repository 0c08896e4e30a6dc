// The K tiles of a block: which tap and channels each one holds.
#pragma once

#include "device.h"
#include "tile_params.h"

namespace dcnv2 {

// Taps run innermost, so that a block reads the same pixels again while they are cached.
template <class Shape>
class TileIterator {
  using Tiling = dcnv2::Tiling<Shape>;

  const TileParams& params_;
  const Problem& problem_;
  int32_t vector_;  // this thread's, of the eight in a row

 public:
  const int32_t first, count;
  const TileParams::SampleRange samples;

  DCNV2_DEVICE TileIterator(const TileParams& params, int32_t rank)
      : params_(params),
        problem_(params.problem),
        vector_(thread() % 8),
        first(params.firstKTile(rank)),
        count(params.firstKTile(rank + 1) - first),
        samples(params.sampleRange(first, count)) {}

  struct KTile {
    int32_t tap, channel;  // where it begins; if `multi_tap`, its number and zero
    int32_t slot;          // of this thread's sample
    uint32_t vector;       // bytes from a pixel to this thread's channels
  };
  DCNV2_DEVICE KTile begin() const {
    KTile k_tile;
    if (params_.multi_tap) {
      k_tile.tap = first;
      k_tile.channel = 0;
      setMultiTap(k_tile);
      return k_tile;
    }
    const int32_t channel_tile = params_.taps.div(first);
    k_tile.tap = first - channel_tile * params_.taps.divisor;
    setChannel(k_tile, channel_tile * Shape::kK);
    k_tile.slot = samples.per_k_tile ? 0 : k_tile.slot + k_tile.tap;
    return k_tile;
  }
  DCNV2_DEVICE void advance(KTile& k_tile) const {
    const int32_t slot = ++k_tile.slot;
    ++k_tile.tap;
    if (params_.multi_tap) return setMultiTap(k_tile);
    if (k_tile.tap < params_.taps.divisor) return;
    k_tile.tap = 0;
    setChannel(k_tile, k_tile.channel + Shape::kK);
    if (samples.per_k_tile) k_tile.slot = slot;
  }

  // Whether this thread's vector lies inside K. Weights beyond it are zero, and any finite sample does.
  DCNV2_DEVICE bool valid(const KTile& k_tile) const {
    if (params_.multi_tap) return k_tile.tap * 8 + vector_ < params_.taps.divisor * params_.vectors;
    return k_tile.channel + vector_ * Shape::kVector < problem_.channels;
  }
  // Bytes to the K tile in the weights of an output channel.
  DCNV2_DEVICE uint32_t weightBytes(const KTile& k_tile) const {
    if (params_.multi_tap) return static_cast<uint32_t>(k_tile.tap) * Shape::kRowBytes;
    return static_cast<uint32_t>(k_tile.tap * problem_.channels + k_tile.channel) * Shape::kBytes;
  }
  DCNV2_DEVICE int32_t offsetGroup(int32_t channel_tile) const { return params_.group.div(channel_tile); }

 private:
  // The slot becomes the first of the channel's offset group.
  DCNV2_DEVICE void setChannel(KTile& k_tile, int32_t channel) const {
    k_tile.channel = channel;
    const int32_t vector = valid(k_tile) ? vector_ : 0;
    const int32_t group = params_.multi_group ? params_.group.div(channel / Shape::kVector + vector)
                                              : offsetGroup(channel / Shape::kK);
    k_tile.slot = group * params_.taps.divisor - samples.first;
    k_tile.vector = Tiling::channelBytes(problem_, channel + vector * Shape::kVector);
  }
  DCNV2_DEVICE void setMultiTap(KTile& k_tile) const {
    const int32_t last = params_.taps.divisor * params_.vectors - 1;
    const int32_t number = valid(k_tile) ? k_tile.tap * 8 + vector_ : last;
    const int32_t tap = params_.tap_vectors.div(number);
    const int32_t vector = number - tap * params_.tap_vectors.divisor;
    const int32_t group = params_.multi_group ? params_.group.div(vector) : 0;
    k_tile.slot = group * params_.taps.divisor + tap - samples.first;
    k_tile.vector = Tiling::channelBytes(problem_, vector * Shape::kVector);
  }
};

}  // namespace dcnv2
