// The epilogue: adds the accumulators of a cluster's blocks, scales, applies ReLU, and writes the output.
#pragma once

#include "blend.h"
#include "sampling.h"
#include "tile_params.h"

namespace dcnv2 {

template <class T>
DCNV2_DEVICE Vec16 packVector(const float (&values)[8]) {
  return {{pack<T>(values[0], values[1]), pack<T>(values[2], values[3]), pack<T>(values[4], values[5]),
           pack<T>(values[6], values[7])}};
}
template <class T>
DCNV2_DEVICE Vec16 packVector(const float (&values)[4]) {
  return {{bitsOf(values[0]), bitsOf(values[1]), bitsOf(values[2]), bitsOf(values[3])}};
}

template <class T>
DCNV2_DEVICE Vec16 packVector(const float (&values)[16]) {
  Vec16 packed = {};
#pragma unroll
  for (int32_t i = 0; i < 16; ++i) {
    packed.words[i / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(T::store(values[i]))) << i % 4 * 8;
  }
  return packed;
}

// Writes the output channels from `channel` on of any pixel, a vector at a time.
template <class T>
class OutputOp {
  static constexpr int32_t kVector = 16 / sizeof(typename T::Storage);
  // Sums of integers: scaled by channel, and written as INT8, FP16 or FP32.
  static constexpr bool kScaled = T::kType == DataType::kInt8;

  const Problem& problem_;
  const Tensors& tensors_;
  const int32_t image_, channel_, count_;

 public:
  DCNV2_DEVICE OutputOp(const Problem& problem, const Tensors& tensors, int32_t image, int32_t channel)
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

template <class T, class Shape>
struct TileEpilogue {
  static constexpr int32_t kVector = Shape::kVector;

  // Each block of the cluster writes its share of the pixels.
  static DCNV2_DEVICE void run(const TileParams& params, const Problem& p, const BlockCoord& coord) {
    constexpr int32_t kVectorsM = Shape::kM / kVector;
    const int32_t out = thread() % kVectorsM * kVector;
    const int32_t channel = coord.m + out;
    const int32_t count = p.out_channels - channel;
    if (count <= 0) return;
    const OutputOp<T> output(p, params.tensors, coord.image, channel);
    constexpr uint32_t kPixelsAtOnce = Shape::kThreads / kVectorsM;
    for (uint32_t pixel = coord.rank * kPixelsAtOnce + thread() / kVectorsM; pixel < Shape::kN;
         pixel += kPixelsAtOnce << params.log_split_k) {
      const int32_t y = coord.y + static_cast<int32_t>(pixel / Shape::kColumns);
      const int32_t x = coord.x + static_cast<int32_t>(pixel % Shape::kColumns);
      if (y >= p.out_height || x >= p.out_width) continue;
      float values[kVector];
      clusterReduce(params, static_cast<int32_t>(pixel), out, values);
      output.write(values, y, x);
    }
  }

 private:
  // In the order of the blocks, so that results do not vary.
  static DCNV2_DEVICE void clusterReduce(const TileParams& params, int32_t pixel, int32_t out,
                                         float (&sums)[kVector]) {
    const char* own =
        sharedMemory() + (pixel * Shape::kAccumulatorPitch + out) * static_cast<int32_t>(sizeof(float));
#pragma unroll
    for (int32_t i = 0; i < kVector; i += 4) {
      Vec16 part;
      if (params.log_split_k > 0) {
        part = loadDistributed(own + 4 * i, 0);
      } else {
        loadShared(part, own + 4 * i);
      }
#pragma unroll
      for (int32_t j = 0; j < 4; ++j) sums[i + j] = floatOf(part.words[j]);
    }
    for (int32_t rank = 1; rank < 1 << params.log_split_k; ++rank) {
#pragma unroll
      for (int32_t i = 0; i < kVector; i += 4) {
        const Vec16 part = loadDistributed(own + 4 * i, rank);
#pragma unroll
        for (int32_t j = 0; j < 4; ++j) sums[i + j] += floatOf(part.words[j]);
      }
    }
  }
};

}  // namespace dcnv2
