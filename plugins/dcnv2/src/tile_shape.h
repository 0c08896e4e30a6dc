// The block tiles that exist, and how a block lays out its shared memory.
//
// The layer is a GEMM: out[M, N] = weights[M, K] * samples[N, K]^T, where M are output channels, N output pixels, and
// K input channels times taps of the kernel.
#pragma once

#include "numeric.h"

namespace dcnv2 {

// X(number, M, N, warps, blocks that the registers of a multiprocessor must hold). K is 128 bytes: TileShape.
// A number never gets another shape: plans and timing caches hold it.
#define DCNV2_TILES(X)  \
  X(1, 64, 128, 8, 2)   \
  X(2, 64, 64, 4, 3)    \
  X(3, 128, 128, 8, 2)  \
  X(4, 128, 64, 8, 2)   \
  X(5, 256, 32, 8, 2)   \
  X(6, 64, 32, 4, 4)    \
  X(7, 128, 256, 16, 1) \
  X(8, 256, 128, 16, 1)

// A tactic is the plain kernel, or a block tile and a split-K: 16 * number + log2(split-K).
constexpr int32_t kGeneric = 1;
constexpr int32_t kMaxLogSplitK = 3;  // 8 blocks, the largest portable cluster
constexpr int32_t tacticNumber(int32_t tile, int32_t log_split_k) { return 16 * tile + log_split_k; }
constexpr int32_t tileOf(int32_t tactic) { return tactic / 16; }
constexpr int32_t logSplitKOf(int32_t tactic) { return tactic % 16; }
constexpr int32_t splitKOf(int32_t tactic) { return 1 << logSplitKOf(tactic); }

#define DCNV2_COUNT(...) +1
constexpr int32_t kTileTactics = (DCNV2_TILES(DCNV2_COUNT)) * (kMaxLogSplitK + 1);
#undef DCNV2_COUNT

// Shared memory of a block, in the mainloop:
//
//   | stage 0                   | stage 1                   | sample table          |
//   | samples, N | weights, M   | samples, N | weights, M   | slot 0 | slot 1 | ... |
//
//     rows of 128 bytes, swizzled     a slot: a sample of each pixel, as N byte offsets and N x 4 corner weights
//
// and in the epilogue:
//
//   | accumulators, FP32: N rows of M + 4   |
template <class T, int32_t kTileM, int32_t kTileN, int32_t kWarps>
struct TileShape {
  static constexpr int32_t kM = kTileM;
  static constexpr int32_t kN = kTileN;
  static constexpr int32_t kRowBytes = 128;
  static constexpr int32_t kBytes = sizeof(typename T::Storage);
  static constexpr int32_t kK = kRowBytes / kBytes;
  static constexpr int32_t kStages = 2;
  static constexpr int32_t kThreads = kWarps * 32;

  static constexpr int32_t kVector = 16 / kBytes;  // elements that a thread loads or stores at once
  // The N pixels of a tile are a rectangle of the output.
  static constexpr int32_t kColumns = kN >= 128 ? 16 : 8;
  static constexpr int32_t kRows = kN / kColumns;

  static constexpr int32_t kStageBytes = (kN + kM) * kRowBytes;
  static constexpr int32_t kCornerWeightBytes = kBytes == 4 ? 16 : 8;        // of a sample
  static constexpr int32_t kSlotBytes = kN * (4 + kCornerWeightBytes) + 16;  // padded against bank conflicts
  static constexpr int32_t kAccumulatorPitch = kM + 4;                       // likewise
  static constexpr int64_t kAccumulatorBytes = INT64_C(4) * kN * kAccumulatorPitch;

  // Where a 16-byte vector of a row lies: wgmma's 128-byte swizzle, which spares ldmatrix bank conflicts, too.
  static DCNV2_FN int32_t swizzle(int32_t row, int32_t vector) {
    return row * kRowBytes + ((vector ^ (row & 7)) << 4);
  }
};

}  // namespace dcnv2
