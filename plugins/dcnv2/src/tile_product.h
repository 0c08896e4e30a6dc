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

 public:
  using Sums = float[kBlocks][kShare / 8][4];

  // 128-byte rows, their eight vectors permuted by the row: what ldmatrix reads without bank conflicts and
  // wgmma calls its 128-byte swizzle.
  static DCNV2_DEVICE int32_t swizzle(int32_t row, int32_t vector) {
    return row * kRowBytes + ((vector ^ (row & 7)) << 4);
  }

  // The product of one step, added to `sums` (put there if it is the first).
  static DCNV2_DEVICE void add(Sums& sums, const char* sample_tile, const char* weight_tile, bool first) {
    sample_tile += ownPixels() * kRowBytes;
    weight_tile += ownOut() * kRowBytes;
    if constexpr (kWarpgroups) {
      const uint64_t a = matrixDescriptor(weight_tile);
      const uint64_t b = matrixDescriptor(sample_tile);
      warpgroupBegin();
#pragma unroll
      for (int32_t k = 0; k < 4; ++k) {
#pragma unroll
        for (int32_t i = 0; i < kBlocks; ++i) {
          warpgroupMultiply<T>(sums[i], a + (i * kBlockRows * kRowBytes + k * 32) / 16, b + k * 32 / 16,
                               k > 0 || !first);
        }
      }
      warpgroupCommit();
    } else {
      (void)first;
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
    const int32_t lane = thread() % 32;
    const int32_t out = ownOut() + (kWarpgroups ? thread() / 32 % 4 * 16 : 0) + lane / 4;
    const int32_t pixel = ownPixels() + lane % 4 * 2;
#pragma unroll
    for (int32_t i = 0; i < kBlocks; ++i) {
#pragma unroll
      for (int32_t j = 0; j < kShare / 8; ++j) {
#pragma unroll
        for (int32_t k = 0; k < 4; ++k) {
          shared[(pixel + j * 8 + k % 2) * Shape::kPitch + out + i * kBlockRows + k / 2 * 8] = sums[i][j][k];
        }
      }
    }
  }
};

}  // namespace dcnv2
