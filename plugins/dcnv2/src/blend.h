// Arithmetic on 16 bytes of channels: the sum of four corners times their weights, and packing.
#pragma once

#include <type_traits>

#include "device.h"

namespace dcnv2 {

// Four weights of the tensors' type.
template <class T>
using CornerWeights = std::conditional_t<T::kType == DataType::kFloat, Vec16, Vec8>;

// Of a sample that counts nothing: it lies outside the image, or its mask is zero.
DCNV2_DEVICE bool allZero(const Vec8& weights) {
  return ((weights.words[0] | weights.words[1]) & 0x7fff7fffu) == 0;
}
DCNV2_DEVICE bool allZero(const Vec16& weights) {
  return (weights.words[0] | weights.words[1] | weights.words[2] | weights.words[3]) << 1 == 0;
}

// Products and sums are FP32, and rounded once; FP16 has its own, below.
template <class T>
DCNV2_DEVICE Vec16 blend(const Vec16 (&corners)[4], const Vec8& weights) {
  Vec16 blended;
#pragma unroll
  for (int32_t i = 0; i < 4; ++i) {
    float low = 0.0f;
    float high = 0.0f;
#pragma unroll
    for (int32_t k = 0; k < 4; ++k) {
      const float weight = T::load(static_cast<uint16_t>(weights.words[k / 2] >> k % 2 * 16));
      low += weight * T::load(static_cast<uint16_t>(corners[k].words[i]));
      high += weight * T::load(static_cast<uint16_t>(corners[k].words[i] >> 16));
    }
    blended.words[i] = pack<T>(low, high);
  }
  return blended;
}

template <class T>
DCNV2_DEVICE Vec16 blend(const Vec16 (&corners)[4], const Vec16& weights) {
  Vec16 blended;
#pragma unroll
  for (int32_t i = 0; i < 4; ++i) {
    float sum = 0.0f;
#pragma unroll
    for (int32_t k = 0; k < 4; ++k) sum += floatOf(weights.words[k]) * floatOf(corners[k].words[i]);
    blended.words[i] = roundToTf32(sum);
  }
  return blended;
}

#ifndef DCNV2_FLOAT_BLEND
template <>
DCNV2_DEVICE Vec16 blend<Half>(const Vec16 (&corners)[4], const Vec8& weights) {
  Vec16 blended = {};
#pragma unroll
  for (int32_t k = 0; k < 4; ++k) {
    const uint32_t twice = repeatHalf(weights.words[k / 2], k % 2);
#pragma unroll
    for (int32_t i = 0; i < 4; ++i)
      blended.words[i] = halfMultiplyAdd(twice, corners[k].words[i], blended.words[i]);
  }
  return blended;
}
#endif

template <class T>
DCNV2_DEVICE Vec16 packVector(const float (&values)[8]) {
  return {{pack<T>(values[0], values[1]), pack<T>(values[2], values[3]), pack<T>(values[4], values[5]),
           pack<T>(values[6], values[7])}};
}
template <class T>
DCNV2_DEVICE Vec16 packVector(const float (&values)[4]) {
  return {{bitsOf(values[0]), bitsOf(values[1]), bitsOf(values[2]), bitsOf(values[3])}};
}

}  // namespace dcnv2
