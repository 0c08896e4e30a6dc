// Writes a tile's sums, a vector of channels of a pixel at a time.
#pragma once

#include "blend.h"
#include "sampling.h"

namespace dcnv2 {

// From `channel` on, in every pixel of an image.
template <class T>
class Output {
  static constexpr int32_t kVector = 16 / sizeof(typename T::Storage);
  // Sums of integers: scaled by channel, and written as INT8, FP16 or FP32.
  static constexpr bool kScaled = T::kType == DataType::kInt8;

  const Problem& problem_;
  const Tensors& tensors_;
  const int32_t image_, channel_, count_;

 public:
  DCNV2_DEVICE Output(const Problem& problem, const Tensors& tensors, int32_t image, int32_t channel)
      : problem_(problem),
        tensors_(tensors),
        image_(image),
        channel_(channel),
        count_(problem.out_channels - channel) {}

  DCNV2_DEVICE void write(float (&values)[kVector], int32_t y, int32_t x) const {
    const Problem& p = problem_;
    if constexpr (kScaled) scale(values);
    if (p.relu) {
#pragma unroll
      for (int32_t i = 0; i < kVector; ++i) values[i] = values[i] < 0.0f ? 0.0f : values[i];
    }
    const int64_t index = elementIndex(p.output_layout, p.output_stride, p.out_channels, p.out_height,
                                       p.out_width, image_, channel_, y, x);
    const bool whole =
        p.output_layout != Layout::kNCHW && p.output_stride % kVector == 0 && count_ >= kVector;
    if (whole && p.output_type == T::kType) {
      return store(static_cast<char*>(tensors_.output) + index * sizeof(typename T::Storage),
                   packVector<T>(values));
    }
    if constexpr (kScaled) {
      if (whole && p.output_type == DataType::kHalf) {
        char* target = static_cast<char*>(tensors_.output) + index * 2;
        store(target, halves(values));
        return store(target + 16, halves(values + 8));
      }
    }
    const int32_t step = p.output_layout == Layout::kNCHW ? p.out_height * p.out_width : 1;
#pragma unroll
    for (int32_t i = 0; i < kVector; ++i) {
      if (i < count_)
        storeAs(p.output_type, tensors_.output, index + static_cast<int64_t>(i) * step, values[i]);
    }
  }

 private:
  static DCNV2_DEVICE Vec16 halves(const float* values) {
    return {{pack<Half>(values[0], values[1]), pack<Half>(values[2], values[3]),
             pack<Half>(values[4], values[5]), pack<Half>(values[6], values[7])}};
  }

  DCNV2_DEVICE void scale(float (&values)[kVector]) const {
    const auto* scales = static_cast<const float*>(tensors_.scale) + channel_;
    const auto* bias = static_cast<const float*>(tensors_.bias) + channel_;
#pragma unroll
    for (int32_t i = 0; i < kVector; ++i) {
      if (i < count_) values[i] *= loadReadOnly(scales + i);
      if (i < count_ && tensors_.bias != nullptr) values[i] += loadReadOnly(bias + i);
    }
  }
};

}  // namespace dcnv2
