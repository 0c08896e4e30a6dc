// The depth of a tile: what each step of a block reads.
#pragma once

#include "device.h"
#include "tile_shape.h"

namespace dcnv2 {

// A step is a row of 128 bytes: the channels of one tap, or of several taps where a pixel has less than that.
// Taps are innermost, so that a block reads the same pixels again while they are cached.
template <class Shape>
class TileDepth {
  const TileArguments& arguments_;
  const Problem& problem_;
  int32_t vector_;  // of a row: this thread's

 public:
  const int32_t begin, count;
  const TileArguments::Samples samples;

  DCNV2_DEVICE TileDepth(const TileArguments& arguments, int32_t rank)
      : arguments_(arguments),
        problem_(arguments.problem),
        vector_(thread() % 8),
        begin(arguments.firstStep(rank)),
        count(arguments.firstStep(rank + 1) - begin),
        samples(arguments.samples(begin, count)) {}

  struct Step {
    int32_t tap, channel;  // where the row begins; if narrow: its number and zero
    int32_t slot;          // of this thread's sample
    uint32_t vector;       // bytes from a pixel to this thread's channels
  };
  DCNV2_DEVICE Step first() const {
    Step step;
    if (arguments_.narrow) {
      step.tap = begin;
      step.channel = 0;
      setNarrow(step);
      return step;
    }
    const int32_t chunk = arguments_.taps.divide(begin);
    step.tap = begin - chunk * arguments_.taps.value;
    setChannel(step, chunk * Shape::kDepth);
    step.slot = samples.per_step ? 0 : step.slot + step.tap;
    return step;
  }
  DCNV2_DEVICE void advance(Step& step) const {
    const int32_t slot = ++step.slot;
    ++step.tap;
    if (arguments_.narrow) return setNarrow(step);
    if (step.tap < arguments_.taps.value) return;
    step.tap = 0;
    setChannel(step, step.channel + Shape::kDepth);
    if (samples.per_step) step.slot = slot;
  }

  // Whether this thread's vector of the step has weights; others are zero, and any finite sample does.
  DCNV2_DEVICE bool hasWeights(const Step& step) const {
    if (arguments_.narrow) return step.tap * 8 + vector_ < arguments_.taps.value * arguments_.vectors;
    return step.channel + vector_ * Shape::kVector < problem_.channels;
  }
  // Bytes to the step's weights in those of an output channel.
  DCNV2_DEVICE uint32_t weights(const Step& step) const {
    if (arguments_.narrow) return static_cast<uint32_t>(step.tap) * Shape::kRowBytes;
    return static_cast<uint32_t>(step.tap * problem_.channels + step.channel) * Shape::kBytes;
  }
  DCNV2_DEVICE int32_t offsetGroup(int32_t chunk) const { return arguments_.group.divide(chunk); }

 private:
  // The slot becomes the first of the channel's offset group.
  DCNV2_DEVICE void setChannel(Step& step, int32_t channel) const {
    step.channel = channel;
    const int32_t vector = hasWeights(step) ? vector_ : 0;
    const int32_t group = arguments_.spread ? arguments_.group.divide(channel / Shape::kVector + vector)
                                            : offsetGroup(channel / Shape::kDepth);
    step.slot = group * arguments_.taps.value - samples.first;
    step.vector = Shape::channelBytes(problem_, channel + vector * Shape::kVector);
  }
  DCNV2_DEVICE void setNarrow(Step& step) const {
    const int32_t last = arguments_.taps.value * arguments_.vectors - 1;
    const int32_t number = hasWeights(step) ? step.tap * 8 + vector_ : last;
    const int32_t tap = arguments_.row.divide(number);
    const int32_t vector = number - tap * arguments_.row.value;
    const int32_t group = arguments_.spread ? arguments_.group.divide(vector) : 0;
    step.slot = group * arguments_.taps.value + tap - samples.first;
    step.vector = Shape::channelBytes(problem_, vector * Shape::kVector);
  }
};

}  // namespace dcnv2
