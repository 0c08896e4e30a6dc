// DCNv2 on tensor cores, as one implicit GEMM: out[channel, pixel] = weight[channel, k] * sample[k, pixel],
// where k runs over (channel, tap). A block gathers the samples of its pixels straight into the shared-memory
// tile that the tensor cores read; nothing of the sampled image ever goes to global memory.
#pragma once

#include <type_traits>

#include "blend.h"
#include "tile_output.h"
#include "tile_product.h"
#include "tile_samples.h"

namespace dcnv2 {

template <class T, int32_t kOut, int32_t kPixels, int32_t kWarps, bool kWarpgroups>
class Tile : TileShape<T, kOut, kPixels, kWarps> {
  using Shape = TileShape<T, kOut, kPixels, kWarps>;
  using Product = TileProduct<T, kOut, kPixels, kWarps, kWarpgroups>;
  using Depth = TileDepth<Shape>;
  using Step = typename Depth::Step;
  // Integer sums are scaled, and their bias added, as they are written.
  static constexpr bool kScaled = std::is_same_v<T, Int8>;
  using Shape::kRowBytes;
  using Shape::kThreads;
  using Shape::kVector;

  const TileArguments& arguments_;
  const Problem& problem_;
  const TilePlace place_;
  const Depth depth_;

  // This thread's part in a gather: one vector of channels of every fourth pixel of the warp, so that eight
  // threads read and write 128 bytes together.
  static constexpr int32_t kGathers = kPixels / 4 / kWarps;
  static constexpr int32_t kAtOnce = kGathers < 2 ? 1 : 2;
  static constexpr int32_t kBatches = kGathers / kAtOnce;
  uint32_t right_, down_;  // bytes to the neighbouring pixels
  const char* source_;
  int32_t first_;              // pixel
  int32_t sample_targets_[2];  // of even and of odd gathers
  // This thread's part of the weights: one vector of every kWeightRows-th row.
  static constexpr int32_t kWeightRows = kThreads / 8;
  uint32_t weight_source_;  // bytes
  int32_t weight_target_;

  DCNV2_DEVICE explicit Tile(const TileArguments& arguments)
      : arguments_(arguments),
        problem_(arguments.problem),
        place_(placeOf(block())),
        depth_(arguments, place_.rank) {
    const Problem& p = problem_;
    const int32_t vector = thread() % 8;
    first_ = thread() / 32 * kGathers * 4 + thread() % 32 / 8;
    const int32_t pixel_bytes = Shape::pixelBytes(p);
    right_ = static_cast<uint32_t>(p.width > 1 ? pixel_bytes : 0);
    down_ = static_cast<uint32_t>(p.height > 1 ? p.width * pixel_bytes : 0);
    source_ = whole(static_cast<const char*>(arguments.tensors.input) +
                    static_cast<int64_t>(place_.image) * p.height * p.width * p.input_stride * Shape::kBytes);
    sample_targets_[0] = Product::swizzle(first_, vector);
    sample_targets_[1] = Product::swizzle(first_ + 4, vector);

    const int32_t row = thread() / 8;
    weight_source_ = static_cast<uint32_t>(place_.out_first + row) * weightRowBytes() + vector * 16;
    weight_target_ = Product::swizzle(row, vector);
  }

  DCNV2_DEVICE TilePlace placeOf(int32_t index) const {
    TilePlace place;
    place.rank = index & ((1 << arguments_.log_split) - 1);
    index >>= arguments_.log_split;
    place.out_first = splitOff(index, arguments_.out_tiles) * kOut;
    place.x = splitOff(index, arguments_.column_tiles) * Shape::kColumns;
    place.y = splitOff(index, arguments_.row_tiles) * Shape::kRows;
    place.image = index;
    return place;
  }
  // The remainder; `index` becomes the quotient.
  static DCNV2_DEVICE int32_t splitOff(int32_t& index, const Divisor& divisor) {
    const int32_t quotient = divisor.divide(index);
    const int32_t remainder = index - quotient * divisor.value;
    index = quotient;
    return remainder;
  }

  DCNV2_DEVICE uint32_t weightRowBytes() const {
    return static_cast<uint32_t>(arguments_.taps.value * problem_.channels * Shape::kBytes);
  }

  static DCNV2_DEVICE char* samples(int32_t stage) { return sharedMemory() + stage * Shape::kStageBytes; }
  static DCNV2_DEVICE char* weights(int32_t stage) { return samples(stage) + kPixels * kRowBytes; }
  static DCNV2_DEVICE char* kept() { return sharedMemory() + 2 * Shape::kStageBytes; }

  DCNV2_DEVICE void loadWeights(const Step& step, int32_t stage) const {
    uint32_t from = weight_source_ + depth_.weights(step);
    char* to = weights(stage) + weight_target_;
    const int32_t rows = depth_.hasWeights(step) ? problem_.out_channels - place_.out_first : 0;
    // TF32 goes through registers, which are scarce.
#pragma unroll(Shape::kBytes < 4 ? kOut / kWeightRows : 2)
    for (int32_t i = 0; i < kOut / kWeightRows; ++i) {
      const bool valid = thread() / 8 + i * kWeightRows < rows;
      const char* vector = static_cast<const char*>(arguments_.tensors.weight) + from;
      if constexpr (Shape::kBytes < 4) {
        copyAsync(to, vector, valid);
      } else {
        Vec16 loaded = {};
        if (valid) loaded = loadGlobal(vector);
        for (uint32_t& word : loaded.words) word = roundToTf32(floatOf(word));
        store(to, loaded);
      }
      from += kWeightRows * weightRowBytes();
      to += kWeightRows * kRowBytes;
    }
  }

  // What one thread has in flight: the corners of a vector of each of kAtOnce pixels, and their weights.
  struct Batch {
    Vec16 corners[kAtOnce][4];
    CornerWeights<T> weights[kAtOnce];
  };

  DCNV2_DEVICE void load(Batch& batch, const Step& step, int32_t index) const {
    const char* offsets = kept() + step.slot * Shape::kSlotBytes;
    const char* weights = offsets + kPixels * 4;
#pragma unroll
    for (int32_t i = 0; i < kAtOnce; ++i) {
      const int32_t pixel = first_ + 4 * (index * kAtOnce + i);
      const uint32_t offset = reinterpret_cast<const uint32_t*>(offsets)[pixel];
      loadShared(batch.weights[i], weights + pixel * Shape::kWeightBytes);
      const char* top = whole(source_ + (offset + step.vector));
      const char* bottom = whole(top + down_);
      batch.corners[i][0] = loadGlobal(top);
      batch.corners[i][1] = loadGlobal(top + right_);
      batch.corners[i][2] = loadGlobal(bottom);
      batch.corners[i][3] = loadGlobal(bottom + right_);
    }
  }

  DCNV2_DEVICE void blendInto(char* tile, const Batch& batch, int32_t index) const {
#pragma unroll
    for (int32_t i = 0; i < kAtOnce; ++i) {
      const int32_t gather = index * kAtOnce + i;
      const Vec16 blended = blend<T>(batch.corners[i], batch.weights[i]);
      char* target = tile + sample_targets_[gather % 2] + gather / 2 * 8 * kRowBytes;
      // Its corners are any four pixels then, and zero times infinity is not zero.
      if (!kScaled && allZero(batch.weights[i])) {
        store(target, Vec16{});
      } else {
        store(target, blended);
      }
    }
  }

  // Sums of `kVector` channels of a pixel over the cluster, always in the same order.
  DCNV2_DEVICE void total(int32_t pixel, int32_t out, float (&sums)[kVector]) const {
    const char* own = sharedMemory() + (pixel * Shape::kPitch + out) * static_cast<int32_t>(sizeof(float));
#pragma unroll
    for (int32_t i = 0; i < kVector; i += 4) {
      Vec16 part;
      if (arguments_.log_split > 0) {
        part = loadCluster(own + 4 * i, 0);
      } else {
        loadShared(part, own + 4 * i);
      }
#pragma unroll
      for (int32_t j = 0; j < 4; ++j) sums[i + j] = floatOf(part.words[j]);
    }
    for (int32_t rank = 1; rank < 1 << arguments_.log_split; ++rank) {
#pragma unroll
      for (int32_t i = 0; i < kVector; i += 4) {
        const Vec16 part = loadCluster(own + 4 * i, rank);
#pragma unroll
        for (int32_t j = 0; j < 4; ++j) sums[i + j] += floatOf(part.words[j]);
      }
    }
  }

  // The first block of a cluster adds it for all.
  DCNV2_DEVICE typename Product::Bias bias() const {
    const auto* values = static_cast<const typename T::Storage*>(arguments_.tensors.bias);
    const int32_t count = kScaled || values == nullptr || place_.rank > 0 ? 0 : problem_.out_channels;
    return Product::bias(values, place_.out_first, count);
  }

  // Each block of the cluster writes a part of the pixels.
  DCNV2_DEVICE void write() const {
    const Problem& p = problem_;
    // Computed again: registers are scarce between here and there.
    const TilePlace place = placeOf(whole(block()));
    constexpr int32_t kGroups = kOut / kVector;
    const int32_t out = thread() % kGroups * kVector;
    const int32_t channel = place.out_first + out;
    const int32_t count = p.out_channels - channel;
    if (count <= 0) return;
    const Output<T> output(p, arguments_.tensors, place.image, channel);
    constexpr uint32_t kTogether = kThreads / kGroups;
    for (uint32_t pixel = place.rank * kTogether + thread() / kGroups; pixel < kPixels;
         pixel += kTogether << arguments_.log_split) {
      const int32_t y = place.y + static_cast<int32_t>(pixel / Shape::kColumns);
      const int32_t x = place.x + static_cast<int32_t>(pixel % Shape::kColumns);
      if (y >= p.out_height || x >= p.out_width) continue;
      float values[kVector];
      total(static_cast<int32_t>(pixel), out, values);
      output.write(values, y, x);
    }
  }

 public:
  static DCNV2_DEVICE void run(const TileArguments& arguments) {
    const Tile tile(arguments);
    Step step = tile.depth_.first();
    tile.loadWeights(step, 0);
    const auto bias = tile.bias();
    TileSamples<T, Shape>(arguments, tile.place_, tile.depth_, kept()).prepare();
    const auto operands = Product::operands(samples(0), weights(0));
    barrier();
    Batch batch;
    tile.load(batch, step, 0);
    typename Product::Sums sums;
    Product::start(sums, bias);
    int32_t stage = 0;
    for (int32_t left = tile.depth_.count; left > 0; --left) {
#pragma unroll
      for (int32_t j = 0; j < kBatches; ++j) {
        if (j > 0) tile.load(batch, step, j);
        tile.blendInto(samples(stage), batch, j);
      }
      tile.depth_.advance(step);
      if constexpr (kWarpgroups) warpgroupWait();
      copyAsyncWait();
      if constexpr (kWarpgroups) warpgroupFence();
      // In flight while the block meets.
      if (left > 1) tile.load(batch, step, 0);
      barrier();
      Product::add(sums, operands, stage * Shape::kStageBytes);
      stage ^= 1;
      if (left > 1) tile.loadWeights(step, stage);
    }
    if constexpr (kWarpgroups) warpgroupWait();
    barrier();
    Product::share(sums);
    if (arguments.log_split == 0) {
      barrier();
    } else {
      clusterBarrier();
    }
    tile.write();
    // Nobody may leave while another block of the cluster still reads its sums.
    if (arguments.log_split > 0) clusterBarrier();
  }
};

}  // namespace dcnv2
