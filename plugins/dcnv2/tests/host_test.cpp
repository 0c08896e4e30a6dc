// The kernels' own source, run on the host over generated layers, against a loop that follows the definition in FP64.
#include "host.h"

#include <cstdio>
#include <optional>
#include <string>

#include "layers.h"

using namespace dcnv2;

namespace {

// With the strides and layouts that TensorRT gives: those of a tile are channels-last.
Problem placedProblem(Problem p, bool tile) {
  const auto padded = [](int32_t channels, DataType type, Layout layout) {
    const int32_t vector = layout == Layout::kNCHW32 ? 32 : type == DataType::kInt8 ? 16 : 8;
    return (channels + vector - 1) / vector * vector;
  };
  if (tile && p.layout == Layout::kNCHW) p.layout = Layout::kNHWC;
  p.output_layout = p.type == p.output_type || p.layout != Layout::kNCHW32 ? p.layout : Layout::kNHWC;
  p.input_stride = padded(p.channels, p.type, p.layout);
  p.output_stride = padded(p.out_channels, p.output_type, p.output_layout);
  p.offset_stride = padded(Placed::offsetChannels(p), p.offset_type, p.offset_layout);
  p.mask_stride = padded(Placed::samples(p), p.offset_type, p.offset_layout);
  return p;
}

// What one run makes; nothing if it fails.
std::optional<Placed> forward(const Case& c, int32_t tactic, bool warpgroups) {
  const Problem p = placedProblem(c.problem, tactic != kGeneric);
  std::optional<Placed> placed(std::in_place, c, p);
  const Tensors tensors = placed->tensors();
  if (dcnv2_host_forward(&p, &tensors, tactic, warpgroups) != 0) return std::nullopt;
  return placed;
}

// The relative error of what a run made.
double errorOf(const std::optional<Placed>& made, const std::vector<double>& truth) {
  return made ? made->error(truth) : std::numeric_limits<double>::infinity();
}

double run(const Case& c, const std::vector<double>& truth, int32_t tactic, bool warpgroups) {
  return errorOf(forward(c, tactic, warpgroups), truth);
}

bool close(const char* name, int32_t index, int32_t tactic, double error, double limit) {
  if (error <= limit) return true;
  std::printf("%s %d, tactic %d: relative error %g, expected at most %g\n", name, index, tactic, error,
              limit);
  return false;
}

// Generated layers; returns how many runs failed.
int32_t testGenerated() {
  constexpr int32_t kCases = 240;
  constexpr int32_t kEnough = 10;  // a kernel that fails does so in every second case
  std::mt19937 random(20261123);
  int32_t failures = 0;
  int32_t splits[kMaxLogSplitK + 1] = {};
  for (int32_t index = 0; index < kCases && failures < kEnough; ++index) {
    const Case c = generate(random, index);
    const std::vector<double> truth = define(c);
    const DataType type = c.problem.type;
    failures += !close("case", index, kGeneric, run(c, truth, kGeneric, false), exactLimit(type));
    const Problem tiled = placedProblem(c.problem, true);
    if (!tileRuns(tiled) || !tiled.weight_ohwi) continue;
    // Small shapes more often than large ones: a block of those takes long here.
    const int32_t number = index / 2;
    const int32_t tile = number % 4 == 0 ? 1 + number / 4 % 8 : (number % 2 == 0 ? 2 : 6);
    int32_t log_split_k = index % 8 == 6 ? kMaxLogSplitK : number % 3;
    while (log_split_k > 0 && planTactic(tiled, kHostDevice, tacticNumber(tile, log_split_k)).blocks == 0) {
      --log_split_k;
    }
    ++splits[log_split_k];
    const int32_t tactic = tacticNumber(tile, log_split_k);
    failures += !close("case", index, tactic, run(c, truth, tactic, number / 32 % 2 == 0), tileLimit(type));
  }
  std::printf("%d cases, %d of them on tiles without split-K, split-K 2: %d, 4: %d, 8: %d\n", kCases,
              splits[0], splits[1], splits[2], splits[3]);
  for (const int32_t count : splits) failures += count < 10;
  return failures;
}

// Prints how far INT8 is from FP64 on the same numbers, samples not rounded.
int32_t testInt8() {
  constexpr int32_t kCases = 120;
  std::mt19937 random(20261127);
  int32_t failures = 0;
  int32_t tiles = 0;
  double worst = 0.0;
  double total = 0.0;
  for (int32_t index = 0; index < kCases; ++index) {
    const Case c = generateInt8(random, index);
    const std::vector<double> exact = define(c);
    const double limit = exactLimit(c.problem.output_type);
    failures += !close("INT8 case", index, kGeneric, run(c, exact, kGeneric, false), limit);
    const Problem tiled = placedProblem(c.problem, true);
    if (!tileRuns(tiled) || !tiled.weight_ohwi) continue;
    const std::vector<double> truth = define(c, true);
    const int32_t number = index / 2;
    int32_t tactic =
        tacticNumber(number % 8 == 0 ? 1 + number / 8 % 8 : (number % 2 == 0 ? 2 : 6), number % 3);
    while (splitKOf(tactic) > 1 && planTactic(tiled, kHostDevice, tactic).blocks == 0) --tactic;
    for (const bool warpgroups : {false, true}) {
      const std::optional<Placed> made = forward(c, tactic, warpgroups);
      // A weight that FP32 rounds the other way moves a sample by one, now and then.
      failures += !close("INT8 case", index, tactic, errorOf(made, truth), std::max(limit, 1e-3));
      const double unrounded = errorOf(made, exact);
      failures += !close("INT8 case, samples not rounded", index, tactic, unrounded, 0.06);
      worst = std::max(worst, unrounded);
      total += warpgroups ? unrounded : 0.0;
    }
    ++tiles;
  }
  std::printf("%d INT8 cases, %d of them on tiles: relative error against FP64 %.2g, at most %.2g\n", kCases,
              tiles, total / tiles, worst);
  return failures + (tiles < kCases / 3);
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
    p.type = p.output_type = static_cast<DataType>(index % 3);
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

// ReLU keeps NaN and infinity, and makes zero of what is less.
int32_t testReluOfStrangeSums() {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  std::mt19937 random(6);
  int32_t failures = 0;
  for (int32_t index = 0; index < 6; ++index) {
    Case c;
    do {
      c = generate(random, index % 3 * 2);
    } while (c.problem.batch == 0 || !c.problem.relu || c.problem.out_channels < 16);
    c.bias[1] = std::numeric_limits<double>::quiet_NaN();
    c.bias[2] = kInfinity;
    c.bias[3] = -kInfinity;
    const int32_t tactic = index < 3 ? kGeneric : tacticNumber(6, 0);
    const double limit = tileLimit(c.problem.type);
    failures += !close("ReLU", index, tactic, run(c, define(c), tactic, true), limit);
  }
  return failures;
}

}  // namespace

// `layers` or `int8`, which two processes can share; both by default.
int main(int argc, char** argv) {
  const std::string part = argc > 1 ? argv[1] : "";
  int32_t failures = 0;
  if (part != "int8") failures += testGenerated() + testInfinitePixels() + testReluOfStrangeSums();
  if (part != "layers") failures += testInt8();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
