// The samples that a block keeps in shared memory: where each one lies, and the weights of its corners.
#pragma once

#include "sampling.h"
#include "tile_depth.h"

namespace dcnv2 {

// One tile's place: which of its cluster's parts of the depth a block computes, and of which tile.
struct TilePlace {
  int32_t rank, out_first, x, y, image;
};

// `kept` is where they are kept: slot by slot, kSlotBytes each.
template <class T, class Shape>
class TileSamples {
  using Coordinates = Offsets<typename T::Coordinate>;
  static constexpr int32_t kPixels = Shape::kPixels;

  const TileArguments& arguments_;
  const Problem& problem_;
  const TilePlace& place_;
  const TileDepth<Shape>& depth_;
  char* kept_;

  // A sample that this thread prepares: where it is kept, and where it lies without its offset.
  struct Item {
    uint32_t slot, pixel;
    int32_t number, out_pixel;  // of its offsets
    float y, x;
    bool inside;
  };
  // Threads take neighbours in the order in which the offsets lie in memory: of a pixel, or of a row.
  template <Layout kLayout>
  DCNV2_DEVICE Item itemAt(int32_t index) const {
    const Problem& p = problem_;
    Item item;
    int32_t slot = index;
    if (kLayout == Layout::kNHWC) {
      item.pixel = static_cast<uint32_t>(arguments_.slots.divide(index));
      slot -= static_cast<int32_t>(item.pixel) * arguments_.slots.value;
    } else {
      item.pixel = static_cast<uint32_t>(index) % kPixels;
      slot = static_cast<int32_t>(static_cast<uint32_t>(index) / kPixels);
    }
    item.slot = static_cast<uint32_t>(slot);
    const int32_t y = place_.y + static_cast<int32_t>(item.pixel / Shape::kColumns);
    const int32_t x = place_.x + static_cast<int32_t>(item.pixel % Shape::kColumns);
    item.inside = y < p.out_height && x < p.out_width && slot < depth_.samples.count;
    item.out_pixel = y * p.out_width + x;
    int32_t group = depth_.samples.per_step ? depth_.begin + slot : depth_.samples.first + slot;
    const int32_t quotient = arguments_.taps.divide(group);
    const int32_t tap = group - quotient * arguments_.taps.value;
    group = depth_.samples.per_step ? depth_.offsetGroup(quotient) : quotient;
    item.number = group * arguments_.taps.value + tap;
    const int32_t kernel_y = arguments_.kernel_w.divide(tap);
    const int32_t kernel_x = tap - kernel_y * p.kernel_w;
    item.y = Coordinates::position(y, p.stride_h, p.padding_h, kernel_y, p.dilation_h);
    item.x = Coordinates::position(x, p.stride_w, p.padding_w, kernel_x, p.dilation_w);
    return item;
  }

  DCNV2_DEVICE void preparePairs(const Coordinates& offsets, int32_t count) const {
    // As many as a thread has of a 3x3 kernel in the usual tile: read all, then use them.
    constexpr int32_t kAhead = 5;
#pragma unroll 1
    for (int32_t first = thread(); first < count; first += kAhead * Shape::kThreads) {
      Item items[kAhead];
      typename Coordinates::Pair pairs[kAhead];
#pragma unroll
      for (int32_t i = 0; i < kAhead; ++i) {
        items[i] = itemAt<Layout::kNHWC>(first + i * Shape::kThreads);
        pairs[i] = {};
        if (items[i].inside && first + i * Shape::kThreads < count) {
          pairs[i] = offsets.read(items[i].number, items[i].out_pixel);
        }
      }
#pragma unroll
      for (int32_t i = 0; i < kAhead; ++i) {
        if (first + i * Shape::kThreads >= count) break;
        keep(items[i], offsets.sampleAt(pairs[i], items[i].y, items[i].x));
      }
    }
  }

  DCNV2_DEVICE void keep(const Item& item, const Sample& at) const {
    char* slot = kept_ + item.slot * Shape::kSlotBytes;
    char* target = slot + kPixels * 4 + item.pixel * Shape::kWeightBytes;
    reinterpret_cast<uint32_t*>(slot)[item.pixel] =
        static_cast<uint32_t>(at.top * problem_.width + at.left) * Shape::pixelBytes(problem_);
    if constexpr (Shape::kWeightBytes == 8) {
      store(target, Vec8{{pack<T>(at.weights[0], at.weights[1]), pack<T>(at.weights[2], at.weights[3])}});
    } else {
      store(target, Vec16{{bitsOf(at.weights[0]), bitsOf(at.weights[1]), bitsOf(at.weights[2]),
                           bitsOf(at.weights[3])}});
    }
  }

 public:
  DCNV2_DEVICE TileSamples(const TileArguments& arguments, const TilePlace& place,
                           const TileDepth<Shape>& depth, char* kept)
      : arguments_(arguments), problem_(arguments.problem), place_(place), depth_(depth), kept_(kept) {}

  DCNV2_DEVICE void prepare() const {
    const Coordinates offsets(problem_, arguments_.tensors, place_.image);
    const int32_t count = arguments_.slots.value * kPixels;
    if constexpr (Shape::kBytes < 4) {
      if (offsets.inPairs()) return preparePairs(offsets, count);
    }
    const bool nhwc = problem_.offset_layout == Layout::kNHWC;
#pragma unroll 2
    for (int32_t i = thread(); i < count; i += Shape::kThreads) {
      const Item item = nhwc ? itemAt<Layout::kNHWC>(i) : itemAt<Layout::kNCHW>(i);
      Sample at = {};
      if (item.inside) at = offsets.sampleAt(item.number, item.out_pixel, item.y, item.x);
      keep(item, at);
    }
  }
};

}  // namespace dcnv2
