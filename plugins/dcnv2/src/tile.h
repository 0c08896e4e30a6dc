// DCNv2 on tensor cores, as one implicit GEMM: out[channel, pixel] = weight[channel, k] * sample[k, pixel],
// where k runs over (channel, tap). A block gathers the samples of its pixels straight into the shared-memory
// tile that the tensor cores read; nothing of the sampled image ever goes to global memory.
#pragma once

#include "blend.h"
#include "device.h"
#include "sampling.h"
#include "tile_product.h"
#include "tile_shape.h"

namespace dcnv2 {

template <class T, int32_t kOut, int32_t kPixels, int32_t kWarps, bool kWarpgroups>
class Tile : TileShape<T, kOut, kPixels, kWarps> {
  using Shape = TileShape<T, kOut, kPixels, kWarps>;
  using Product = TileProduct<T, kOut, kPixels, kWarps, kWarpgroups>;
  using Storage = typename T::Storage;
  using Shape::kDepth;
  using Shape::kRowBytes;
  using Shape::kThreads;
  using Shape::kVector;

  const TileArguments& arguments_;
  const Problem& problem_;
  int32_t rank_, out_first_, tile_x_, tile_y_, image_;
  int32_t begin_, end_;  // steps
  bool slot_per_step_;

  // This thread's part in a gather: one vector of channels of every fourth pixel of the warp, so that eight
  // threads read and write 128 bytes together.
  static constexpr int32_t kGathers = kPixels / 4 / kWarps;
  static constexpr int32_t kAtOnce = kGathers < 2 ? 1 : 2;
  static constexpr int32_t kBatches = kGathers / kAtOnce;
  int32_t vector_channel_;
  uint32_t right_, down_;  // bytes to the neighbouring pixels
  const char* source_;
  int32_t first_;              // pixel
  int32_t sample_targets_[2];  // of even and of odd gathers
  // This thread's part of the weights: one vector of every kWeightRows-th row.
  static constexpr int32_t kWeightRows = kThreads / 8;
  const char* weight_source_;
  int64_t weight_row_bytes_;
  int32_t weight_target_;

  DCNV2_DEVICE explicit Tile(const TileArguments& arguments)
      : arguments_(arguments), problem_(arguments.problem) {
    const Problem& p = problem_;
    const int32_t split = 1 << arguments.log_split;
    rank_ = block() & (split - 1);
    int32_t index = block() >> arguments.log_split;
    out_first_ = splitOff(index, arguments.out_tiles) * kOut;
    tile_x_ = splitOff(index, arguments.column_tiles) * Shape::kColumns;
    tile_y_ = splitOff(index, arguments.row_tiles) * Shape::kRows;
    image_ = index;
    begin_ = (arguments.steps * rank_) >> arguments.log_split;
    end_ = (arguments.steps * (rank_ + 1)) >> arguments.log_split;
    slot_per_step_ = end_ - begin_ <= arguments.taps.value * p.offset_groups;

    const int32_t vector = thread() % 8;
    vector_channel_ = vector * kVector;
    const int32_t first = thread() / 32 * kGathers * 4 + thread() % 32 / 8;
    const int32_t pixel_bytes = p.input_stride * Shape::kBytes;
    right_ = static_cast<uint32_t>(p.width > 1 ? pixel_bytes : 0);
    down_ = static_cast<uint32_t>(p.height > 1 ? p.width * pixel_bytes : 0);
    source_ = whole(static_cast<const char*>(arguments.tensors.input) +
                    static_cast<int64_t>(image_) * p.height * p.width * pixel_bytes);
    first_ = first;
    sample_targets_[0] = Product::swizzle(first, vector);
    sample_targets_[1] = Product::swizzle(first + 4, vector);

    const int32_t row = thread() / 8;
    weight_row_bytes_ = static_cast<int64_t>(arguments.taps.value) * p.channels * Shape::kBytes;
    weight_source_ = whole(static_cast<const char*>(arguments.tensors.weight) +
                           (out_first_ + row) * weight_row_bytes_ + vector * 16);
    weight_target_ = Product::swizzle(row, vector);
  }

  // The remainder; `index` becomes the quotient.
  static DCNV2_DEVICE int32_t splitOff(int32_t& index, const Divisor& divisor) {
    const int32_t quotient = divisor.divide(index);
    const int32_t remainder = index - quotient * divisor.value;
    index = quotient;
    return remainder;
  }

  static DCNV2_DEVICE char* samples(int32_t stage) { return sharedMemory() + stage * Shape::kStageBytes; }
  static DCNV2_DEVICE char* weights(int32_t stage) { return samples(stage) + kPixels * kRowBytes; }
  static DCNV2_DEVICE char* kept() { return sharedMemory() + 2 * Shape::kStageBytes; }

  // One step of the depth: taps are innermost, so that a block reads the same pixels again while they are
  // cached.
  struct Step {
    int32_t tap, channel;
    int32_t slot;  // of its samples
  };
  DCNV2_DEVICE Step stepAt(int32_t index) const {
    const int32_t chunk = arguments_.taps.divide(index);
    const int32_t tap = index - chunk * arguments_.taps.value;
    const int32_t channel = chunk * kDepth;
    return {tap, channel,
            slot_per_step_ ? index - begin_ : offsetGroup(channel) * arguments_.taps.value + tap};
  }
  DCNV2_DEVICE void advance(Step& step) const {
    ++step.slot;
    if (++step.tap < arguments_.taps.value) return;
    step.tap = 0;
    step.channel += kDepth;
    if (!slot_per_step_) step.slot = offsetGroup(step.channel) * arguments_.taps.value;
  }
  DCNV2_DEVICE int32_t offsetGroup(int32_t channel) const {
    return problem_.offset_groups == 1 ? 0 : channel / (problem_.channels / problem_.offset_groups);
  }

  // A sample that this thread prepares. Threads take neighbours in the order in which the offsets lie in
  // memory: of a pixel, or of a row.
  struct Item {
    int32_t slot, pixel, y, x;
    int32_t group, tap, kernel_y, kernel_x;
    bool kept, inside;
  };
  DCNV2_DEVICE Item itemAt(int32_t index) const {
    const Problem& p = problem_;
    Item item;
    item.pixel = index;
    item.slot = index / kPixels;
    if (p.offset_layout == Layout::kNHWC) {
      item.slot = splitOff(item.pixel, arguments_.slots);
    } else {
      item.pixel = index % kPixels;
    }
    item.kept = item.pixel < kPixels && item.slot < (slot_per_step_ ? end_ - begin_ : arguments_.slots.value);
    item.y = tile_y_ + item.pixel / Shape::kColumns;
    item.x = tile_x_ + item.pixel % Shape::kColumns;
    item.inside = item.kept && item.y < p.out_height && item.x < p.out_width;
    item.group = slot_per_step_ ? begin_ + item.slot : item.slot;
    item.tap = splitOff(item.group, arguments_.taps);
    if (slot_per_step_) item.group = offsetGroup(item.group * kDepth);
    item.kernel_y = arguments_.kernel_w.divide(item.tap);
    item.kernel_x = item.tap - item.kernel_y * p.kernel_w;
    return item;
  }

  DCNV2_DEVICE void prepareSamples() const {
    const Offsets<T> offsets(problem_, arguments_.tensors, image_);
    const int32_t count = arguments_.slots.value * kPixels;
    if (!offsets.inPairs()) {
#pragma unroll 2
      for (int32_t i = thread(); i < count; i += kThreads) {
        const Item item = itemAt(i);
        Sample at = {};
        if (item.inside) {
          at = offsets.sampleAt(item.group, item.tap, item.kernel_y, item.kernel_x, item.y, item.x);
        }
        keepSample(item, at);
      }
      return;
    }
    // As many as a thread has of a 3x3 kernel in the usual tile: read all, then use them.
    constexpr int32_t kAhead = 5;
    for (int32_t first = thread(); first < count; first += kAhead * kThreads) {
      typename Offsets<T>::Raw raw[kAhead];
#pragma unroll
      for (int32_t i = 0; i < kAhead; ++i) {
        const Item item = itemAt(first + i * kThreads);
        raw[i] = {};
        if (item.inside) raw[i] = offsets.read(item.group, item.tap, item.y, item.x);
      }
#pragma unroll
      for (int32_t i = 0; i < kAhead; ++i) {
        const Item item = itemAt(first + i * kThreads);
        Sample at = {};
        if (item.inside) at = offsets.sampleAt(raw[i], item.kernel_y, item.kernel_x, item.y, item.x);
        keepSample(item, at);
      }
    }
  }

  DCNV2_DEVICE void keepSample(const Item& item, const Sample& at) const {
    if (!item.kept) return;
    const Problem& p = problem_;
    const auto offset = static_cast<uint32_t>((at.top * p.width + at.left) * p.input_stride * Shape::kBytes);
    char* slot_offsets = kept() + item.slot * Shape::kSlotBytes;
    char* target = slot_offsets + kPixels * 4 + item.pixel * Shape::kWeightBytes;
    reinterpret_cast<uint32_t*>(slot_offsets)[item.pixel] = offset;
    if constexpr (Shape::kBytes == 2) {
      store(target, Vec8{{pack<T>(at.weights[0], at.weights[1]), pack<T>(at.weights[2], at.weights[3])}});
    } else {
      store(target, Vec16{{bitsOf(at.weights[0]), bitsOf(at.weights[1]), bitsOf(at.weights[2]),
                           bitsOf(at.weights[3])}});
    }
  }

  DCNV2_DEVICE void loadWeights(const Step& step, int32_t stage) const {
    const Problem& p = problem_;
    const char* from = weight_source_ + (step.tap * p.channels + step.channel) * Shape::kBytes;
    char* to = weights(stage) + weight_target_;
    const int32_t rows = step.channel + vector_channel_ < p.channels ? p.out_channels - out_first_ : 0;
#pragma unroll
    for (int32_t i = 0; i < kOut / kWeightRows; ++i) {
      const bool valid = thread() / 8 + i * kWeightRows < rows;
      if constexpr (Shape::kBytes == 2) {
        copyAsync(to, from, valid);
      } else {
        Vec16 loaded = {};
        if (valid) loaded = loadGlobal(from);
        for (uint32_t& word : loaded.words) word = roundToTf32(floatOf(word));
        store(to, loaded);
      }
      from += kWeightRows * weight_row_bytes_;
      to += kWeightRows * kRowBytes;
    }
  }

  // What one thread has in flight: the corners of a vector of each of kAtOnce pixels, and their weights.
  struct Batch {
    Vec16 corners[kAtOnce][4];
    CornerWeights<T> weights[kAtOnce];
  };

  DCNV2_DEVICE void load(Batch& batch, const Step& step, int32_t index) const {
    // Beyond the last channel the weights are zero, and any finite sample does.
    const int32_t channel =
        step.channel + (step.channel + vector_channel_ < problem_.channels ? vector_channel_ : 0);
    const char* source = source_ + channel * Shape::kBytes;
    const char* offsets = kept() + step.slot * Shape::kSlotBytes;
    const char* weights = offsets + kPixels * 4;
#pragma unroll
    for (int32_t i = 0; i < kAtOnce; ++i) {
      const int32_t pixel = first_ + 4 * (index * kAtOnce + i);
      const uint32_t offset = reinterpret_cast<const uint32_t*>(offsets)[pixel];
      loadShared(batch.weights[i], weights + pixel * Shape::kWeightBytes);
      const char* top = whole(source + offset);
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
      Vec16 blended = blend<T>(batch.corners[i], batch.weights[i]);
      // Its corners are any four pixels, and zero times infinity is not zero.
      if (allZero(batch.weights[i])) blended = {};
      store(tile + sample_targets_[gather % 2] + gather / 2 * 8 * kRowBytes, blended);
    }
  }

  // Sums of `kVector` channels of a pixel over the cluster, always in the same order.
  DCNV2_DEVICE void total(int32_t pixel, int32_t out, float (&sums)[kVector]) const {
    const char* own = sharedMemory() + (pixel * Shape::kPitch + out) * static_cast<int32_t>(sizeof(float));
#pragma unroll
    for (int32_t i = 0; i < kVector; i += 4) {
      Vec16 part;
      if (arguments_.log_split == 0) {
        loadShared(part, own + 4 * i);
      } else {
        part = loadCluster(own + 4 * i, 0);
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

  // Each block of the cluster writes a part of the pixels.
  DCNV2_DEVICE void write() const {
    const Problem& p = problem_;
    constexpr int32_t kGroups = kOut / kVector;
    const auto* bias_values = static_cast<const Storage*>(arguments_.tensors.bias);
    auto* output = static_cast<Storage*>(arguments_.tensors.output);
    const bool nhwc = p.layout == Layout::kNHWC;
    const bool vectors = nhwc && p.output_stride % kVector == 0 && p.out_channels % kVector == 0;
    const int32_t first = rank_ * kThreads + thread();
    const int32_t out = first % kGroups * kVector;
    const int32_t channel = out_first_ + out;
    const int32_t count = p.out_channels - channel;
    if (count <= 0) return;
    float bias[kVector];
#pragma unroll
    for (int32_t i = 0; i < kVector; ++i) {
      bias[i] = bias_values != nullptr && i < count ? T::load(bias_values[channel + i]) : 0.0f;
    }
    for (int32_t pixel = first / kGroups; pixel < kPixels;
         pixel += (kThreads / kGroups) << arguments_.log_split) {
      const int32_t y = tile_y_ + pixel / Shape::kColumns;
      const int32_t x = tile_x_ + pixel % Shape::kColumns;
      if (y >= p.out_height || x >= p.out_width) continue;
      float values[kVector];
      total(pixel, out, values);
#pragma unroll
      for (int32_t i = 0; i < kVector; ++i) {
        values[i] += bias[i];
        if (p.relu && values[i] < 0.0f) values[i] = 0.0f;
      }
      if (vectors) {
        const int64_t index =
            ((static_cast<int64_t>(image_) * p.out_height + y) * p.out_width + x) * p.output_stride;
        store(reinterpret_cast<char*>(output + index + channel), packVector<T>(values));
        continue;
      }
#pragma unroll
      for (int32_t i = 0; i < kVector; ++i) {
        if (i >= count) break;
        output[elementIndex(p.layout, p.output_stride, p.out_channels, p.out_height, p.out_width, image_,
                            channel + i, y, x)] = T::store(values[i]);
      }
    }
  }

 public:
  static DCNV2_DEVICE void run(const TileArguments& arguments) {
    const Tile tile(arguments);
    typename Product::Sums sums;
    if constexpr (!kWarpgroups) {
      for (auto& block_sums : sums) {
        for (auto& tile_sums : block_sums) {
          for (float& sum : tile_sums) sum = 0.0f;
        }
      }
    }
    Step step = tile.stepAt(tile.begin_);
    tile.loadWeights(step, 0);
    tile.prepareSamples();
    barrier();
    Batch batch;
    tile.load(batch, step, 0);
    for (int32_t i = tile.begin_; i < tile.end_; ++i) {
      const int32_t stage = (i - tile.begin_) & 1;
#pragma unroll
      for (int32_t j = 0; j < kBatches; ++j) {
        if (j > 0) tile.load(batch, step, j);
        tile.blendInto(samples(stage), batch, j);
      }
      tile.advance(step);
      if constexpr (kWarpgroups) warpgroupWait();
      copyAsyncWait();
      if constexpr (kWarpgroups) warpgroupFence();
      // In flight while the block meets.
      if (i + 1 < tile.end_) tile.load(batch, step, 0);
      barrier();
      Product::add(sums, samples(stage), weights(stage), i == tile.begin_);
      if (i + 1 < tile.end_) tile.loadWeights(step, stage ^ 1);
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
