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

template <class T>
DCNV2_FN float loadOffset(const Problem& problem, const void* values, int64_t index) {
  return problem.offset_type == DataType::kFloat
             ? static_cast<const float*>(values)[index]
             : T::load(static_cast<const typename T::Storage*>(values)[index]);
}

// The sample of one output pixel and tap. Coordinates and weights are FP32 whatever the tensors are.
template <class T>
DCNV2_FN Sample tapSample(const Problem& p, const Tensors& tensors, int32_t n, int32_t offset_group,
                          int32_t tap, int32_t out_y, int32_t out_x) {
  const int32_t taps = p.kernel_h * p.kernel_w;
  const int32_t first = offset_group * taps + tap;
  const int32_t total = p.offset_groups * taps;
  const int32_t count = (p.packed_offset_mask ? 3 : 2) * total;
  const int64_t step =
      p.offset_layout == Layout::kNHWC ? 1 : static_cast<int64_t>(p.out_height) * p.out_width;
  const int64_t at = elementIndex(p.offset_layout, p.offset_stride, count, p.out_height, p.out_width, n,
                                  2 * first, out_y, out_x);
  const float y = loadOffset<T>(p, tensors.offset, at);
  const float x = loadOffset<T>(p, tensors.offset, at + step);
  float mask = 1.0f;
  if (p.packed_offset_mask) {
    mask = sigmoid(loadOffset<T>(p, tensors.offset, at + step * (2 * total - first)));
  } else if (tensors.mask != nullptr) {
    mask = loadOffset<T>(p, tensors.mask,
                         elementIndex(p.offset_layout, p.mask_stride, total, p.out_height, p.out_width, n,
                                      first, out_y, out_x));
  }
  const int32_t kernel_y = tap / p.kernel_w;
  const int32_t kernel_x = tap - kernel_y * p.kernel_w;
  return sample(static_cast<float>(out_y * p.stride_h - p.padding_h + kernel_y * p.dilation_h) + y,
                static_cast<float>(out_x * p.stride_w - p.padding_w + kernel_x * p.dilation_w) + x, mask,
                p.height, p.width);
}

}  // namespace dcnv2
