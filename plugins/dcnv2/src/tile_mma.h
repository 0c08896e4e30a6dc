// The products of a block's mainloop: warp tiles, and their accumulators in registers.
#pragma once

#include "device.h"
#include "tile_shape.h"

namespace dcnv2 {

// Operand A is the weights, B the samples. With `kWarpgroups`, "warp" here means a warpgroup: four warps, wgmma.
template <class T, class Shape, bool kWarpgroups>
class TileMma {
  static constexpr int32_t kM = Shape::kM;
  static constexpr int32_t kN = Shape::kN;
  static constexpr int32_t kRowBytes = Shape::kRowBytes;

  static constexpr int32_t kWarps = Shape::kThreads / (kWarpgroups ? 128 : 32);
  static constexpr int32_t kLeastM = kWarpgroups ? 64 : 32;
  static constexpr int32_t kWarpsM = kM / kLeastM < kWarps ? kM / kLeastM : kWarps;
  static constexpr int32_t kWarpsN = kWarps / kWarpsM;
  static constexpr int32_t kWarpM = kM / kWarpsM;
  static constexpr int32_t kWarpN = kN / kWarpsN;
  // One instruction adds kMmaM x 8 (mma.sync) or kMmaM x kWarpN (wgmma) products, 32 bytes deep.
  static constexpr int32_t kMmaM = kWarpgroups ? 64 : 16;
  static constexpr int32_t kMmas = kWarpM / kMmaM;

  static DCNV2_DEVICE int32_t warp() { return warpUniform(thread() / (kWarpgroups ? 128 : 32)); }
  static DCNV2_DEVICE int32_t warpM() { return warp() % kWarpsM * kWarpM; }
  static DCNV2_DEVICE int32_t warpN() { return warp() / kWarpsM * kWarpN; }
  // Output channel of this thread's first accumulator; kMmaM and eight lead to the others.
  static DCNV2_DEVICE int32_t threadM() {
    return warpM() + (kWarpgroups ? thread() / 32 % 4 * 16 : 0) + thread() % 32 / 4;
  }

 public:
  // [..][4] as in PTX's fragments: two neighbouring pixels of one output channel, and of the channel eight further.
  using Accumulators = typename T::Accumulator[kMmas][kWarpN / 8][4];

  struct BiasFragment {
    float values[kMmas][2];
  };
  // Of the accumulators from output channel `m` on; zero from `count` on.
  static DCNV2_DEVICE BiasFragment loadBias(const typename T::Storage* bias, int32_t m, int32_t count) {
    BiasFragment fragment;
#pragma unroll
    for (int32_t i = 0; i < kMmas; ++i) {
#pragma unroll
      for (int32_t half = 0; half < 2; ++half) {
        const int32_t out = m + threadM() + i * kMmaM + half * 8;
        fragment.values[i][half] = out < count ? T::load(loadReadOnly(bias + out)) : 0.0f;
      }
    }
    return fragment;
  }
  static DCNV2_DEVICE void initialize(Accumulators& accumulators, const BiasFragment& bias) {
#pragma unroll
    for (int32_t i = 0; i < kMmas; ++i) {
#pragma unroll
      for (int32_t j = 0; j < kWarpN / 8; ++j) {
#pragma unroll
        for (int32_t k = 0; k < 4; ++k) {
          accumulators[i][j][k] = static_cast<typename T::Accumulator>(bias.values[i][k / 2]);
        }
      }
    }
  }

  // This warp's part of the tiles of the first stage.
  struct Operands {
    const char *samples, *weights;
    uint64_t sample_descriptor, weight_descriptor;
  };
  static DCNV2_DEVICE Operands operands(const char* sample_tile, const char* weight_tile) {
    const char* samples = sample_tile + warpN() * kRowBytes;
    const char* weights = weight_tile + warpM() * kRowBytes;
    return {samples, weights, smemDescriptor(samples), smemDescriptor(weights)};
  }

  // Adds the product of the tiles `bytes` behind those of the first stage. wgmma only begins it.
  static DCNV2_DEVICE void gemm(Accumulators& accumulators, const Operands& operands, int32_t bytes) {
    if constexpr (kWarpgroups) {
      const uint64_t a = operands.weight_descriptor + static_cast<uint32_t>(bytes) / 16;
      const uint64_t b = operands.sample_descriptor + static_cast<uint32_t>(bytes) / 16;
      warpgroupArrive();
#pragma unroll
      for (int32_t k = 0; k < 4; ++k) {
#pragma unroll
        for (int32_t i = 0; i < kMmas; ++i) {
          wgmma<T>(accumulators[i], a + (i * kMmaM * kRowBytes + k * 32) / 16, b + k * 32 / 16);
        }
      }
      warpgroupCommitBatch();
    } else {
      const char* sample_tile = operands.samples + bytes;
      const char* weight_tile = operands.weights + bytes;
      const int32_t lane = thread() % 32;
#pragma unroll
      for (int32_t k = 0; k < 4; ++k) {
        uint32_t a[kMmas][4];
#pragma unroll
        for (int32_t i = 0; i < kMmas; ++i) {
          ldmatrix(a[i], weight_tile + Shape::swizzle(i * 16 + lane % 16, 2 * k + lane / 16));
        }
#pragma unroll
        for (int32_t j = 0; j < kWarpN / 8; j += 2) {
          uint32_t b[4];
          ldmatrix(b, sample_tile + Shape::swizzle(j * 8 + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
#pragma unroll
          for (int32_t i = 0; i < kMmas; ++i) {
            mma<T>(accumulators[i][j], a[i], b[0], b[1]);
            mma<T>(accumulators[i][j + 1], a[i], b[2], b[3]);
          }
        }
      }
    }
  }

  // Into shared memory, for the epilogue.
  static DCNV2_DEVICE void store(const Accumulators& accumulators) {
    auto* shared = reinterpret_cast<float*>(sharedMemory());
    const int32_t out = threadM();
    const int32_t pixel = warpN() + thread() % 4 * 2;
#pragma unroll
    for (int32_t i = 0; i < kMmas; ++i) {
#pragma unroll
      for (int32_t j = 0; j < kWarpN / 8; ++j) {
#pragma unroll
        for (int32_t k = 0; k < 4; ++k) {
          shared[(pixel + j * 8 + k % 2) * Shape::kAccumulatorPitch + out + i * kMmaM + k / 2 * 8] =
              static_cast<float>(accumulators[i][j][k]);
        }
      }
    }
  }
};

}  // namespace dcnv2
