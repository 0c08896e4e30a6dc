// The products of a block, shared out between its warps, and the sums that its threads keep in registers.
#pragma once

#include "device.h"
#include "tile_shape.h"

namespace dcnv2 {

template <class T, int32_t kOut, int32_t kPixels, int32_t kWarps, bool kWarpgroups>
class TileProduct {
  using Shape = TileShape<T, kOut, kPixels, kWarps>;
  static constexpr int32_t kRowBytes = Shape::kRowBytes;

  // A warp's share of the sums: kBlocks blocks of 16 channels, kBlockRows apart, by kShare pixels.
  static constexpr int32_t kOutParts = kWarpgroups ? (kOut / 64 < kWarps / 4 ? kOut / 64 : kWarps / 4)
                                                   : (kOut / 32 < kWarps ? kOut / 32 : kWarps);
  static constexpr int32_t kPixelParts = (kWarpgroups ? kWarps / 4 : kWarps) / kOutParts;
  static constexpr int32_t kBlockRows = kWarpgroups ? 64 : 16;
  static constexpr int32_t kBlocks = kOut / kOutParts / kBlockRows;
  static constexpr int32_t kShare = kPixels / kPixelParts;

  static DCNV2_DEVICE int32_t part() { return uniform(thread() / (kWarpgroups ? 128 : 32)); }
  static DCNV2_DEVICE int32_t ownOut() { return part() % kOutParts * (kOut / kOutParts); }
  static DCNV2_DEVICE int32_t ownPixels() { return part() / kOutParts * kShare; }
  // The first output channel among this thread's sums; kBlockRows and eight lead to the others.
  static DCNV2_DEVICE int32_t firstOut() {
    return ownOut() + (kWarpgroups ? thread() / 32 % 4 * 16 : 0) + thread() % 32 / 4;
  }

 public:
  // Of 16 or 64 channels by 8 pixels each: channels eight apart in each half, two neighbouring pixels in
  // those.
  using Sums = typename T::Sum[kBlocks][kShare / 8][4];

  // The bias of this thread's sums; those from output channel `first` on, of `count`.
  struct Bias {
    float values[kBlocks][2];
  };
  static DCNV2_DEVICE Bias bias(const typename T::Storage* values, int32_t first, int32_t count) {
    Bias bias;
#pragma unroll
    for (int32_t i = 0; i < kBlocks; ++i) {
#pragma unroll
      for (int32_t half = 0; half < 2; ++half) {
        const int32_t out = first + firstOut() + i * kBlockRows + half * 8;
        bias.values[i][half] = out < count ? T::load(loadReadOnly(values + out)) : 0.0f;
      }
    }
    return bias;
  }
  static DCNV2_DEVICE void start(Sums& sums, const Bias& bias) {
#pragma unroll
    for (int32_t i = 0; i < kBlocks; ++i) {
#pragma unroll
      for (int32_t j = 0; j < kShare / 8; ++j) {
#pragma unroll
        for (int32_t k = 0; k < 4; ++k) sums[i][j][k] = static_cast<typename T::Sum>(bias.values[i][k / 2]);
      }
    }
  }

  // 128-byte rows, their eight vectors permuted by the row: what ldmatrix reads without bank conflicts and
  // wgmma calls its 128-byte swizzle.
  static DCNV2_DEVICE int32_t swizzle(int32_t row, int32_t vector) {
    return row * kRowBytes + ((vector ^ (row & 7)) << 4);
  }

  // Where a warp finds its part of the two tiles.
  struct Operands {
    const char *samples, *weights;
    uint64_t sample_descriptor, weight_descriptor;
  };
  static DCNV2_DEVICE Operands operands(const char* sample_tile, const char* weight_tile) {
    const char* samples = sample_tile + ownPixels() * kRowBytes;
    const char* weights = weight_tile + ownOut() * kRowBytes;
    return {samples, weights, matrixDescriptor(samples), matrixDescriptor(weights)};
  }

  // Adds the product of the tiles that lie `bytes` behind `operands`.
  static DCNV2_DEVICE void add(Sums& sums, const Operands& operands, int32_t bytes) {
    if constexpr (kWarpgroups) {
      const uint64_t a = operands.weight_descriptor + static_cast<uint32_t>(bytes) / 16;
      const uint64_t b = operands.sample_descriptor + static_cast<uint32_t>(bytes) / 16;
      warpgroupBegin();
#pragma unroll
      for (int32_t k = 0; k < 4; ++k) {
#pragma unroll
        for (int32_t i = 0; i < kBlocks; ++i) {
          warpgroupMultiply<T>(sums[i], a + (i * kBlockRows * kRowBytes + k * 32) / 16, b + k * 32 / 16);
        }
      }
      warpgroupCommit();
    } else {
      const char* sample_tile = operands.samples + bytes;
      const char* weight_tile = operands.weights + bytes;
      const int32_t lane = thread() % 32;
#pragma unroll
      for (int32_t k = 0; k < 4; ++k) {
        uint32_t a[kBlocks][4];
#pragma unroll
        for (int32_t i = 0; i < kBlocks; ++i) {
          loadMatrices(a[i], weight_tile + swizzle(i * 16 + lane % 16, 2 * k + lane / 16));
        }
#pragma unroll
        for (int32_t j = 0; j < kShare / 8; j += 2) {
          uint32_t b[4];
          loadMatrices(b, sample_tile + swizzle(j * 8 + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
#pragma unroll
          for (int32_t i = 0; i < kBlocks; ++i) {
            multiply<T>(sums[i][j], a[i], b[0], b[1]);
            multiply<T>(sums[i][j + 1], a[i], b[2], b[3]);
          }
        }
      }
    }
  }

  // Into shared memory: [pixel][output channel], kPitch from one pixel to the next.
  static DCNV2_DEVICE void share(const Sums& sums) {
    auto* shared = reinterpret_cast<float*>(sharedMemory());
    const int32_t out = firstOut();
    const int32_t pixel = ownPixels() + thread() % 4 * 2;
#pragma unroll
    for (int32_t i = 0; i < kBlocks; ++i) {
#pragma unroll
      for (int32_t j = 0; j < kShare / 8; ++j) {
#pragma unroll
        for (int32_t k = 0; k < 4; ++k) {
          shared[(pixel + j * 8 + k % 2) * Shape::kPitch + out + i * kBlockRows + k / 2 * 8] =
              static_cast<float>(sums[i][j][k]);
        }
      }
    }
  }
};

}  // namespace dcnv2
