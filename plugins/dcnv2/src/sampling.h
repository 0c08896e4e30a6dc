// Bilinear sampling: where to read for a pair of coordinates, and with which weights.
#pragma once

#include "numeric.h"

namespace dcnv2 {

// Four pixels of the image, `top` and `left` the first of them: (0, 0), (0, 1), (1, 0), (1, 1). All four lie
// inside the image if it has two rows and two columns (with one, readers must not step) and no side beyond
// 2^24. A sample outside it has zero weights if its mask is finite, else NaN: mask times nothing.
struct Sample {
  int32_t top, left;
  float weights[4];
};

// One axis of a sample: the first of two neighbouring positions inside [0, size), and their weights.
struct Axis {
  int32_t first;
  float weights[2];
};

// A neighbour's weight is max(0, 1 - distance): zero by itself outside the image, and for NaN. Near a border
// the pair is shifted inwards, and the weights follow.
DCNV2_FN Axis sampleAxis(float position, int32_t size) {
  const auto last = static_cast<float>(size > 1 ? size - 2 : 0);
  const auto first = static_cast<int32_t>(fminf(fmaxf(position, 0.0f), last));
  const float distance = position - static_cast<float>(first);
  const float second = fmaxf(1.0f - fabsf(distance - 1.0f), 0.0f);
  return {first, {fmaxf(1.0f - fabsf(distance), 0.0f), size > 1 ? second : 0.0f}};
}

DCNV2_FN Sample sample(float y, float x, float mask, int32_t height, int32_t width) {
  const Axis rows = sampleAxis(y, height);
  const Axis columns = sampleAxis(x, width);
  const float upper = rows.weights[0] * mask;
  const float lower = rows.weights[1] * mask;
  return {rows.first,
          columns.first,
          {upper * columns.weights[0], upper * columns.weights[1], lower * columns.weights[0],
           lower * columns.weights[1]}};
}

DCNV2_FN float sigmoid(float value) {
#ifdef __CUDA_ARCH__
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(value * -1.44269504f));
  return __fdividef(1.0f, 1.0f + power);
#else
  return 1.0f / (1.0f + std::exp(-value));
#endif
}

// Element of a tensor [batch, count, height, width] in any layout.
DCNV2_FN int64_t elementIndex(Layout layout, int32_t stride, int32_t count, int32_t height, int32_t width,
                              int32_t n, int32_t c, int32_t y, int32_t x) {
  if (layout == Layout::kNCHW32) {
    const int64_t plane = static_cast<int64_t>(height) * width;
    return (n * plane * (stride / 32) + c / 32 * plane + y * width + x) * 32 + c % 32;
  }
  return layout == Layout::kNHWC ? ((static_cast<int64_t>(n) * height + y) * width + x) * stride + c
                                 : ((static_cast<int64_t>(n) * count + c) * height + y) * width + x;
}

// Offsets and mask of one image. The samples of a pixel are numbered offset group by offset group, tap by tap.
template <class T>
class Offsets {
  const Problem& problem_;
  const char* offset_;
  const char* mask_;
  int32_t mask_stride_;
  bool single_, nhwc_, pairs_;

  DCNV2_FN float load(const char* values, int32_t index) const {
    if (single_) return loadReadOnly(reinterpret_cast<const float*>(values) + index);
    return T::load(loadReadOnly(reinterpret_cast<const typename T::Storage*>(values) + index));
  }

 public:
  // Whether element indices within an image fit 32 bits, which is what this class computes with.
  static DCNV2_FN bool fits(const Problem& p) {
    const int64_t channels = 3 * static_cast<int64_t>(p.offset_groups) * p.kernel_h * p.kernel_w;
    const int64_t stride = p.offset_stride > p.mask_stride ? p.offset_stride : p.mask_stride;
    return (stride > channels ? stride : channels) * p.out_height * p.out_width <= INT32_MAX;
  }

  DCNV2_FN Offsets(const Problem& p, const Tensors& tensors, int32_t n)
      : problem_(p),
        mask_stride_(p.packed_offset_mask ? p.offset_stride : p.mask_stride),
        single_(p.offset_type == DataType::kFloat),
        nhwc_(p.offset_layout == Layout::kNHWC) {
    const int32_t samples = p.offset_groups * p.kernel_h * p.kernel_w;
    const int32_t plane = p.out_height * p.out_width;
    const int64_t pixels = static_cast<int64_t>(n) * plane * (single_ ? 4 : 2);
    const int32_t channels = (p.packed_offset_mask ? 3 : 2) * samples;
    offset_ = static_cast<const char*>(tensors.offset) + pixels * (nhwc_ ? p.offset_stride : channels);
    mask_ = static_cast<const char*>(tensors.mask);
    if (p.packed_offset_mask) {
      mask_ = offset_ + static_cast<int64_t>(2 * samples) * (nhwc_ ? 1 : plane) * (single_ ? 4 : 2);
    } else if (mask_ != nullptr) {
      mask_ += pixels * (nhwc_ ? p.mask_stride : samples);
    }
    pairs_ = p.packed_offset_mask && nhwc_ && !single_ && p.offset_stride % 2 == 0;
  }

  // Whether the two offsets of a sample are one word, as this project exports them: a caller then reads several samples
  // before it uses the first.
  DCNV2_FN bool inPairs() const { return pairs_; }
  struct Pair {
    uint32_t offset;
    typename T::Storage mask;
  };
  DCNV2_FN Pair read(int32_t number, int32_t pixel) const {
    const int32_t word = pixel * (problem_.offset_stride / 2) + number;
    return {loadReadOnly(reinterpret_cast<const uint32_t*>(offset_) + word),
            loadReadOnly(reinterpret_cast<const typename T::Storage*>(mask_) + (2 * word - number))};
  }
  // `y` and `x`: where the sample lies without its offset. Coordinates and weights are FP32 whatever the tensors are.
  DCNV2_FN Sample sampleAt(const Pair& pair, float y, float x) const {
    return sample(y + T::load(static_cast<typename T::Storage>(pair.offset)),
                  x + T::load(static_cast<typename T::Storage>(pair.offset >> 16)),
                  sigmoid(T::load(pair.mask)), problem_.height, problem_.width);
  }
  DCNV2_FN Sample sampleAt(int32_t number, int32_t pixel, float y, float x) const {
    const int32_t step = nhwc_ ? 1 : problem_.out_height * problem_.out_width;
    const int32_t at = nhwc_ ? pixel * problem_.offset_stride : pixel;
    float mask = 1.0f;
    if (mask_ != nullptr) mask = load(mask_, (nhwc_ ? pixel * mask_stride_ : pixel) + number * step);
    if (problem_.packed_offset_mask) mask = sigmoid(mask);
    // INT8 has no room for samples beyond the input's range.
    if (problem_.type == DataType::kInt8) mask = fminf(fmaxf(mask, 0.0f), 1.0f);
    return sample(y + load(offset_, at + 2 * number * step), x + load(offset_, at + (2 * number + 1) * step),
                  mask, problem_.height, problem_.width);
  }

  // Where a tap of an output pixel lies on one axis, without its offset.
  static DCNV2_FN float position(int32_t out, int32_t stride, int32_t padding, int32_t tap,
                                 int32_t dilation) {
    return static_cast<float>(out * stride - padding + tap * dilation);
  }
};

}  // namespace dcnv2
