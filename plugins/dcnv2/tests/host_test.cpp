// The kernels' own source, run on the host over generated layers, against a loop that follows the definition
// in FP64.
#include "host.h"

#include <cstdio>
#include <limits>
#include <random>

using namespace dcnv2;

namespace {

struct Case {
  Problem problem;
  std::vector<double> input, offset, mask, weight, bias;  // as their types hold them; [N, C, H, W] and so on
  bool has_mask;
};

template <class T>
double held(double value) {
  return static_cast<double>(T::load(T::store(static_cast<float>(value))));
}

double heldAs(DataType type, double value) {
  if (type == DataType::kHalf) return held<Half>(value);
  if (type == DataType::kBfloat16) return held<Bfloat16>(value);
  return held<Float>(value);
}

Case generate(std::mt19937& random, int32_t index) {
  const auto pick = [&](int32_t low, int32_t high) {
    return std::uniform_int_distribution<int32_t>(low, high)(random);
  };
  Case c = {};
  Problem& p = c.problem;
  p.type = static_cast<DataType>(index % 3);
  p.offset_type = pick(0, 1) ? DataType::kFloat : p.type;
  p.layout = static_cast<Layout>(pick(0, 1));
  p.offset_layout = static_cast<Layout>(pick(0, 1));
  // Every second one is for the tensor-core kernel.
  const bool tile = index % 2 == 0;
  p.batch = pick(0, 9) == 0 ? 0 : pick(1, 2);
  p.groups = tile ? 1 : pick(1, 3);
  p.offset_groups = pick(1, 3);
  p.channels = tile ? 8 * pick(1, 9) : p.groups * p.offset_groups * pick(1, 6);
  if (tile && p.offset_groups > 1) p.channels = 64 * p.offset_groups;
  p.out_channels = p.groups * pick(1, tile ? 70 : 9);
  p.height = pick(1, 12);
  p.width = pick(1, 12);
  const bool deep = index % 8 == 6;  // enough steps for a split by eight
  p.kernel_h = deep ? 3 : pick(1, 3);
  p.kernel_w = deep ? 3 : pick(1, 3);
  p.stride_h = pick(1, 2);
  p.stride_w = pick(1, 2);
  p.padding_h = pick(0, 2);
  p.padding_w = pick(0, 2);
  p.dilation_h = pick(1, 2);
  p.dilation_w = pick(1, 2);
  const auto out = [](int32_t size, int32_t kernel, int32_t stride, int32_t padding, int32_t dilation) {
    return std::max((size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1, 1);
  };
  p.out_height = out(p.height, p.kernel_h, p.stride_h, p.padding_h, p.dilation_h);
  p.out_width = out(p.width, p.kernel_w, p.stride_w, p.padding_w, p.dilation_w);
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

std::vector<double> define(const Case& c) {
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
          double sum = c.bias[static_cast<size_t>(o)];
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
            const double fy = std::floor(y);
            const double fx = std::floor(x);
            double value = 0.0;
            for (int32_t corner = 0; corner < 4; ++corner) {
              const int32_t dy = corner / 2;
              const int32_t dx = corner % 2;
              value += (dy ? y - fy : 1 - y + fy) * (dx ? x - fx : 1 - x + fx) *
                       pixel(n, channel, static_cast<int32_t>(fy) + dy, static_cast<int32_t>(fx) + dx);
            }
            sum += c.weight[static_cast<size_t>(o * depth * taps + i)] * mask * value;
          }
          output.push_back(p.relu ? std::max(sum, 0.0) : sum);
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

  size_t size() const { return type_ == DataType::kFloat ? 4 : 2; }

 public:
  Stored(size_t elements, DataType type)
      : bytes_(elements * (type == DataType::kFloat ? 4 : 2), '\xff'), type_(type) {}

  void set(size_t index, double value) {
    const auto single = static_cast<float>(value);
    const uint16_t half = type_ == DataType::kHalf ? Half::store(single) : Bfloat16::store(single);
    std::memcpy(&bytes_[index * size()],
                type_ == DataType::kFloat ? static_cast<const void*>(&single) : &half, size());
  }
  double get(size_t index) const {
    float single;
    uint16_t half;
    if (type_ == DataType::kFloat) {
      std::memcpy(&single, &bytes_[index * 4], 4);
      return static_cast<double>(single);
    }
    std::memcpy(&half, &bytes_[index * 2], 2);
    return static_cast<double>(type_ == DataType::kHalf ? Half::load(half) : Bfloat16::load(half));
  }
  char* data() { return bytes_.empty() ? nullptr : bytes_.data(); }
};

// The relative error of one run.
double run(const Case& c, const std::vector<double>& truth, int32_t tactic, bool warpgroups) {
  Problem p = c.problem;
  const bool tile = tactic != kGeneric;
  if (tile) p.layout = Layout::kNHWC;
  const int32_t samples = p.offset_groups * p.kernel_h * p.kernel_w;
  const auto padded = [](int32_t channels) { return (channels + 7) / 8 * 8; };
  p.input_stride = padded(p.channels);
  p.output_stride = padded(p.out_channels);
  p.offset_stride = padded((p.packed_offset_mask ? 3 : 2) * samples);
  p.mask_stride = padded(samples);

  const auto place = [](const std::vector<double>& values, Stored& stored, Layout layout, int32_t stride,
                        int32_t n, int32_t count, int32_t first, int32_t total, int32_t height,
                        int32_t width) {
    size_t i = 0;
    for (int32_t image = 0; image < n; ++image) {
      for (int32_t channel = 0; channel < count; ++channel) {
        for (int32_t y = 0; y < height; ++y) {
          for (int32_t x = 0; x < width; ++x) {
            const int64_t at =
                elementIndex(layout, stride, total, height, width, image, first + channel, y, x);
            stored.set(static_cast<size_t>(at), values[i++]);
          }
        }
      }
    }
  };
  const auto elements = [&](Layout layout, int32_t stride, int32_t channels, int32_t height, int32_t width) {
    return static_cast<size_t>(p.batch) * static_cast<size_t>(layout == Layout::kNHWC ? stride : channels) *
           static_cast<size_t>(height) * static_cast<size_t>(width);
  };
  Stored input(elements(p.layout, p.input_stride, p.channels, p.height, p.width), p.type);
  place(c.input, input, p.layout, p.input_stride, p.batch, p.channels, 0, p.channels, p.height, p.width);
  const int32_t offsets = (p.packed_offset_mask ? 3 : 2) * samples;
  Stored offset(elements(p.offset_layout, p.offset_stride, offsets, p.out_height, p.out_width),
                p.offset_type);
  place(c.offset, offset, p.offset_layout, p.offset_stride, p.batch, 2 * samples, 0, offsets, p.out_height,
        p.out_width);
  Stored mask(elements(p.offset_layout, p.mask_stride, samples, p.out_height, p.out_width), p.offset_type);
  if (p.packed_offset_mask) {
    place(c.mask, offset, p.offset_layout, p.offset_stride, p.batch, samples, 2 * samples, offsets,
          p.out_height, p.out_width);
  } else {
    place(c.mask, mask, p.offset_layout, p.mask_stride, p.batch, samples, 0, samples, p.out_height,
          p.out_width);
  }
  Stored weight(c.weight.size(), p.type);
  const auto taps = static_cast<size_t>(p.kernel_h * p.kernel_w);
  const auto depth = static_cast<size_t>(p.channels / p.groups);
  for (size_t i = 0; i < c.weight.size(); ++i) {
    const size_t row = i / (depth * taps) * depth * taps;
    weight.set(p.weight_ohwi ? row + i % taps * depth + i / taps % depth : i, c.weight[i]);
  }
  Stored bias(c.bias.size(), p.type);
  for (size_t i = 0; i < c.bias.size(); ++i) bias.set(i, c.bias[i]);
  Stored output(elements(p.layout, p.output_stride, p.out_channels, p.out_height, p.out_width), p.type);

  const bool separate = c.has_mask && !p.packed_offset_mask;
  const Tensors tensors{input.data(),  offset.data(), separate ? mask.data() : nullptr,
                        weight.data(), bias.data(),   output.data(),
                        nullptr};
  if (dcnv2_host_forward(&p, &tensors, tactic, warpgroups) != 0)
    return std::numeric_limits<double>::infinity();
  double difference = 0.0;
  double norm = 0.0;
  size_t i = 0;
  for (int32_t n = 0; n < p.batch; ++n) {
    for (int32_t o = 0; o < p.out_channels; ++o) {
      for (int32_t y = 0; y < p.out_height; ++y) {
        for (int32_t x = 0; x < p.out_width; ++x, ++i) {
          const int64_t at =
              elementIndex(p.layout, p.output_stride, p.out_channels, p.out_height, p.out_width, n, o, y, x);
          const double error = output.get(static_cast<size_t>(at)) - truth[i];
          difference += error * error;
          norm += truth[i] * truth[i];
        }
      }
    }
  }
  return norm == 0.0 ? std::sqrt(difference) : std::sqrt(difference / norm);
}

// Relative to FP64, of the tensor-core kernels.
double tileLimit(DataType type) { return type == DataType::kBfloat16 ? 1.5e-2 : 2e-3; }

bool close(const char* name, int32_t index, int32_t tactic, double error, double limit) {
  if (error <= limit) return true;
  std::printf("%s %d, tactic %d: relative error %g, expected at most %g\n", name, index, tactic, error,
              limit);
  return false;
}

Problem withTiles(Problem p) {
  p.layout = Layout::kNHWC;
  p.input_stride = (p.channels + 7) / 8 * 8;
  return p;
}

// Generated layers; returns how many runs failed.
int32_t testGenerated() {
  constexpr int32_t kCases = 240;
  std::mt19937 random(20261123);
  int32_t failures = 0;
  int32_t splits[kMaxLogSplit + 1] = {};
  for (int32_t index = 0; index < kCases; ++index) {
    const Case c = generate(random, index);
    const std::vector<double> truth = define(c);
    const DataType type = c.problem.type;
    failures += !close("case", index, kGeneric, run(c, truth, kGeneric, false),
                       type == DataType::kFloat  ? 1e-5
                       : type == DataType::kHalf ? 1e-3
                                                 : 8e-3);
    const Problem tiled = withTiles(c.problem);
    if (!tileRuns(tiled) || !tiled.weight_ohwi) continue;
    // Small shapes more often than large ones: a block of those takes long here.
    const int32_t number = index / 2;
    const int32_t shape = number % 4 == 0 ? 1 + number / 4 % 8 : (number % 2 == 0 ? 2 : 6);
    int32_t log_split = index % 8 == 6 ? kMaxLogSplit : number % 3;
    while (log_split > 0 && planTactic(tiled, kHostDevice, tacticNumber(shape, log_split)).blocks == 0) {
      --log_split;
    }
    ++splits[log_split];
    const int32_t tactic = tacticNumber(shape, log_split);
    failures += !close("case", index, tactic, run(c, truth, tactic, number / 32 % 2 == 0), tileLimit(type));
  }
  std::printf("%d cases, %d of them on whole tiles, on tiles split by two %d, by four %d, by eight %d\n",
              kCases, splits[0], splits[1], splits[2], splits[3]);
  for (const int32_t count : splits) failures += count < 10;
  return failures;
}

// A sample outside the image is zero, even where the first pixels are infinite; all others are finite.
int32_t testInfinitePixels() {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  constexpr double kAway[] = {1e30, -1e30, std::numeric_limits<double>::quiet_NaN(), kInfinity};
  std::mt19937 random(5);
  int32_t failures = 0;
  for (int32_t index = 0; index < 6; ++index) {
    Case c = generate(random, 0);
    Problem& p = c.problem;
    p.type = static_cast<DataType>(index % 3);
    p.offset_type = DataType::kFloat;
    p.layout = Layout::kNHWC;
    p.batch = p.groups = p.offset_groups = 1;
    p.channels = 72;
    p.out_channels = 24;
    p.height = p.width = p.out_height = p.out_width = 8;
    p.kernel_h = p.kernel_w = 3;
    p.stride_h = p.stride_w = p.padding_h = p.padding_w = p.dilation_h = p.dilation_w = 1;
    p.packed_offset_mask = p.relu = c.has_mask = false;
    p.weight_ohwi = true;
    const auto draw = [&](std::vector<double>& values, size_t size, double low, double high) {
      values.resize(size);
      for (double& value : values) value = heldAs(p.type, std::uniform_real_distribution(low, high)(random));
    };
    draw(c.input, 72 * 64, -1.0, 1.0);
    draw(c.weight, 24 * 72 * 9, -0.1, 0.1);
    draw(c.bias, 24, -1.0, 1.0);
    c.mask.assign(9 * 64, 1.0);
    for (size_t i = 0; i < c.input.size(); ++i) {
      if (i % 64 / 8 < 2 && i % 8 < 2) c.input[i] = i % 2 ? kInfinity : -kInfinity;
    }
    // Every tap is sent into the lower right quarter, and some are then sent away.
    c.offset.resize(18 * 64);
    for (size_t i = 0; i < c.offset.size(); ++i) {
      const auto tap = static_cast<int32_t>(i / 128);
      const bool row = i / 64 % 2 == 0;
      const int32_t at =
          row ? static_cast<int32_t>(i % 64 / 8) - 1 + tap / 3 : static_cast<int32_t>(i % 8) - 1 + tap % 3;
      const double target = std::uniform_real_distribution(4.0, 7.9)(random);
      c.offset[i] = random() % 4 == 0 ? kAway[random() % 4] : held<Float>(target - at);
    }
    const std::vector<double> truth = define(c);
    const int32_t tactic = index < 3 ? kGeneric : tacticNumber(6, 1);
    for (const bool warpgroups : {false, true}) {
      failures +=
          !close("infinite pixels", index, tactic, run(c, truth, tactic, warpgroups), tileLimit(p.type));
    }
  }
  return failures;
}

}  // namespace

int main() {
  const int32_t failures = testGenerated() + testInfinitePixels();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
