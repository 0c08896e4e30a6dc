// Every DCNv2 layer in plain FP32 arithmetic, without tensor cores: any kernel, groups, layouts, types. For what tile.h
// cannot run, and for FP32 where TF32 is not allowed.
#pragma once

#include "device.h"
#include "sampling.h"

namespace dcnv2 {

// A block tile: kM output channels of one group by kN output pixels of the whole batch, in row-major order.
template <class T>
struct Generic {
  static constexpr int32_t kThreads = 256;
  static constexpr int32_t kM = 64;
  static constexpr int32_t kN = 64;
  static constexpr int32_t kK = 16;
  static constexpr size_t kSharedBytes = kK * (kN + kM) * sizeof(float);

  static DCNV2_FN int64_t pixels(const Problem& p) {
    return static_cast<int64_t>(p.batch) * p.out_height * p.out_width;
  }
  static DCNV2_FN int32_t tilesM(const Problem& p) { return (p.out_channels / p.groups + kM - 1) / kM; }
  static DCNV2_FN int64_t blocks(const Problem& p) {
    return (pixels(p) + kN - 1) / kN * p.groups * tilesM(p);
  }

  static DCNV2_DEVICE void run(const Problem& p, const Tensors& tensors) {
    using Storage = typename T::Storage;
    const auto* input = static_cast<const Storage*>(tensors.input);
    const auto* weight = static_cast<const Storage*>(tensors.weight);
    auto* samples = reinterpret_cast<float*>(sharedMemory());
    float* weights = samples + kK * kN;

    const int32_t taps = p.kernel_h * p.kernel_w;
    const int32_t group_channels = p.channels / p.groups;
    const int32_t group_outs = p.out_channels / p.groups;
    const int32_t tile_m = block() % tilesM(p);
    const int32_t group = block() / tilesM(p) % p.groups;
    const int64_t first_pixel = static_cast<int64_t>(block() / (tilesM(p) * p.groups)) * kN;

    const int32_t lane = thread() % kN;
    const int32_t part = thread() / kN;
    const int64_t pixel = first_pixel + lane;
    const bool inside = pixel < pixels(p);
    const int32_t plane = p.out_height * p.out_width;
    const auto n = static_cast<int32_t>(pixel / plane);
    const int32_t out_y = static_cast<int32_t>(pixel % plane) / p.out_width;
    const int32_t out_x = static_cast<int32_t>(pixel % plane) % p.out_width;

    using Coordinates = Offsets<typename T::Coordinate>;
    const Coordinates offsets(p, tensors, inside ? n : 0);
    constexpr int32_t kParts = kThreads / kN;
    constexpr int32_t kThreadM = kM / kParts;
    float accumulators[kThreadM] = {};
    for (int32_t tap = 0; tap < taps; ++tap) {
      const float y = Coordinates::position(out_y, p.stride_h, p.padding_h, tap / p.kernel_w, p.dilation_h);
      const float x = Coordinates::position(out_x, p.stride_w, p.padding_w, tap % p.kernel_w, p.dilation_w);
      int32_t sampled_group = -1;
      Sample at = {};
      for (int32_t k = 0; k < group_channels; k += kK) {
        barrier();
        for (int32_t i = part * (kK / kParts); i < (part + 1) * (kK / kParts); ++i) {
          const int32_t c = group * group_channels + k + i;
          float value = 0.0f;
          if (inside && k + i < group_channels) {
            const int32_t offset_group = c / (p.channels / p.offset_groups);
            if (offset_group != sampled_group) {
              at = offsets.sampleAt(offset_group * taps + tap, out_y * p.out_width + out_x, y, x);
            }
            sampled_group = offset_group;
            for (int32_t corner = 0; corner < 4; ++corner) {
              if (at.weights[corner] == 0.0f) continue;
              const int64_t index = elementIndex(p.layout, p.input_stride, p.channels, p.height, p.width, n,
                                                 c, p.height > 1 ? at.top + corner / 2 : 0,
                                                 p.width > 1 ? at.left + corner % 2 : 0);
              value += at.weights[corner] * T::load(input[index]);
            }
          }
          samples[i * kN + lane] = value;
        }
        for (int32_t i = thread(); i < kK * kM; i += kThreads) {
          const int32_t c = k + i % kK;
          const int32_t out = tile_m * kM + i / kK;
          float value = 0.0f;
          if (c < group_channels && out < group_outs) {
            const int64_t row = group * group_outs + out;
            value = T::load(weight[p.weight_ohwi ? (row * taps + tap) * group_channels + c
                                                 : (row * group_channels + c) * taps + tap]);
          }
          weights[i % kK * kM + i / kK] = value;
        }
        barrier();
        for (int32_t i = 0; i < kK; ++i) {
          const float value = samples[i * kN + lane];
          const float* row = weights + i * kM + part * kThreadM;
          for (int32_t j = 0; j < kThreadM; ++j) accumulators[j] += value * row[j];
        }
      }
    }
    if (!inside) return;
    for (int32_t j = 0; j < kThreadM; ++j) {
      const int32_t out = tile_m * kM + part * kThreadM + j;
      if (out >= group_outs) continue;
      const int32_t channel = group * group_outs + out;
      float value = accumulators[j];
      if (tensors.scale != nullptr) value *= static_cast<const float*>(tensors.scale)[channel];
      if (tensors.bias != nullptr) {
        value += T::kType == DataType::kInt8 ? static_cast<const float*>(tensors.bias)[channel]
                                             : T::load(static_cast<const Storage*>(tensors.bias)[channel]);
      }
      if (p.relu) value = value < 0.0f ? 0.0f : value;
      storeAs(p.output_type, tensors.output,
              elementIndex(p.output_layout, p.output_stride, p.out_channels, p.out_height, p.out_width, n,
                           channel, out_y, out_x),
              value);
    }
  }
};

}  // namespace dcnv2
