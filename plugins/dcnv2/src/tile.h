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
  // Of a block: which of its cluster's parts of the depth it computes, and of which tile.
  struct Place {
    int32_t rank, out_first, x, y, image;
  };
  const Place place_;
  int32_t begin_, steps_;
  bool slot_per_step_;
  int32_t slots_;  // of samples that it fills

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
  uint32_t weight_source_;  // bytes
  int32_t weight_target_;

  DCNV2_DEVICE explicit Tile(const TileArguments& arguments)
      : arguments_(arguments), problem_(arguments.problem), place_(placeOf(block())) {
    const Problem& p = problem_;
    begin_ = (arguments.steps * place_.rank) >> arguments.log_split;
    steps_ = ((arguments.steps * (place_.rank + 1)) >> arguments.log_split) - begin_;
    slot_per_step_ = steps_ <= arguments.taps.value * p.offset_groups;
    slots_ = slot_per_step_ ? steps_ : arguments.slots.value;

    const int32_t vector = thread() % 8;
    vector_channel_ = vector * kVector;
    first_ = thread() / 32 * kGathers * 4 + thread() % 32 / 8;
    const int32_t pixel_bytes = p.input_stride * Shape::kBytes;
    right_ = static_cast<uint32_t>(p.width > 1 ? pixel_bytes : 0);
    down_ = static_cast<uint32_t>(p.height > 1 ? p.width * pixel_bytes : 0);
    source_ = whole(static_cast<const char*>(arguments.tensors.input) +
                    static_cast<int64_t>(place_.image) * p.height * p.width * pixel_bytes);
    sample_targets_[0] = Product::swizzle(first_, vector);
    sample_targets_[1] = Product::swizzle(first_ + 4, vector);

    const int32_t row = thread() / 8;
    weight_source_ = static_cast<uint32_t>(place_.out_first + row) * weightRowBytes() + vector * 16;
    weight_target_ = Product::swizzle(row, vector);
  }

  DCNV2_DEVICE Place placeOf(int32_t index) const {
    Place place;
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

  // One step of the depth: taps are innermost, so that a block reads the same pixels again while they are
  // cached.
  struct Step {
    int32_t tap, channel;
    int32_t slot;     // of its samples
    uint32_t vector;  // bytes from a pixel to this thread's channels
  };
  DCNV2_DEVICE Step firstStep() const {
    Step step;
    const int32_t chunk = arguments_.taps.divide(begin_);
    step.tap = begin_ - chunk * arguments_.taps.value;
    setChannel(step, chunk * kDepth);
    step.slot = slot_per_step_ ? 0 : step.slot + step.tap;
    return step;
  }
  DCNV2_DEVICE void advance(Step& step) const {
    const int32_t slot = ++step.slot;
    if (++step.tap < arguments_.taps.value) return;
    step.tap = 0;
    setChannel(step, step.channel + kDepth);
    if (slot_per_step_) step.slot = slot;
  }
  // The slot becomes the first of the channel's offset group.
  DCNV2_DEVICE void setChannel(Step& step, int32_t channel) const {
    step.channel = channel;
    step.slot = offsetGroup(channel / kDepth) * arguments_.taps.value;
    // Beyond the last channel the weights are zero, and any finite sample does.
    step.vector = static_cast<uint32_t>((channel + (hasWeights(step) ? vector_channel_ : 0)) * Shape::kBytes);
  }
  DCNV2_DEVICE bool hasWeights(const Step& step) const {
    return step.channel + vector_channel_ < problem_.channels;
  }
  DCNV2_DEVICE int32_t offsetGroup(int32_t chunk) const { return arguments_.group_chunks.divide(chunk); }

  // A sample that this thread prepares: where it is kept, and where it lies without its offset.
  struct Item {
    uint32_t slot, pixel;
    int32_t number, out_pixel;  // of its offsets
    float y, x;
    bool inside;
  };
  // Threads take neighbours in the order in which the offsets lie in memory: of a pixel, or of a row.
  template <Layout kLayout>
  DCNV2_DEVICE Item itemAt(int32_t index) const {
    const Problem& p = problem_;
    Item item;
    int32_t slot = index;
    if (kLayout == Layout::kNHWC) {
      item.pixel = static_cast<uint32_t>(arguments_.slots.divide(index));
      slot -= static_cast<int32_t>(item.pixel) * arguments_.slots.value;
    } else {
      item.pixel = static_cast<uint32_t>(index) % kPixels;
      slot = static_cast<int32_t>(static_cast<uint32_t>(index) / kPixels);
    }
    item.slot = static_cast<uint32_t>(slot);
    const int32_t y = place_.y + static_cast<int32_t>(item.pixel / Shape::kColumns);
    const int32_t x = place_.x + static_cast<int32_t>(item.pixel % Shape::kColumns);
    item.inside = y < p.out_height && x < p.out_width && slot < slots_;
    item.out_pixel = y * p.out_width + x;
    int32_t group = slot_per_step_ ? begin_ + slot : slot;
    const int32_t tap = splitOff(group, arguments_.taps);
    if (slot_per_step_) group = offsetGroup(group);
    item.number = group * arguments_.taps.value + tap;
    const int32_t kernel_y = arguments_.kernel_w.divide(tap);
    const int32_t kernel_x = tap - kernel_y * p.kernel_w;
    item.y = Offsets<T>::position(y, p.stride_h, p.padding_h, kernel_y, p.dilation_h);
    item.x = Offsets<T>::position(x, p.stride_w, p.padding_w, kernel_x, p.dilation_w);
    return item;
  }

  DCNV2_DEVICE void prepareSamples() const {
    const Offsets<T> offsets(problem_, arguments_.tensors, place_.image);
    const int32_t count = arguments_.slots.value * kPixels;
    if constexpr (Shape::kBytes == 2) {
      if (offsets.inPairs()) return preparePairs(offsets, count);
    }
    const bool nhwc = problem_.offset_layout == Layout::kNHWC;
#pragma unroll 2
    for (int32_t i = thread(); i < count; i += kThreads) {
      const Item item = nhwc ? itemAt<Layout::kNHWC>(i) : itemAt<Layout::kNCHW>(i);
      Sample at = {};
      if (item.inside) at = offsets.sampleAt(item.number, item.out_pixel, item.y, item.x);
      keepSample(item, at);
    }
  }
  DCNV2_DEVICE void preparePairs(const Offsets<T>& offsets, int32_t count) const {
    // As many as a thread has of a 3x3 kernel in the usual tile: read all, then use them.
    constexpr int32_t kAhead = 5;
#pragma unroll 1
    for (int32_t first = thread(); first < count; first += kAhead * kThreads) {
      Item items[kAhead];
      typename Offsets<T>::Pair pairs[kAhead];
#pragma unroll
      for (int32_t i = 0; i < kAhead; ++i) {
        items[i] = itemAt<Layout::kNHWC>(first + i * kThreads);
        pairs[i] = {};
        if (items[i].inside && first + i * kThreads < count) {
          pairs[i] = offsets.read(items[i].number, items[i].out_pixel);
        }
      }
#pragma unroll
      for (int32_t i = 0; i < kAhead; ++i) {
        if (first + i * kThreads >= count) break;
        keepSample(items[i], offsets.sampleAt(pairs[i], items[i].y, items[i].x));
      }
    }
  }

  DCNV2_DEVICE void keepSample(const Item& item, const Sample& at) const {
    char* slot_offsets = kept() + item.slot * Shape::kSlotBytes;
    char* target = slot_offsets + kPixels * 4 + item.pixel * Shape::kWeightBytes;
    reinterpret_cast<uint32_t*>(slot_offsets)[item.pixel] =
        static_cast<uint32_t>(at.top * problem_.width + at.left) * (problem_.input_stride * Shape::kBytes);
    if constexpr (Shape::kBytes == 2) {
      store(target, Vec8{{pack<T>(at.weights[0], at.weights[1]), pack<T>(at.weights[2], at.weights[3])}});
    } else {
      store(target, Vec16{{bitsOf(at.weights[0]), bitsOf(at.weights[1]), bitsOf(at.weights[2]),
                           bitsOf(at.weights[3])}});
    }
  }

  DCNV2_DEVICE void loadWeights(const Step& step, int32_t stage) const {
    const Problem& p = problem_;
    uint32_t from =
        weight_source_ + static_cast<uint32_t>(step.tap * p.channels + step.channel) * Shape::kBytes;
    char* to = weights(stage) + weight_target_;
    const int32_t rows = hasWeights(step) ? p.out_channels - place_.out_first : 0;
    // TF32 goes through registers, which are scarce.
#pragma unroll(Shape::kBytes == 2 ? kOut / kWeightRows : 2)
    for (int32_t i = 0; i < kOut / kWeightRows; ++i) {
      const bool valid = thread() / 8 + i * kWeightRows < rows;
      const char* vector = static_cast<const char*>(arguments_.tensors.weight) + from;
      if constexpr (Shape::kBytes == 2) {
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
      if (allZero(batch.weights[i])) {
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
    const auto* values = static_cast<const Storage*>(arguments_.tensors.bias);
    const int32_t count = values == nullptr || place_.rank > 0 ? 0 : problem_.out_channels;
    return Product::bias(values, place_.out_first, count);
  }

  // Each block of the cluster writes a part of the pixels.
  DCNV2_DEVICE void write() const {
    const Problem& p = problem_;
    // Computed again: registers are scarce between here and there.
    const Place place = placeOf(whole(block()));
    constexpr int32_t kGroups = kOut / kVector;
    auto* output = static_cast<Storage*>(arguments_.tensors.output);
    const bool nhwc = p.layout == Layout::kNHWC;
    const bool vectors = nhwc && p.output_stride % kVector == 0 && p.out_channels % kVector == 0;
    const int32_t out = thread() % kGroups * kVector;
    const int32_t channel = place.out_first + out;
    const int32_t count = p.out_channels - channel;
    if (count <= 0) return;
    Storage* image =
        output + static_cast<int64_t>(place.image) * p.out_height * p.out_width * p.output_stride + channel;
    constexpr uint32_t kTogether = kThreads / kGroups;
    for (uint32_t pixel = place.rank * kTogether + thread() / kGroups; pixel < kPixels;
         pixel += kTogether << arguments_.log_split) {
      const int32_t y = place.y + static_cast<int32_t>(pixel / Shape::kColumns);
      const int32_t x = place.x + static_cast<int32_t>(pixel % Shape::kColumns);
      if (y >= p.out_height || x >= p.out_width) continue;
      float values[kVector];
      total(static_cast<int32_t>(pixel), out, values);
      if (p.relu) {
#pragma unroll
        for (int32_t i = 0; i < kVector; ++i) values[i] = values[i] < 0.0f ? 0.0f : values[i];
      }
      if (vectors) {
        const int64_t index = static_cast<int64_t>(y * p.out_width + x) * p.output_stride;
        store(reinterpret_cast<char*>(image + index), packVector<T>(values));
        continue;
      }
#pragma unroll
      for (int32_t i = 0; i < kVector; ++i) {
        if (i >= count) break;
        output[elementIndex(p.layout, p.output_stride, p.out_channels, p.out_height, p.out_width, place.image,
                            channel + i, y, x)] = T::store(values[i]);
      }
    }
  }

 public:
  static DCNV2_DEVICE void run(const TileArguments& arguments) {
    const Tile tile(arguments);
    Step step = tile.firstStep();
    tile.loadWeights(step, 0);
    const auto bias = tile.bias();
    tile.prepareSamples();
    const auto operands = Product::operands(samples(0), weights(0));
    barrier();
    Batch batch;
    tile.load(batch, step, 0);
    typename Product::Sums sums;
    Product::start(sums, bias);
    int32_t stage = 0;
    for (int32_t left = tile.steps_; left > 0; --left) {
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
