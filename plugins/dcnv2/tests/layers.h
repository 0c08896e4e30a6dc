// Generated layers, and what they compute by the definition, in FP64.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "sampling.h"

namespace dcnv2 {

struct Case {
  Problem problem;
  std::vector<double> input, offset, mask, weight, bias;  // as their types hold them; [N, C, H, W] and so on
  std::vector<double> scale;                              // of INT8 alone
  bool has_mask;
};

template <class T>
double held(double value) {
  return static_cast<double>(T::load(T::store(static_cast<float>(value))));
}

inline double heldAs(DataType type, double value) {
  if (type == DataType::kHalf) return held<Half>(value);
  if (type == DataType::kBfloat16) return held<Bfloat16>(value);
  if (type == DataType::kInt8) return held<Int8>(value);
  return held<Float>(value);
}

// Whether height and width, and stride, padding and dilation of each, are all different, and there is an
// output, whose sides are then set.
inline bool lopsided(Problem& p) {
  const auto out = [](int32_t size, int32_t kernel, int32_t stride, int32_t padding, int32_t dilation) {
    const int32_t room = size + 2 * padding - dilation * (kernel - 1) - 1;
    return room < 0 ? 0 : room / stride + 1;
  };
  p.out_height = out(p.height, p.kernel_h, p.stride_h, p.padding_h, p.dilation_h);
  p.out_width = out(p.width, p.kernel_w, p.stride_w, p.padding_w, p.dilation_w);
  const auto differ = [](int32_t a, int32_t b, int32_t c) { return a != b && b != c && a != c; };
  return p.height != p.width && p.kernel_h != p.kernel_w && p.stride_h != p.stride_w &&
         p.padding_h != p.padding_w && p.dilation_h != p.dilation_w && p.out_height > 0 && p.out_width > 0 &&
         differ(p.stride_h, p.padding_h, p.dilation_h) && differ(p.stride_w, p.padding_w, p.dilation_w);
}

// Every second one is for the tensor-core kernel.
inline Case generate(std::mt19937& random, int32_t index) {
  const auto pick = [&](int32_t low, int32_t high) {
    return std::uniform_int_distribution<int32_t>(low, high)(random);
  };
  Case c = {};
  Problem& p = c.problem;
  p.type = p.output_type = static_cast<DataType>(index % 3);
  p.offset_type = pick(0, 1) ? DataType::kFloat : p.type;
  p.layout = p.output_layout = static_cast<Layout>(pick(0, 1));
  p.offset_layout = static_cast<Layout>(pick(0, 1));
  const bool tile = index % 2 == 0;
  p.batch = pick(0, 9) == 0 ? 0 : pick(1, 2);
  do {
    p.groups = tile ? 1 : pick(1, 3);
    p.offset_groups = pick(1, 3);
  } while (!tile && p.groups == p.offset_groups);
  p.channels = tile ? 8 * pick(1, 9) : p.groups * p.offset_groups * pick(1, 6);
  if (tile && p.offset_groups > 1) p.channels = 8 * (index % 4 == 0 ? 8 : pick(1, 5)) * p.offset_groups;
  p.out_channels = index % 4 == 0 ? 8 * pick(1, 9) : p.groups * pick(1, tile ? 70 : 9);
  const bool deep = index % 8 == 6;  // enough steps for a split by eight
  do {
    p.height = pick(1, 12);
    p.width = pick(1, 12);
    p.kernel_h = pick(deep ? 3 : 1, deep ? 4 : 3);
    p.kernel_w = pick(deep ? 3 : 1, deep ? 4 : 3);
    p.stride_h = pick(1, 3);
    p.stride_w = pick(1, 3);
    p.padding_h = pick(0, 3);
    p.padding_w = pick(0, 3);
    p.dilation_h = pick(1, 3);
    p.dilation_w = pick(1, 3);
  } while (!lopsided(p));
  p.packed_offset_mask = pick(0, 1);
  p.weight_ohwi = tile || pick(0, 1);
  p.relu = pick(0, 1);
  p.allow_tf32 = true;
  c.has_mask = p.packed_offset_mask || pick(0, 3) > 0;

  std::normal_distribution<double> normal;
  const auto fill = [&](std::vector<double>& values, int64_t size, DataType type, double scale) {
    values.resize(static_cast<size_t>(size));
    for (double& value : values) value = heldAs(type, normal(random) * scale);
  };
  const int32_t samples = p.offset_groups * p.kernel_h * p.kernel_w;
  const int64_t pixels = static_cast<int64_t>(p.batch) * p.out_height * p.out_width;
  const int64_t depth = static_cast<int64_t>(p.channels / p.groups) * p.kernel_h * p.kernel_w;
  fill(c.input, static_cast<int64_t>(p.batch) * p.channels * p.height * p.width, p.type, 1.0);
  fill(c.offset, pixels * 2 * samples, p.offset_type, pick(0, 2) * 1.5);
  fill(c.mask, pixels * samples, p.offset_type, 1.0);
  fill(c.weight, p.out_channels * depth, p.type, 1.0 / std::sqrt(static_cast<double>(depth)));
  fill(c.bias, p.out_channels, p.type, 1.0);
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  constexpr double kStrange[] = {
      std::numeric_limits<double>::quiet_NaN(), kInfinity, -kInfinity, 1e30, -1e30, 1e5};
  if (pick(0, 2) == 0) {
    for (double& value : c.offset) {
      if (pick(0, 9) == 0) value = heldAs(p.offset_type, kStrange[pick(0, 5)]);
    }
  }
  return c;
}

// Of values up to about 127, as quantization makes them, and outputs of any type.
inline Case generateInt8(std::mt19937& random, int32_t index) {
  Case c = generate(random, 3 * index + 1);  // of halves
  Problem& p = c.problem;
  p.type = DataType::kInt8;
  p.layout = static_cast<Layout>(random() % 3);
  p.output_type = std::array{DataType::kInt8, DataType::kHalf, DataType::kFloat}[random() % 3];
  if (random() % 4 > 0) p.channels *= 2;
  std::normal_distribution<double> normal;
  const int32_t depth = p.channels / p.groups * p.kernel_h * p.kernel_w;
  c.input.resize(static_cast<size_t>(p.batch) * static_cast<size_t>(p.channels * p.height * p.width));
  c.weight.resize(static_cast<size_t>(p.out_channels) * static_cast<size_t>(depth));
  for (double& value : c.input) value = held<Int8>(normal(random) * 40);
  for (double& value : c.weight) value = held<Int8>(normal(random) * 40);
  const double unit = p.output_type == DataType::kInt8 ? 40 : 1;
  c.scale.resize(c.bias.size());
  for (double& value : c.scale) value = held<Float>(unit / (1600 + random() % 1600) / std::sqrt(depth));
  for (double& value : c.bias) value = held<Float>(unit * value);
  return c;
}

// With `rounded` samples, as the products of the INT8 tensor-core kernel take them.
inline std::vector<double> define(const Case& c, bool rounded = false) {
  const Problem& p = c.problem;
  const int32_t taps = p.kernel_h * p.kernel_w;
  const int32_t samples = p.offset_groups * taps;
  const int32_t depth = p.channels / p.groups;
  std::vector<double> output;
  const auto pixel = [&](int32_t n, int32_t channel, int32_t y, int32_t x) {
    if (y < 0 || y >= p.height || x < 0 || x >= p.width) return 0.0;
    return c.input[static_cast<size_t>(((n * p.channels + channel) * p.height + y) * p.width + x)];
  };
  for (int32_t n = 0; n < p.batch; ++n) {
    for (int32_t o = 0; o < p.out_channels; ++o) {
      for (int32_t oy = 0; oy < p.out_height; ++oy) {
        for (int32_t ox = 0; ox < p.out_width; ++ox) {
          double sum = 0.0;
          for (int32_t i = 0; i < depth * taps; ++i) {
            const int32_t tap = i % taps;
            const int32_t channel = o / (p.out_channels / p.groups) * depth + i / taps;
            const int32_t sample = channel / (p.channels / p.offset_groups) * taps + tap;
            const auto at = [&](const std::vector<double>& values, int32_t count, int32_t index) {
              return values[static_cast<size_t>(((n * count + index) * p.out_height + oy) * p.out_width +
                                                ox)];
            };
            const double y = oy * p.stride_h - p.padding_h + tap / p.kernel_w * p.dilation_h +
                             at(c.offset, 2 * samples, 2 * sample);
            const double x = ox * p.stride_w - p.padding_w + tap % p.kernel_w * p.dilation_w +
                             at(c.offset, 2 * samples, 2 * sample + 1);
            if (!(y > -1 && x > -1 && y < p.height && x < p.width)) continue;
            double mask = c.has_mask ? at(c.mask, samples, sample) : 1.0;
            if (p.packed_offset_mask) mask = 1.0 / (1.0 + std::exp(-mask));
            if (p.type == DataType::kInt8) mask = std::fmin(std::fmax(mask, 0.0), 1.0);
            const double fy = std::floor(y);
            const double fx = std::floor(x);
            double value = 0.0;
            for (int32_t corner = 0; corner < 4; ++corner) {
              const int32_t dy = corner / 2;
              const int32_t dx = corner % 2;
              double weight = mask * (dy ? y - fy : 1 - y + fy) * (dx ? x - fx : 1 - x + fx);
              if (rounded) weight = std::nearbyint(std::fmin(weight * 65536, 65535.0)) / 65536;
              value +=
                  weight * pixel(n, channel, static_cast<int32_t>(fy) + dy, static_cast<int32_t>(fx) + dx);
            }
            if (rounded) value = std::floor(value + 0.5);
            sum += c.weight[static_cast<size_t>(o * depth * taps + i)] * value;
          }
          if (!c.scale.empty()) sum *= c.scale[static_cast<size_t>(o)];
          sum += c.bias[static_cast<size_t>(o)];
          output.push_back(p.relu && sum < 0.0 ? 0.0 : sum);
        }
      }
    }
  }
  return output;
}

// A tensor in memory as a caller would give it: exactly as large as it must be.
class Stored {
  std::vector<char> bytes_;
  DataType type_;

  template <class T>
  double as(size_t index) const {
    typename T::Storage stored;
    std::memcpy(&stored, &bytes_[index * sizeof(stored)], sizeof(stored));
    return static_cast<double>(T::load(stored));
  }

 public:
  Stored(size_t elements, DataType type)
      : bytes_(elements * (type == DataType::kFloat  ? 4
                           : type == DataType::kInt8 ? 1
                                                     : 2),
               '\xff'),
        type_(type) {}

  void set(size_t index, double value) {
    storeAs(type_, bytes_.data(), static_cast<int64_t>(index), static_cast<float>(value));
  }
  double get(size_t index) const {
    switch (type_) {
      case DataType::kFloat:
        return as<Float>(index);
      case DataType::kHalf:
        return as<Half>(index);
      case DataType::kBfloat16:
        return as<Bfloat16>(index);
      case DataType::kInt8:
        return as<Int8>(index);
    }
    return 0.0;
  }
  char* data() { return bytes_.empty() ? nullptr : bytes_.data(); }
};

// A case's tensors in the layouts and strides of a problem.
class Placed {
  const Problem p_;
  const bool separate_mask_;
  Stored input_, offset_, mask_, weight_, bias_, scale_, output_;

  size_t elements(Layout layout, int32_t stride, int32_t channels, int32_t height, int32_t width) const {
    return static_cast<size_t>(p_.batch) * static_cast<size_t>(layout == Layout::kNCHW ? channels : stride) *
           static_cast<size_t>(height) * static_cast<size_t>(width);
  }
  // Calls with each element of a [batch, count, height, width] tensor, and where it lies: from channel
  // `first` on, of `total`.
  template <class Use>
  void each(Layout layout, int32_t stride, int32_t first, int32_t count, int32_t total, int32_t height,
            int32_t width, Use&& use) const {
    size_t i = 0;
    for (int32_t n = 0; n < p_.batch; ++n) {
      for (int32_t c = 0; c < count; ++c) {
        for (int32_t y = 0; y < height; ++y) {
          for (int32_t x = 0; x < width; ++x) {
            const int64_t at = elementIndex(layout, stride, total, height, width, n, first + c, y, x);
            use(i++, static_cast<size_t>(at));
          }
        }
      }
    }
  }

 public:
  Placed(const Case& c, const Problem& p)
      : p_(p),
        separate_mask_(c.has_mask && !p.packed_offset_mask),
        input_(elements(p.layout, p.input_stride, p.channels, p.height, p.width), p.type),
        offset_(elements(p.offset_layout, p.offset_stride, offsetChannels(p), p.out_height, p.out_width),
                p.offset_type),
        mask_(elements(p.offset_layout, p.mask_stride, samples(p), p.out_height, p.out_width), p.offset_type),
        weight_(c.weight.size(), p.type),
        bias_(c.bias.size(), c.scale.empty() ? p.type : DataType::kFloat),
        scale_(c.scale.size(), DataType::kFloat),
        output_(elements(p.output_layout, p.output_stride, p.out_channels, p.out_height, p.out_width),
                p.output_type) {
    each(p.layout, p.input_stride, 0, p.channels, p.channels, p.height, p.width,
         [&](size_t i, size_t at) { input_.set(at, c.input[i]); });
    const auto place = [&](const std::vector<double>& values, Stored& stored, int32_t stride, int32_t first,
                           int32_t count, int32_t total) {
      each(p.offset_layout, stride, first, count, total, p.out_height, p.out_width,
           [&](size_t i, size_t at) { stored.set(at, values[i]); });
    };
    place(c.offset, offset_, p.offset_stride, 0, 2 * samples(p), offsetChannels(p));
    if (p.packed_offset_mask) {
      place(c.mask, offset_, p.offset_stride, 2 * samples(p), samples(p), offsetChannels(p));
    } else {
      place(c.mask, mask_, p.mask_stride, 0, samples(p), samples(p));
    }
    const auto taps = static_cast<size_t>(p.kernel_h * p.kernel_w);
    const auto depth = static_cast<size_t>(p.channels / p.groups);
    for (size_t i = 0; i < c.weight.size(); ++i) {
      const size_t row = i / (depth * taps) * depth * taps;
      weight_.set(p.weight_ohwi ? row + i % taps * depth + i / taps % depth : i, c.weight[i]);
    }
    for (size_t i = 0; i < c.bias.size(); ++i) bias_.set(i, c.bias[i]);
    for (size_t i = 0; i < c.scale.size(); ++i) scale_.set(i, c.scale[i]);
  }

  static int32_t samples(const Problem& p) { return p.offset_groups * p.kernel_h * p.kernel_w; }
  static int32_t offsetChannels(const Problem& p) { return (p.packed_offset_mask ? 3 : 2) * samples(p); }

  Tensors tensors() {
    return {input_.data(),  offset_.data(), separate_mask_ ? mask_.data() : nullptr,
            weight_.data(), bias_.data(),   scale_.data(),
            output_.data(), nullptr};
  }

  // Relative to the norm of the truth, less what rounding to an INT8 output takes; infinite if NaN or an
  // infinity is not where it should be.
  double error(const std::vector<double>& truth) const {
    double difference = 0.0;
    double norm = 0.0;
    each(p_.output_layout, p_.output_stride, 0, p_.out_channels, p_.out_channels, p_.out_height, p_.out_width,
         [&](size_t i, size_t at) {
           const double found = output_.get(at);
           norm += std::isfinite(truth[i]) ? truth[i] * truth[i] : 0.0;
           if (found == truth[i] || (std::isnan(found) && std::isnan(truth[i]))) return;
           const bool rounds = p_.output_type == DataType::kInt8;
           const double wanted = rounds ? std::fmin(std::fmax(truth[i], -128.0), 127.0) : truth[i];
           const double gap = std::fabs(found - wanted) - (rounds ? 0.5 : 0.0);
           difference += gap > 0 || std::isnan(gap) ? gap * gap : 0.0;
         });
    if (!std::isfinite(difference)) return std::numeric_limits<double>::infinity();
    return norm == 0.0 ? std::sqrt(difference) : std::sqrt(difference / norm);
  }
};

// As accurate as FP32 sums in any order are, of tensors of this type.
inline double exactLimit(DataType type) {
  return type == DataType::kFloat  ? 1e-5
         : type == DataType::kHalf ? 1e-3
         : type == DataType::kInt8 ? 1e-2
                                   : 8e-3;
}
// As the tensor-core kernels are, which round samples.
inline double tileLimit(DataType type) { return type == DataType::kBfloat16 ? 1.5e-2 : 2e-3; }

}  // namespace dcnv2
