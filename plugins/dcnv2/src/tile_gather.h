// Gathers a K tile of samples from the image into the shared-memory tile that the tensor cores read.
//
// A warp gathers four pixels at a time. Eight lanes read one corner of a pixel: 128 bytes, a cache line.
//
//           vector   0   1   2   3   4   5   6   7     16 bytes each
//   pixel 0   lane   0   1   2   3   4   5   6   7
//   pixel 1          8   9  10  11  12  13  14  15
//   pixel 2         16  17  18  19  20  21  22  23
//   pixel 3         24  25  26  27  28  29  30  31
//   pixel 4          0   1   2  ...                    the next gather
#pragma once

#include "blend.h"
#include "tile_iterator.h"

namespace dcnv2 {

template <class T, class Shape>
class TileGather {
  using KTile = typename TileIterator<Shape>::KTile;
  static constexpr int32_t kGathers = Shape::kN / 4 / (Shape::kThreads / 32);
  static constexpr int32_t kAtOnce = kGathers < 2 ? 1 : 2;

  uint32_t right_, down_;  // bytes to the neighbouring pixels
  const char* image_;
  int32_t first_pixel_;
  int32_t targets_[2];  // of even and of odd gathers, in the tile

 public:
  static constexpr int32_t kFragments = kGathers / kAtOnce;

  // A thread's loads in flight: the corners of a vector of kAtOnce pixels, and their weights.
  struct Fragment {
    Vec16 corners[kAtOnce][4];
    CornerWeights<T> weights[kAtOnce];
  };

  DCNV2_DEVICE TileGather(const Problem& p, const Tensors& tensors, int32_t image) {
    const int32_t vector = thread() % 8;
    first_pixel_ = thread() / 32 * kGathers * 4 + thread() % 32 / 8;
    const int32_t pixel_bytes = Tiling<Shape>::pixelBytes(p);
    right_ = static_cast<uint32_t>(p.width > 1 ? pixel_bytes : 0);
    down_ = static_cast<uint32_t>(p.height > 1 ? p.width * pixel_bytes : 0);
    image_ = opaque(static_cast<const char*>(tensors.input) +
                    static_cast<int64_t>(image) * p.height * p.width * p.input_stride * Shape::kBytes);
    targets_[0] = Shape::swizzle(first_pixel_, vector);
    targets_[1] = Shape::swizzle(first_pixel_ + 4, vector);
  }

  // `slot` of the sample table; `vector` in bytes from a pixel.
  DCNV2_DEVICE void load(Fragment& fragment, const char* table, const KTile& k_tile, int32_t index) const {
    const char* slot = table + k_tile.slot * Shape::kSlotBytes;
    const char* weights = slot + Shape::kN * 4;
#pragma unroll
    for (int32_t i = 0; i < kAtOnce; ++i) {
      const int32_t pixel = first_pixel_ + 4 * (index * kAtOnce + i);
      const uint32_t offset = reinterpret_cast<const uint32_t*>(slot)[pixel];
      loadShared(fragment.weights[i], weights + pixel * Shape::kCornerWeightBytes);
      const char* top = opaque(image_ + (offset + k_tile.vector));
      const char* bottom = opaque(top + down_);
      fragment.corners[i][0] = loadGlobal(top);
      fragment.corners[i][1] = loadGlobal(top + right_);
      fragment.corners[i][2] = loadGlobal(bottom);
      fragment.corners[i][3] = loadGlobal(bottom + right_);
    }
  }

  DCNV2_DEVICE void blendInto(char* tile, const Fragment& fragment, int32_t index) const {
#pragma unroll
    for (int32_t i = 0; i < kAtOnce; ++i) {
      const int32_t gather = index * kAtOnce + i;
      const Vec16 blended = blend<T>(fragment.corners[i], fragment.weights[i]);
      char* target = tile + targets_[gather % 2] + gather / 2 * 8 * Shape::kRowBytes;
      // A sample outside the image reads any four pixels, and zero times infinity is not zero.
      if (T::kType != DataType::kInt8 && allZero(fragment.weights[i])) {
        store(target, Vec16{});
      } else {
        store(target, blended);
      }
    }
  }
};

}  // namespace dcnv2
