// The sample table in a block's shared memory: where each sample lies in the image, and the weights of its corners.
#pragma once

#include "sampling.h"
#include "tile_iterator.h"

namespace dcnv2 {

template <class T, class Shape>
class SampleTable {
  using Coordinates = Offsets<typename T::Coordinate>;
  static constexpr int32_t kN = Shape::kN;

  const TileParams& params_;
  const Problem& problem_;
  const BlockCoord& coord_;
  const TileIterator<Shape>& iterator_;
  char* table_;

 public:
  DCNV2_DEVICE SampleTable(const TileParams& params, const BlockCoord& coord,
                           const TileIterator<Shape>& iterator, char* table)
      : params_(params), problem_(params.problem), coord_(coord), iterator_(iterator), table_(table) {}

  DCNV2_DEVICE void fill() const {
    const Coordinates offsets(problem_, params_.tensors, coord_.image);
    const int32_t count = params_.slots.divisor * kN;
    if constexpr (Shape::kBytes < 4) {
      if (offsets.inPairs()) return fillPairs(offsets, count);
    }
    const bool nhwc = problem_.offset_layout == Layout::kNHWC;
#pragma unroll 2
    for (int32_t i = thread(); i < count; i += Shape::kThreads) {
      const Entry entry = nhwc ? entryAt<Layout::kNHWC>(i) : entryAt<Layout::kNCHW>(i);
      Sample sample = {};
      if (entry.inside) sample = offsets.sampleAt(entry.number, entry.out_pixel, entry.y, entry.x);
      write(entry, sample);
    }
  }

 private:
  struct Entry {
    uint32_t slot, pixel;       // of the tile
    int32_t number, out_pixel;  // of its offsets
    float y, x;                 // where it lies without its offset
    bool inside;
  };
  // Neighbouring threads take neighbours in the memory of the offsets: of a pixel, or of a row.
  template <Layout kLayout>
  DCNV2_DEVICE Entry entryAt(int32_t index) const {
    const Problem& p = problem_;
    Entry entry;
    int32_t slot = index;
    if (kLayout == Layout::kNHWC) {
      entry.pixel = static_cast<uint32_t>(params_.slots.div(index));
      slot -= static_cast<int32_t>(entry.pixel) * params_.slots.divisor;
    } else {
      entry.pixel = static_cast<uint32_t>(index) % kN;
      slot = static_cast<int32_t>(static_cast<uint32_t>(index) / kN);
    }
    entry.slot = static_cast<uint32_t>(slot);
    const int32_t y = coord_.y + static_cast<int32_t>(entry.pixel / Shape::kColumns);
    const int32_t x = coord_.x + static_cast<int32_t>(entry.pixel % Shape::kColumns);
    entry.inside = y < p.out_height && x < p.out_width && slot < iterator_.samples.count;
    entry.out_pixel = y * p.out_width + x;
    int32_t group = iterator_.samples.per_k_tile ? iterator_.first + slot : iterator_.samples.first + slot;
    const int32_t quotient = params_.taps.div(group);
    const int32_t tap = group - quotient * params_.taps.divisor;
    group = iterator_.samples.per_k_tile ? iterator_.offsetGroup(quotient) : quotient;
    entry.number = group * params_.taps.divisor + tap;
    const int32_t kernel_y = params_.kernel_w.div(tap);
    const int32_t kernel_x = tap - kernel_y * p.kernel_w;
    entry.y = Coordinates::position(y, p.stride_h, p.padding_h, kernel_y, p.dilation_h);
    entry.x = Coordinates::position(x, p.stride_w, p.padding_w, kernel_x, p.dilation_w);
    return entry;
  }

  DCNV2_DEVICE void fillPairs(const Coordinates& offsets, int32_t count) const {
    // All loads before their first use; as many as a thread has for a 3x3 kernel in the usual tile.
    constexpr int32_t kAhead = 5;
#pragma unroll 1
    for (int32_t first = thread(); first < count; first += kAhead * Shape::kThreads) {
      Entry entries[kAhead];
      typename Coordinates::Pair pairs[kAhead];
#pragma unroll
      for (int32_t i = 0; i < kAhead; ++i) {
        entries[i] = entryAt<Layout::kNHWC>(first + i * Shape::kThreads);
        pairs[i] = {};
        if (entries[i].inside && first + i * Shape::kThreads < count) {
          pairs[i] = offsets.read(entries[i].number, entries[i].out_pixel);
        }
      }
#pragma unroll
      for (int32_t i = 0; i < kAhead; ++i) {
        if (first + i * Shape::kThreads >= count) break;
        write(entries[i], offsets.sampleAt(pairs[i], entries[i].y, entries[i].x));
      }
    }
  }

  DCNV2_DEVICE void write(const Entry& entry, const Sample& sample) const {
    char* slot = table_ + entry.slot * Shape::kSlotBytes;
    char* weights = slot + kN * 4 + entry.pixel * Shape::kCornerWeightBytes;
    reinterpret_cast<uint32_t*>(slot)[entry.pixel] =
        static_cast<uint32_t>(sample.top * problem_.width + sample.left) *
        Tiling<Shape>::pixelBytes(problem_);
    if constexpr (Shape::kCornerWeightBytes == 8) {
      store(weights, Vec8{{pack<T>(sample.weights[0], sample.weights[1]),
                           pack<T>(sample.weights[2], sample.weights[3])}});
    } else {
      store(weights, Vec16{{bitsOf(sample.weights[0]), bitsOf(sample.weights[1]), bitsOf(sample.weights[2]),
                            bitsOf(sample.weights[3])}});
    }
  }
};

}  // namespace dcnv2
