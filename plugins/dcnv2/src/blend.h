// Bilinear interpolation of 16 bytes of channels: the sum of four corners times their weights.
#pragma once

#include <type_traits>

#include "device.h"

namespace dcnv2 {

// Of the tensors' type; for INT8, 16 bits in units of 1/65536.
template <class T>
using CornerWeights = std::conditional_t<T::kType == DataType::kFloat, Vec16, Vec8>;

// The sample lies outside the image, or its mask is zero.
DCNV2_DEVICE bool allZero(const Vec8& weights) {
  return ((weights.words[0] | weights.words[1]) & 0x7fff7fffu) == 0;
}
DCNV2_DEVICE bool allZero(const Vec16& weights) {
  return (weights.words[0] | weights.words[1] | weights.words[2] | weights.words[3]) << 1 == 0;
}

// In FP32, rounded once. FP16 has its own, below.
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
    for (int32_t i = 0; i < 4; ++i) blended.words[i] = hfma2(twice, corners[k].words[i], blended.words[i]);
  }
  return blended;
}
#endif

// dp2a takes the left and right corners of a channel at once. Sums are in units of 1/65536, rounded to the nearest, and
// fit a byte: the weights add up to 1 at most.
template <>
DCNV2_DEVICE Vec16 blend<Int8>(const Vec16 (&corners)[4], const Vec8& weights) {
  Vec16 blended;
#pragma unroll
  for (int32_t i = 0; i < 4; ++i) {
    int32_t sums[4];
#pragma unroll
    for (int32_t pair = 0; pair < 2; ++pair) {
      const uint32_t selector = pair == 0 ? 0x5140 : 0x7362;
      const uint32_t top = bytePermute(corners[0].words[i], corners[1].words[i], selector);
      const uint32_t bottom = bytePermute(corners[2].words[i], corners[3].words[i], selector);
      sums[2 * pair] = dp2a<false>(weights.words[1], bottom, dp2a<false>(weights.words[0], top, 0x8000));
      sums[2 * pair + 1] = dp2a<true>(weights.words[1], bottom, dp2a<true>(weights.words[0], top, 0x8000));
    }
    blended.words[i] = bytePermute(
        bytePermute(static_cast<uint32_t>(sums[0]), static_cast<uint32_t>(sums[1]), 0x0062),
        bytePermute(static_cast<uint32_t>(sums[2]), static_cast<uint32_t>(sums[3]), 0x0062), 0x5410);
  }
  return blended;
}

}  // namespace dcnv2
