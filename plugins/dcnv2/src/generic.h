// Every DCNv2 layer on plain FP32 arithmetic: any kernel, groups, layouts, types. What the tensor-core kernel
// in tile.h cannot run, and FP32 where TF32 is not allowed.
#pragma once

#include "device.h"
#include "sampling.h"

namespace dcnv2 {

// One block: 64 output pixels (of the whole batch, in row-major order) by 64 output channels of one group.
template <class T>
struct Generic {
  static constexpr int32_t kThreads = 256;
  static constexpr int32_t kPixels = 64;
  static constexpr int32_t kOut = 64;
  static constexpr int32_t kDepth = 16;
  static constexpr size_t kSharedBytes = kDepth * (kPixels + kOut) * sizeof(float);

  static DCNV2_FN int64_t pixels(const Problem& p) {
    return static_cast<int64_t>(p.batch) * p.out_height * p.out_width;
  }
  static DCNV2_FN int32_t outBlocks(const Problem& p) {
    return (p.out_channels / p.groups + kOut - 1) / kOut;
  }
  static DCNV2_FN int64_t blocks(const Problem& p) {
    return (pixels(p) + kPixels - 1) / kPixels * p.groups * outBlocks(p);
  }

  static DCNV2_DEVICE void run(const Problem& p, const Tensors& tensors) {
    using Storage = typename T::Storage;
    const auto* input = static_cast<const Storage*>(tensors.input);
    const auto* weight = static_cast<const Storage*>(tensors.weight);
    auto* samples = reinterpret_cast<float*>(sharedMemory());
    float* weights = samples + kDepth * kPixels;

    const int32_t taps = p.kernel_h * p.kernel_w;
    const int32_t group_channels = p.channels / p.groups;
    const int32_t group_outs = p.out_channels / p.groups;
    const int32_t out_block = block() % outBlocks(p);
    const int32_t group = block() / outBlocks(p) % p.groups;
    const int64_t first_pixel = static_cast<int64_t>(block() / (outBlocks(p) * p.groups)) * kPixels;

    const int32_t lane = thread() % kPixels;
    const int32_t part = thread() / kPixels;
    const int64_t pixel = first_pixel + lane;
    const bool inside = pixel < pixels(p);
    const int32_t plane = p.out_height * p.out_width;
    const auto n = static_cast<int32_t>(pixel / plane);
    const int32_t out_y = static_cast<int32_t>(pixel % plane) / p.out_width;
    const int32_t out_x = static_cast<int32_t>(pixel % plane) % p.out_width;

    using Coordinates = Offsets<typename T::Coordinate>;
    const Coordinates offsets(p, tensors, inside ? n : 0);
    constexpr int32_t kParts = kThreads / kPixels;
    constexpr int32_t kOwn = kOut / kParts;
    float sums[kOwn] = {};
    for (int32_t tap = 0; tap < taps; ++tap) {
      const float y = Coordinates::position(out_y, p.stride_h, p.padding_h, tap / p.kernel_w, p.dilation_h);
      const float x = Coordinates::position(out_x, p.stride_w, p.padding_w, tap % p.kernel_w, p.dilation_w);
      int32_t sampled_group = -1;
      Sample at = {};
      for (int32_t depth = 0; depth < group_channels; depth += kDepth) {
        barrier();
        for (int32_t i = part * (kDepth / kParts); i < (part + 1) * (kDepth / kParts); ++i) {
          const int32_t c = group * group_channels + depth + i;
          float value = 0.0f;
          if (inside && depth + i < group_channels) {
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
          samples[i * kPixels + lane] = value;
        }
        for (int32_t i = thread(); i < kDepth * kOut; i += kThreads) {
          const int32_t c = depth + i % kDepth;
          const int32_t out = out_block * kOut + i / kDepth;
          float value = 0.0f;
          if (c < group_channels && out < group_outs) {
            const int64_t row = group * group_outs + out;
            value = T::load(weight[p.weight_ohwi ? (row * taps + tap) * group_channels + c
                                                 : (row * group_channels + c) * taps + tap]);
          }
          weights[i % kDepth * kOut + i / kDepth] = value;
        }
        barrier();
        for (int32_t i = 0; i < kDepth; ++i) {
          const float value = samples[i * kPixels + lane];
          const float* row = weights + i * kOut + part * kOwn;
          for (int32_t j = 0; j < kOwn; ++j) sums[j] += value * row[j];
        }
      }
    }
    if (!inside) return;
    for (int32_t j = 0; j < kOwn; ++j) {
      const int32_t out = out_block * kOut + part * kOwn + j;
      if (out >= group_outs) continue;
      const int32_t channel = group * group_outs + out;
      float value = sums[j];
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
