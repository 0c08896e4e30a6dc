// DCNv2 on tensor cores, as an implicit GEMM: a block gathers the samples of its pixels straight into the
// shared-memory tile that the tensor cores read. Nothing of the sampled image goes to global memory.
#pragma once

#include "tile_epilogue.h"
#include "tile_gather.h"
#include "tile_mma.h"
#include "tile_samples.h"

namespace dcnv2 {

template <class T, int32_t kM, int32_t kN, int32_t kWarps, bool kWarpgroups>
class Tile {
  using Shape = TileShape<T, kM, kN, kWarps>;
  using Tiling = dcnv2::Tiling<Shape>;
  using Iterator = TileIterator<Shape>;
  using KTile = typename Iterator::KTile;
  using Gather = TileGather<T, Shape>;
  using Mma = TileMma<T, Shape, kWarpgroups>;

 public:
  static DCNV2_DEVICE void run(const TileParams& params) {
    const Tile tile(params);
    KTile k_tile = tile.iterator_.begin();
    tile.loadWeights(k_tile, 0);
    const auto bias = tile.loadBias();
    SampleTable<T, Shape>(params, tile.coord_, tile.iterator_, sampleTable()).fill();
    const auto operands = Mma::operands(samples(0), weights(0));
    barrier();
    typename Gather::Fragment fragment;
    tile.gather_.load(fragment, sampleTable(), k_tile, 0);
    typename Mma::Accumulators accumulators;
    Mma::initialize(accumulators, bias);

    // The mainloop, in two stages: the tensor cores (asynchronous on SM90) read one K tile while the threads gather the
    // next. `fragment` is in flight while they do and while the block meets.
    int32_t stage = 0;
    for (int32_t left = tile.iterator_.count; left > 0; --left) {
#pragma unroll
      for (int32_t j = 0; j < Gather::kFragments; ++j) {
        if (j > 0) tile.gather_.load(fragment, sampleTable(), k_tile, j);
        tile.gather_.blendInto(samples(stage), fragment, j);
      }
      tile.iterator_.advance(k_tile);
      if constexpr (kWarpgroups) warpgroupWait();
      cpAsyncWait();
      if constexpr (kWarpgroups) fenceProxyAsync();
      if (left > 1) tile.gather_.load(fragment, sampleTable(), k_tile, 0);
      barrier();
      Mma::gemm(accumulators, operands, stage * Shape::kStageBytes);
      stage ^= 1;
      if (left > 1) tile.loadWeights(k_tile, stage);
    }
    if constexpr (kWarpgroups) warpgroupWait();
    barrier();

    tile.epilogue(accumulators);
  }

 private:
  DCNV2_DEVICE void epilogue(const typename Mma::Accumulators& accumulators) const {
    Mma::store(accumulators);
    if (params_.log_split_k == 0) {
      barrier();
    } else {
      clusterBarrier();
    }
    // The coordinates are computed again: registers are scarce in the mainloop.
    TileEpilogue<T, Shape>::run(params_, problem_, Tiling::blockCoord(params_, opaque(block())));
    // Nobody may leave while another block of the cluster still reads its accumulators.
    if (params_.log_split_k > 0) clusterBarrier();
  }

  static DCNV2_DEVICE char* samples(int32_t stage) { return sharedMemory() + stage * Shape::kStageBytes; }
  static DCNV2_DEVICE char* weights(int32_t stage) { return samples(stage) + kN * Shape::kRowBytes; }
  static DCNV2_DEVICE char* sampleTable() { return sharedMemory() + Shape::kStages * Shape::kStageBytes; }

  // Each thread copies one vector of every kWeightRows-th row.
  DCNV2_DEVICE void loadWeights(const KTile& k_tile, int32_t stage) const {
    uint32_t from = weight_source_ + iterator_.weightBytes(k_tile);
    char* to = weights(stage) + weight_target_;
    const int32_t rows = iterator_.valid(k_tile) ? problem_.out_channels - coord_.m : 0;
    // TF32 goes through registers, which are scarce.
#pragma unroll(Shape::kBytes < 4 ? kM / kWeightRows : 2)
    for (int32_t i = 0; i < kM / kWeightRows; ++i) {
      const bool valid = thread() / 8 + i * kWeightRows < rows;
      const char* vector = static_cast<const char*>(params_.tensors.weight) + from;
      if constexpr (Shape::kBytes < 4) {
        cpAsync(to, vector, valid);
      } else {
        Vec16 loaded = {};
        if (valid) loaded = loadGlobal(vector);
        for (uint32_t& word : loaded.words) word = roundToTf32(floatOf(word));
        store(to, loaded);
      }
      from += kWeightRows * weightRowBytes();
      to += kWeightRows * Shape::kRowBytes;
    }
  }
  DCNV2_DEVICE uint32_t weightRowBytes() const {
    return static_cast<uint32_t>(params_.taps.divisor * problem_.channels * Shape::kBytes);
  }

  // The first block of a cluster adds it for all. INT8 adds it in the epilogue.
  DCNV2_DEVICE typename Mma::BiasFragment loadBias() const {
    const auto* bias = static_cast<const typename T::Storage*>(params_.tensors.bias);
    const bool none = T::kType == DataType::kInt8 || bias == nullptr || coord_.rank > 0;
    return Mma::loadBias(bias, coord_.m, none ? 0 : problem_.out_channels);
  }

  DCNV2_DEVICE explicit Tile(const TileParams& params)
      : params_(params),
        problem_(params.problem),
        coord_(Tiling::blockCoord(params, block())),
        iterator_(params, coord_.rank),
        gather_(problem_, params.tensors, coord_.image) {
    const int32_t row = thread() / 8;
    const int32_t vector = thread() % 8;
    weight_source_ = static_cast<uint32_t>(coord_.m + row) * weightRowBytes() + vector * 16;
    weight_target_ = Shape::swizzle(row, vector);
  }

  static constexpr int32_t kWeightRows = Shape::kThreads / 8;

  const TileParams& params_;
  const Problem& problem_;
  const BlockCoord coord_;
  const Iterator iterator_;
  const Gather gather_;
  uint32_t weight_source_;  // bytes
  int32_t weight_target_;
};

}  // namespace dcnv2
