// DCNv2 on tensor cores, as one implicit GEMM: out[channel, pixel] = weight[channel, k] * sample[k, pixel], where k
// runs over (channel, tap). A block gathers the samples of its pixels straight into the shared-memory tile that the
// tensor cores read; nothing of the sampled image ever goes to global memory.
//
// For 16-bit types the interpolation is a product on the tensor cores too. A warp multiplies what its lanes have
// loaded (rows: pairs of channels; depth: the corners of two pixels, times two for the pair) by a matrix of corner
// weights that is the identity in the pair. The loaded registers are that operand as they stand, so that a sample
// costs neither conversions nor FP32 multiplications. Corner weights are computed in FP32 and rounded once.
#pragma once

#include "device.h"
#include "sampling.h"

namespace dcnv2 {

// `tensors.weight` is [out_channels, kernel_h, kernel_w, channels].
struct TileArguments {
  Problem problem;
  Tensors tensors;
  int32_t split;  // blocks that share a tile, each a part of the depth; they form a cluster
};

template <class T, int32_t kOut, int32_t kPixels, int32_t kWarps>
struct TileShape {
  static constexpr int32_t kThreads = kWarps * 32;
  static constexpr int32_t kBytes = sizeof(typename T::Storage);
  static constexpr int32_t kVector = 16 / kBytes;
  static constexpr int32_t kRowBytes = 128;
  static constexpr int32_t kDepth = kRowBytes / kBytes;  // channels of one step, at one tap
  static constexpr int32_t kColumns = kPixels >= 128 ? 16 : 8;
  static constexpr int32_t kRows = kPixels / kColumns;
  static constexpr int32_t kStageBytes = (kPixels + kOut) * kRowBytes;
  static constexpr int32_t kPitch = kOut + 4;  // of the FP32 sums: pixels two apart fall into different banks
  static constexpr int32_t kSampleBytes = sizeof(int32_t) + 4 * kBytes;

  static DCNV2_FN int32_t taps(const Problem& p) { return p.kernel_h * p.kernel_w; }
  static DCNV2_FN int32_t steps(const Problem& p) { return (p.channels + kDepth - 1) / kDepth * taps(p); }
  static DCNV2_FN int32_t outTiles(const Problem& p) { return (p.out_channels + kOut - 1) / kOut; }
  static DCNV2_FN int32_t columnTiles(const Problem& p) { return (p.out_width + kColumns - 1) / kColumns; }
  static DCNV2_FN int32_t rowTiles(const Problem& p) { return (p.out_height + kRows - 1) / kRows; }
  static DCNV2_FN int64_t blocks(const Problem& p, int32_t split) {
    return static_cast<int64_t>(p.batch) * rowTiles(p) * columnTiles(p) * outTiles(p) * split;
  }
  // Sampling positions that a block keeps: one per step, or one per tap where it meets a tap again.
  static DCNV2_FN int32_t slots(const Problem& p, int32_t split) {
    const int32_t own = (steps(p) + split - 1) / split;
    const int32_t all = taps(p) * p.offset_groups;
    return own < all ? own : all;
  }
  static DCNV2_FN int64_t sharedBytes(const Problem& p, int32_t split) {
    const int64_t loop = 2 * kStageBytes + static_cast<int64_t>(slots(p, split)) * kPixels * kSampleBytes;
    const int64_t sums = static_cast<int64_t>(kPixels) * kPitch * sizeof(float);
    return loop > sums ? loop : sums;
  }
};

template <class T, int32_t kOut, int32_t kPixels, int32_t kWarps, bool kWarpgroups>
class Tile : TileShape<T, kOut, kPixels, kWarps> {
  using Shape = TileShape<T, kOut, kPixels, kWarps>;
  using Storage = typename T::Storage;
  using Shape::kDepth;
  using Shape::kRowBytes;
  using Shape::kThreads;
  using Shape::kVector;

  // A warp's share of the sums: kBlocks blocks of 16 channels, kBlockRows apart, by kShare pixels.
  static constexpr int32_t kOutParts = kWarpgroups ? (kOut / 64 < kWarps / 4 ? kOut / 64 : kWarps / 4)
                                                   : (kOut / 32 < kWarps ? kOut / 32 : kWarps);
  static constexpr int32_t kPixelParts = (kWarpgroups ? kWarps / 4 : kWarps) / kOutParts;
  static constexpr int32_t kBlockRows = kWarpgroups ? 64 : 16;
  static constexpr int32_t kBlocks = kOut / kOutParts / kBlockRows;
  static constexpr int32_t kShare = kPixels / kPixelParts;
  using Sums = float[kBlocks][kShare / 8][4];

  const TileArguments& arguments_;
  const Problem& problem_;
  int32_t rank_, out_first_, tile_x_, tile_y_, image_;
  int32_t begin_, end_;  // steps
  bool slot_per_step_;
  int32_t* offsets_;  // bytes from the image to a sample's first corner
  Storage* corner_weights_;

  DCNV2_DEVICE explicit Tile(const TileArguments& arguments) : arguments_(arguments), problem_(arguments.problem) {
    const Problem& p = problem_;
    rank_ = block() % arguments.split;
    int32_t index = block() / arguments.split;
    out_first_ = index % Shape::outTiles(p) * kOut;
    index /= Shape::outTiles(p);
    tile_x_ = index % Shape::columnTiles(p) * Shape::kColumns;
    index /= Shape::columnTiles(p);
    tile_y_ = index % Shape::rowTiles(p) * Shape::kRows;
    image_ = index / Shape::rowTiles(p);
    begin_ = Shape::steps(p) * rank_ / arguments.split;
    end_ = Shape::steps(p) * (rank_ + 1) / arguments.split;
    slot_per_step_ = end_ - begin_ <= Shape::taps(p) * p.offset_groups;
    offsets_ = reinterpret_cast<int32_t*>(sharedMemory() + 2 * Shape::kStageBytes);
    corner_weights_ = reinterpret_cast<Storage*>(offsets_ + Shape::slots(p, arguments.split) * kPixels);
  }

  // 128-byte rows, their eight vectors permuted by the row: what ldmatrix reads without bank conflicts and wgmma
  // calls its 128-byte swizzle.
  static DCNV2_DEVICE int32_t swizzle(int32_t row, int32_t vector) {
    return row * kRowBytes + ((vector ^ (row & 7)) << 4);
  }

  // Positions are kept so that the four of a gather are neighbours, although their pixels are every other one of
  // eight: rows 0, 2, 4, 6 swizzle into different banks.
  static DCNV2_DEVICE int32_t pixelAt(int32_t position) {
    return (position & ~7) | ((position & 3) << 1) | ((position >> 2) & 1);
  }

  DCNV2_DEVICE char* samples(int32_t stage) const { return sharedMemory() + stage * Shape::kStageBytes; }
  DCNV2_DEVICE char* weights(int32_t stage) const { return samples(stage) + kPixels * kRowBytes; }
  // One step of the depth: taps are innermost, so that a block reads the same pixels again while they are cached.
  struct Step {
    int32_t tap, channel;

    DCNV2_DEVICE void advance(int32_t taps) {
      if (++tap < taps) return;
      tap = 0;
      channel += kDepth;
    }
  };
  DCNV2_DEVICE Step stepAt(int32_t index) const {
    return {index % Shape::taps(problem_), index / Shape::taps(problem_) * kDepth};
  }
  DCNV2_DEVICE int32_t offsetGroup(int32_t channel) const {
    return problem_.offset_groups == 1 ? 0 : channel / (problem_.channels / problem_.offset_groups);
  }

  DCNV2_DEVICE void prepareSamples() const {
    const Problem& p = problem_;
    const int32_t taps = Shape::taps(p);
    const int32_t slots = slot_per_step_ ? end_ - begin_ : taps * p.offset_groups;
    for (int32_t i = thread(); i < slots * kPixels; i += kThreads) {
      const int32_t slot = i / kPixels;
      const int32_t pixel = pixelAt(i % kPixels);
      const int32_t y = tile_y_ + pixel / Shape::kColumns;
      const int32_t x = tile_x_ + pixel % Shape::kColumns;
      const Step step = stepAt(slot_per_step_ ? begin_ + slot : slot);
      const int32_t group = slot_per_step_ ? offsetGroup(step.channel) : slot / taps;
      Sample at = {};
      if (y < p.out_height && x < p.out_width) at = tapSample<T>(p, arguments_.tensors, image_, group, step.tap, y, x);
      offsets_[i] = (at.top * p.width + at.left) * p.input_stride * Shape::kBytes;
      for (int32_t corner = 0; corner < 4; ++corner) corner_weights_[4 * i + corner] = T::store(at.weights[corner]);
    }
  }

  DCNV2_DEVICE void loadWeights(const Step& step, int32_t stage) const {
    const Problem& p = problem_;
    const int32_t channel = step.channel;
    const int64_t row_elements = static_cast<int64_t>(Shape::taps(p)) * p.channels;
    const auto* from = static_cast<const Storage*>(arguments_.tensors.weight) + step.tap * p.channels + channel;
#pragma unroll 2
    for (int32_t i = thread(); i < kOut * 8; i += kThreads) {
      const int32_t row = i / 8;
      const int32_t vector = i % 8;
      const bool valid = out_first_ + row < p.out_channels && channel + vector * kVector < p.channels;
      const auto* source = reinterpret_cast<const char*>(
          valid ? from + (out_first_ + row) * row_elements + vector * kVector : from);
      char* target = weights(stage) + swizzle(row, vector);
      if constexpr (Shape::kBytes == 2) {
        copyAsync(target, source, valid);
      } else {
        Vec16 loaded = {};
        if (valid) loaded = loadGlobal(source);
        for (uint32_t& word : loaded.words) word = roundToTf32(floatOf(word));
        store(target, loaded);
      }
    }
  }

  DCNV2_DEVICE void gather(const Step& step, int32_t slot, char* tile) const {
    const Problem& p = problem_;
    const int32_t lane = thread() % 32;
    const int32_t vector = lane / 4;
    const int32_t quad = lane % 4;
    const int32_t channel = step.channel;
    const int32_t* offsets = offsets_ + slot * kPixels;
    const Storage* corner_weights = corner_weights_ + slot * kPixels * 4;
    const int32_t pixel_bytes = p.input_stride * Shape::kBytes;
    const int32_t right = p.width > 1 ? pixel_bytes : 0;
    const int32_t down = p.height > 1 ? p.width * pixel_bytes : 0;
    const bool valid = channel + vector * kVector < p.channels;
    const char* source = static_cast<const char*>(arguments_.tensors.input) +
                         static_cast<int64_t>(image_) * p.height * p.width * pixel_bytes + channel * Shape::kBytes +
                         vector * 16;
    if constexpr (Shape::kBytes == 2) source += (quad & 1 ? right : 0) + (quad & 2 ? down : 0);

    constexpr int32_t kGathers = kPixels / 4 / kWarps;
    constexpr int32_t kAtOnce = kGathers < 2 ? 1 : 2;
#pragma unroll
    for (int32_t i = 0; i < kGathers; i += kAtOnce) {
      Vec16 loaded[kAtOnce][4];
#pragma unroll
      for (int32_t j = 0; j < kAtOnce; ++j) {
        const int32_t first = 4 * (thread() / 32 * kGathers + i + j);
        const Vec16 bases = loadShared(reinterpret_cast<const char*>(offsets + first));
        const int32_t own = Shape::kBytes == 2 ? 0 : offsets[first + quad];
#pragma unroll
        for (int32_t k = 0; k < 4; ++k) {
          const char* address = source + (Shape::kBytes == 2 ? static_cast<int32_t>(bases.words[k])
                                                             : own + (k & 1 ? right : 0) + (k & 2 ? down : 0));
          loaded[j][k] = valid ? loadGlobal(address) : Vec16{};
        }
      }
#pragma unroll
      for (int32_t j = 0; j < kAtOnce; ++j) {
        const int32_t first = 4 * (thread() / 32 * kGathers + i + j);
        store(tile + swizzle(pixelAt(first + quad), vector), blend(loaded[j], corner_weights + 4 * first));
      }
    }
  }

  static DCNV2_DEVICE Vec16 blend(const Vec16 (&loaded)[4], const Storage* corner_weights) {
    const int32_t lane = thread() % 32;
    const int32_t vector = lane / 4;
    const int32_t quad = lane % 4;
    Vec16 blended;
    if constexpr (Shape::kBytes == 2) {
      // Of the four fragment registers (pixels 0 to 3), a lane's column belongs to one pixel and one half.
      const uint32_t weight = corner_weights[4 * (vector / 2) + quad];
      const uint32_t placed = vector & 1 ? weight << 16 : weight;
      uint32_t fragment[4];
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) fragment[i] = vector / 2 == i ? placed : 0;
#pragma unroll
      for (int32_t i = 0; i < 4; i += 2) {
        float sums[4] = {};
        multiply<T>(sums, {loaded[0].words[i], loaded[0].words[i + 1], loaded[1].words[i], loaded[1].words[i + 1]},
                    fragment[0], fragment[1]);
        multiply<T>(sums, {loaded[2].words[i], loaded[2].words[i + 1], loaded[3].words[i], loaded[3].words[i + 1]},
                    fragment[2], fragment[3]);
        blended.words[i] = pack<T>(sums[0], sums[1]);
        blended.words[i + 1] = pack<T>(sums[2], sums[3]);
      }
    } else {
      const Vec16 own = loadShared(reinterpret_cast<const char*>(corner_weights + 4 * quad));
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) {
        float sum = 0.0f;
#pragma unroll
        for (int32_t k = 0; k < 4; ++k) sum += floatOf(own.words[k]) * floatOf(loaded[k].words[i]);
        blended.words[i] = roundToTf32(sum);
      }
    }
    return blended;
  }

  static DCNV2_DEVICE int32_t part() { return thread() / (kWarpgroups ? 128 : 32); }
  static DCNV2_DEVICE int32_t ownOut() { return part() % kOutParts * (kOut / kOutParts); }
  static DCNV2_DEVICE int32_t ownPixels() { return part() / kOutParts * kShare; }

  static DCNV2_DEVICE void multiplyStep(Sums& sums, const char* sample_tile, const char* weight_tile) {
    sample_tile += ownPixels() * kRowBytes;
    weight_tile += ownOut() * kRowBytes;
    if constexpr (kWarpgroups) {
      warpgroupBegin();
#pragma unroll
      for (int32_t k = 0; k < 4; ++k) {
#pragma unroll
        for (int32_t i = 0; i < kBlocks; ++i) {
          warpgroupMultiply<T>(sums[i], weight_tile + i * kBlockRows * kRowBytes + k * 32, sample_tile + k * 32);
        }
      }
      warpgroupCommit();
    } else {
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

  DCNV2_DEVICE void shareSums(const Sums& sums) const {
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

  // Sums of four channels of a pixel over the cluster, always in the same order.
  DCNV2_DEVICE void total(int32_t pixel, int32_t out, float (&values)[4]) const {
    const char* own = sharedMemory() + (pixel * Shape::kPitch + out) * static_cast<int32_t>(sizeof(float));
    const auto* bias = static_cast<const Storage*>(arguments_.tensors.bias);
    const int32_t channel = out_first_ + out;
    float sums[4] = {};
    for (int32_t rank = 0; rank < arguments_.split; ++rank) {
      const Vec16 part = arguments_.split == 1 ? loadShared(own) : loadCluster(own, rank);
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) sums[i] += floatOf(part.words[i]);
    }
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
      if (bias != nullptr && channel + i < problem_.out_channels) sums[i] += T::load(bias[channel + i]);
      values[i] = problem_.relu && sums[i] < 0.0f ? 0.0f : sums[i];
    }
  }

  DCNV2_DEVICE void write() const {
    const Problem& p = problem_;
    auto* output = static_cast<Storage*>(arguments_.tensors.output);
    const bool pixels_first = p.layout == Layout::kNCHW;
    const bool vectors = !pixels_first && p.output_stride % kVector == 0;
    constexpr int32_t kGroups = kOut / kVector;
    for (int32_t i = rank_ * kThreads + thread(); i < kPixels * kGroups; i += arguments_.split * kThreads) {
      const int32_t pixel = pixels_first ? i % kPixels : i / kGroups;
      const int32_t out = (pixels_first ? i / kPixels : i % kGroups) * kVector;
      const int32_t channel = out_first_ + out;
      const int32_t y = tile_y_ + pixel / Shape::kColumns;
      const int32_t x = tile_x_ + pixel % Shape::kColumns;
      if (y >= p.out_height || x >= p.out_width || channel >= p.out_channels) continue;
      float values[kVector / 4][4];
#pragma unroll
      for (int32_t j = 0; j < kVector / 4; ++j) total(pixel, out + 4 * j, values[j]);
      if (vectors && channel + kVector <= p.out_channels) {
        Vec16 packed;
#pragma unroll
        for (int32_t j = 0; j < 4; ++j) {
          if constexpr (Shape::kBytes == 2) {
            packed.words[j] = pack<T>(values[j / 2][j % 2 * 2], values[j / 2][j % 2 * 2 + 1]);
          } else {
            packed.words[j] = bitsOf(values[0][j]);
          }
        }
        const int64_t index = ((static_cast<int64_t>(image_) * p.out_height + y) * p.out_width + x) * p.output_stride;
        store(reinterpret_cast<char*>(output + index + channel), packed);
        continue;
      }
#pragma unroll
      for (int32_t j = 0; j < kVector; ++j) {
        if (channel + j >= p.out_channels) break;
        output[elementIndex(p.layout, p.output_stride, p.out_channels, p.out_height, p.out_width, image_, channel + j,
                            y, x)] = T::store(values[j / 4][j % 4]);
      }
    }
  }

 public:
  static DCNV2_DEVICE void run(const TileArguments& arguments) {
    const Tile tile(arguments);
    const int32_t taps = Shape::taps(arguments.problem);
    Sums sums = {};
    Step step = tile.stepAt(tile.begin_);
    if (tile.begin_ < tile.end_) tile.loadWeights(step, 0);
    tile.prepareSamples();
    barrier();
    for (int32_t i = tile.begin_; i < tile.end_; ++i) {
      const int32_t stage = (i - tile.begin_) & 1;
      const int32_t slot =
          tile.slot_per_step_ ? i - tile.begin_ : tile.offsetGroup(step.channel) * taps + step.tap;
      tile.gather(step, slot, tile.samples(stage));
      if constexpr (kWarpgroups) warpgroupWait();
      copyAsyncWait();
      if constexpr (kWarpgroups) warpgroupFence();
      barrier();
      multiplyStep(sums, tile.samples(stage), tile.weights(stage));
      step.advance(taps);
      if (i + 1 < tile.end_) tile.loadWeights(step, stage ^ 1);
    }
    if constexpr (kWarpgroups) warpgroupWait();
    barrier();
    tile.shareSums(sums);
    if (arguments.split == 1) {
      barrier();
    } else {
      clusterBarrier();
    }
    tile.write();
    // Nobody may leave while another block of the cluster still reads its sums.
    if (arguments.split > 1) clusterBarrier();
  }
};

}  // namespace dcnv2
