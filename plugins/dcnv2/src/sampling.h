// Bilinear sampling as arithmetic on one coordinate pair: where to read, and with which weights.
#pragma once

#include "numeric.h"

namespace dcnv2 {

// Four pixels of the image, `top` and `left` the first of them: (0, 0), (0, 1), (1, 0), (1, 1). All four lie
// inside the image if it has two rows and two columns (with one, readers must not step). A sample outside it
// has zero weights.
struct Sample {
  int32_t top, left;
  float weights[4];
};

// One axis of a sample: the first of two neighbouring positions inside [0, size), and their weights.
struct Axis {
  int32_t first;
  float weights[2];
};

DCNV2_FN Axis sampleAxis(float position, int32_t size) {
  const float floor = floorf(position);
  const auto low = static_cast<int32_t>(floor);
  const float upper = position - floor;
  const float lower = 1.0f - upper;
  const int32_t last = size > 1 ? size - 2 : 0;
  const int32_t first = low < 0 ? 0 : (low < last ? low : last);
  // Near a border one of the two neighbours is outside: its weight is dropped, and the other's moves to where
  // the pair was shifted.
  const bool shifted_up = low < first;
  const bool shifted_down = low > first;
  return {first,
          {shifted_up ? upper : (shifted_down ? 0.0f : lower),
           shifted_up || size < 2 ? 0.0f : (shifted_down ? lower : upper)}};
}

DCNV2_FN Sample sample(float y, float x, float mask, int32_t height, int32_t width) {
  const auto bottom = static_cast<float>(height);
  const auto right = static_cast<float>(width);
  // False for NaN, and before any conversion to an integer.
  if (!(y > -1.0f && y < bottom && x > -1.0f && x < right)) return {0, 0, {0.0f, 0.0f, 0.0f, 0.0f}};
  const Axis rows = sampleAxis(y, height);
  const Axis columns = sampleAxis(x, width);
  return {rows.first,
          columns.first,
          {rows.weights[0] * columns.weights[0] * mask, rows.weights[0] * columns.weights[1] * mask,
           rows.weights[1] * columns.weights[0] * mask, rows.weights[1] * columns.weights[1] * mask}};
}

DCNV2_FN float sigmoid(float value) {
#ifdef __CUDA_ARCH__
  return __fdividef(1.0f, 1.0f + __expf(-value));
#else
  return 1.0f / (1.0f + std::exp(-value));
#endif
}

// Element of a tensor [batch, count, height, width] in either layout.
DCNV2_FN int64_t elementIndex(Layout layout, int32_t stride, int32_t count, int32_t height, int32_t width,
                              int32_t n, int32_t c, int32_t y, int32_t x) {
  return layout == Layout::kNHWC ? ((static_cast<int64_t>(n) * height + y) * width + x) * stride + c
                                 : ((static_cast<int64_t>(n) * count + c) * height + y) * width + x;
}

// Offsets and mask of one image.
template <class T>
class Offsets {
  const Problem& problem_;
  const char* offset_;
  const char* mask_;
  int32_t total_;  // samples of a pixel
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
        total_(p.offset_groups * p.kernel_h * p.kernel_w),
        single_(p.offset_type == DataType::kFloat),
        nhwc_(p.offset_layout == Layout::kNHWC) {
    const int64_t pixels = static_cast<int64_t>(n) * p.out_height * p.out_width * (single_ ? 4 : 2);
    const int32_t channels = (p.packed_offset_mask ? 3 : 2) * total_;
    offset_ = static_cast<const char*>(tensors.offset) + pixels * (nhwc_ ? p.offset_stride : channels);
    mask_ = p.packed_offset_mask ? offset_ : static_cast<const char*>(tensors.mask);
    if (!p.packed_offset_mask && mask_ != nullptr) mask_ += pixels * (nhwc_ ? p.mask_stride : total_);
    pairs_ = nhwc_ && p.offset_stride % 2 == 0;
  }

  // What memory holds of one sample where offsets of 16 bits lie in pairs, for a caller that reads several
  // before it uses the first.
  struct Raw {
    uint32_t offset;
    typename T::Storage mask;
  };
  DCNV2_FN bool inPairs() const { return pairs_ && !single_; }

  DCNV2_FN Raw read(int32_t offset_group, int32_t tap, int32_t out_y, int32_t out_x) const {
    const Problem& p = problem_;
    const int32_t first = offset_group * p.kernel_h * p.kernel_w + tap;
    const int32_t pixel = out_y * p.out_width + out_x;
    const int32_t at = pixel * p.offset_stride;
    Raw raw = {loadReadOnly(reinterpret_cast<const uint32_t*>(offset_) + at / 2 + first), {}};
    if (mask_ != nullptr) {
      const int32_t mask_at = p.packed_offset_mask ? at + 2 * total_ : pixel * p.mask_stride;
      raw.mask = loadReadOnly(reinterpret_cast<const typename T::Storage*>(mask_) + mask_at + first);
    }
    return raw;
  }
  DCNV2_FN Sample sampleAt(const Raw& raw, int32_t kernel_y, int32_t kernel_x, int32_t out_y,
                           int32_t out_x) const {
    float mask = mask_ != nullptr ? T::load(raw.mask) : 1.0f;
    if (problem_.packed_offset_mask) mask = sigmoid(mask);
    return sampleAt(T::load(static_cast<typename T::Storage>(raw.offset & 0xffffu)),
                    T::load(static_cast<typename T::Storage>(raw.offset >> 16)), mask, kernel_y, kernel_x,
                    out_y, out_x);
  }

  // The sample of one output pixel and tap. Coordinates and weights are FP32 whatever the tensors are.
  DCNV2_FN Sample sampleAt(int32_t offset_group, int32_t tap, int32_t kernel_y, int32_t kernel_x,
                           int32_t out_y, int32_t out_x) const {
    if (inPairs()) return sampleAt(read(offset_group, tap, out_y, out_x), kernel_y, kernel_x, out_y, out_x);
    const Problem& p = problem_;
    const int32_t first = offset_group * p.kernel_h * p.kernel_w + tap;
    const int32_t pixel = out_y * p.out_width + out_x;
    const int32_t step = nhwc_ ? 1 : p.out_height * p.out_width;
    const int32_t at = nhwc_ ? pixel * p.offset_stride : pixel;
    const int32_t mask_at = nhwc_ && !p.packed_offset_mask ? pixel * p.mask_stride : at;
    const float y = load(offset_, at + 2 * first * step);
    const float x = load(offset_, at + (2 * first + 1) * step);
    float mask = 1.0f;
    if (mask_ != nullptr)
      mask = load(mask_, mask_at + (p.packed_offset_mask ? 2 * total_ + first : first) * step);
    if (p.packed_offset_mask) mask = sigmoid(mask);
    return sampleAt(y, x, mask, kernel_y, kernel_x, out_y, out_x);
  }

 private:
  DCNV2_FN Sample sampleAt(float y, float x, float mask, int32_t kernel_y, int32_t kernel_x, int32_t out_y,
                           int32_t out_x) const {
    const Problem& p = problem_;
    return sample(static_cast<float>(out_y * p.stride_h - p.padding_h + kernel_y * p.dilation_h) + y,
                  static_cast<float>(out_x * p.stride_w - p.padding_w + kernel_x * p.dilation_w) + x, mask,
                  p.height, p.width);
  }
};

}  // namespace dcnv2
