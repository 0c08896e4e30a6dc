// Which tactics may run what: the limits of the tensor-core kernels' indices, and of the device.
#include "plan.h"

#include <cstdio>
#include <random>
#include <set>

using namespace dcnv2;

namespace {

constexpr Device kAmpere{8, 84, 99 << 10};
constexpr Device kHopper{9, 132, 227 << 10};

int32_t failures = 0;

void check(bool condition, const char* what, int64_t found, int64_t expected) {
  if (condition) return;
  ++failures;
  std::printf("%s: found %lld, expected %lld\n", what, static_cast<long long>(found),
              static_cast<long long>(expected));
}

// Numbers around every multiple that can go wrong, up to the largest that is exact.
void testFastDivmod() {
  std::mt19937_64 random(7);
  for (int32_t i = 0; i < 200000; ++i) {
    const int64_t value = i < 2000 ? i + 1 : 1 + static_cast<int64_t>(random() >> (33 + random() % 31));
    const int64_t largest = std::min<int64_t>((INT64_C(1) << 31) / value, INT32_MAX);
    const FastDivmod divmod = FastDivmod::of(static_cast<int32_t>(value));
    const int64_t multiple =
        static_cast<int64_t>(random() % static_cast<uint64_t>(largest + 1)) / value * value;
    for (const int64_t number : {largest, largest - 1, largest / value * value - 1, multiple, multiple - 1}) {
      if (number < 0) continue;
      check(FastDivmod::exact(number, value), "exact", 0, 1);
      const int32_t quotient = divmod.div(static_cast<int32_t>(number));
      check(quotient == number / value, "quotient", quotient, number / value);
    }
  }
  // The least product that goes wrong: not far beyond.
  check(!FastDivmod::exact(1016833, 2114), "exact", 1, 0);
  check(FastDivmod::of(2114).div(1016833) == 481, "1016833 by 2114", 481, 480);
}

// A 3x3 layer of halves, 64 -> 64 channels on 16x16, channels-last.
Problem layer() {
  Problem p = {};
  p.type = p.offset_type = DataType::kHalf;
  p.layout = p.offset_layout = Layout::kNHWC;
  p.batch = p.groups = p.offset_groups = 1;
  p.channels = p.input_stride = p.out_channels = p.output_stride = 64;
  p.height = p.width = p.out_height = p.out_width = 16;
  p.kernel_h = p.kernel_w = 3;
  p.stride_h = p.stride_w = p.padding_h = p.padding_w = p.dilation_h = p.dilation_w = 1;
  p.weight_ohwi = true;
  return p;
}

template <class Change>
void checkBlocks(const char* what, int32_t tactic, int64_t expected, const Device& device, Change&& change) {
  Problem p = layer();
  change(p);
  const int64_t blocks = planTactic(p, device, tactic).blocks;
  check(blocks == expected, what, blocks, expected);
}

void testLimits() {
  const auto same = [](Problem&) {};
  const int32_t whole = tacticNumber(2, 0);  // 64 channels by 8x8 pixels
  checkBlocks("the layer", whole, 4, kAmpere, same);
  checkBlocks("an empty batch", whole, 0, kHopper, [](Problem& p) { p.batch = 0; });

  checkBlocks("a cluster on SM80", tacticNumber(2, 1), 0, kAmpere, same);
  checkBlocks("a cluster on SM90", tacticNumber(2, 1), 8, kHopper, same);
  checkBlocks("9 K tiles for 4 blocks", tacticNumber(2, 2), 16, kHopper, same);
  checkBlocks("9 K tiles for 8 blocks", tacticNumber(2, 3), 0, kHopper, same);
  const auto deep = [](Problem& p) { p.channels = p.input_stride = 128; };
  checkBlocks("18 K tiles for 8 blocks", tacticNumber(2, 3), 32, kHopper, deep);
  checkBlocks("a cluster of 16", tacticNumber(2, 4), 0, kHopper, deep);

  checkBlocks("shared memory of SM86", tacticNumber(7, 0), 0, kAmpere, same);
  checkBlocks("shared memory of SM90", tacticNumber(7, 0), 1, kHopper, same);
  checkBlocks("samples of 29x29 taps", whole, 0, kHopper, [](Problem& p) { p.kernel_h = p.kernel_w = 29; });

  for (const int32_t tactic : {-17, 0, 2, 15, tacticNumber(9, 0), INT32_MAX}) {
    checkBlocks("no such tactic", tactic, 0, kHopper, same);
  }

  const auto wide = [](int32_t width) {
    return [width](Problem& p) {
      p.channels = p.input_stride = 8;
      p.height = p.out_height = 1;
      p.width = p.out_width = width;
    };
  };
  checkBlocks("the widest image", whole, 46340, kHopper, wide(46340 * 8));
  checkBlocks("beyond what FastDivmod divides", whole, 0, kHopper, wide(46341 * 8));
  checkBlocks("and the plain kernel", kGeneric, 46344 * 8 / 64, kHopper, wide(46344 * 8));

  const auto large = [](Problem& p) { p.height = p.width = 4096, p.channels = p.input_stride = 64; };
  checkBlocks("an image of 2 GiB", whole, 0, kHopper, large);
  checkBlocks("and the plain kernel", kGeneric, 4, kHopper, large);
  const auto offsets = [](Problem& p) { p.out_height = p.out_width = 9000; };
  checkBlocks("2^31 offsets", whole, 0, kHopper, offsets);
  checkBlocks("and the plain kernel", kGeneric, 0, kHopper, offsets);
  const auto row = [](Problem& p) { p.height = p.width = 1, p.channels = p.input_stride = 1 << 27; };
  checkBlocks("2 GiB of weights for a channel", whole, 0, kHopper, row);
  const auto depth = [](int32_t channels, int32_t kernel) {
    return [channels, kernel](Problem& p) {
      p.height = p.width = 1, p.channels = p.input_stride = channels, p.kernel_h = p.kernel_w = kernel;
    };
  };
  checkBlocks("2 GiB of weights for a tile", whole, 0, kHopper, depth(1 << 19, 3));
  checkBlocks("the deepest image", whole, 4, kHopper, depth(64 * 46340, 1));
  checkBlocks("beyond what FastDivmod divides", whole, 0, kHopper, depth(64 * 46341, 1));
  const auto sides = [](int32_t side) {
    return [side](Problem& p) { p.channels = p.input_stride = 8, p.height = 1, p.width = side; };
  };
  checkBlocks("the longest side", whole, 4, kHopper, sides(1 << 24));
  checkBlocks("a side that no float holds", whole, 0, kHopper, sides((1 << 24) + 1));

  checkBlocks("12 channels", whole, 0, kHopper, [](Problem& p) { p.channels = 12, p.input_stride = 16; });
  checkBlocks("two groups", whole, 0, kHopper, [](Problem& p) { p.groups = 2; });
  checkBlocks("32 channels of each offset", whole, 4, kHopper, [](Problem& p) { p.offset_groups = 2; });
  checkBlocks("8 channels of each offset", whole, 4, kAmpere, [](Problem& p) { p.offset_groups = 8; });
  const auto groups = [](int32_t channels, int32_t count, DataType type) {
    return
        [=](Problem& p) { p.channels = p.input_stride = channels, p.offset_groups = count, p.type = type; };
  };
  checkBlocks("12 of each", whole, 0, kHopper, groups(96, 8, DataType::kHalf));
  checkBlocks("samples of 16 groups on SM86", whole, 0, kAmpere, groups(128, 16, DataType::kHalf));
  checkBlocks("fewer pixels of them", tacticNumber(6, 0), 8, kAmpere, groups(128, 16, DataType::kHalf));
  checkBlocks("16 of each in INT8", whole, 4, kHopper, groups(128, 8, DataType::kInt8));
  checkBlocks("8 of each in INT8", whole, 0, kHopper, groups(64, 8, DataType::kInt8));
  const auto single = [](bool tf32) {
    return [tf32](Problem& p) { p.type = p.offset_type = DataType::kFloat, p.allow_tf32 = tf32; };
  };
  checkBlocks("FP32", whole, 0, kHopper, single(false));
  checkBlocks("TF32", whole, 4, kHopper, single(true));
}

// A block's sample table: all samples that its K tiles read, and no more than it has room for.
void testSamples() {
  using Shape = TileShape<Half, 64, 64, 4>;
  const struct {
    int32_t channels, groups, kernel, log_split_k, k_tiles, slots;
  } cases[] = {{64, 1, 3, 0, 9, 9},    {64, 1, 3, 2, 9, 3},      {256, 1, 3, 0, 36, 9},
               {128, 2, 3, 0, 18, 18}, {128, 16, 3, 0, 18, 144}, {128, 16, 3, 1, 18, 72},
               {96, 4, 3, 0, 18, 36},  {72, 3, 3, 1, 18, 27},    {8, 1, 3, 0, 2, 9},
               {8, 1, 3, 1, 2, 8},     {32, 1, 3, 0, 5, 9},      {32, 1, 3, 1, 5, 5},
               {32, 4, 3, 1, 5, 36},   {24, 3, 2, 0, 2, 12}};
  for (const auto& c : cases) {
    Problem p = layer();
    p.channels = p.input_stride = c.channels;
    p.offset_groups = c.groups;
    p.kernel_h = p.kernel_w = c.kernel;
    const TileParams params = Tiling<Shape>::params(p, {}, c.log_split_k);
    check(params.k_tiles == c.k_tiles, "K tiles", params.k_tiles, c.k_tiles);
    check(params.slots.divisor == c.slots, "slots", params.slots.divisor, c.slots);
  }
}

void testRanking() {
  Problem p = layer();
  p.channels = p.input_stride = p.out_channels = p.output_stride = 256;
  Plan plans[kTileTactics];
  const int32_t count = rankTiles(p, kHopper, plans);
  std::set<int32_t> numbers;
  for (int32_t i = 0; i < count; ++i) {
    numbers.insert(plans[i].tactic);
    check(planTactic(p, kHopper, plans[i].tactic).blocks > 0, "a ranked tactic", plans[i].tactic, 0);
    check(i == 0 || plans[i - 1].cost <= plans[i].cost, "the order", plans[i].tactic, 0);
  }
  // 36 K tiles are enough for every split.
  check(count == kTileTactics, "tactics on SM90", count, kTileTactics);
  check(static_cast<int32_t>(numbers.size()) == count, "different ones", static_cast<int64_t>(numbers.size()),
        count);
  const int32_t ampere = rankTiles(p, kAmpere, plans);
  for (int32_t i = 0; i < ampere; ++i) check(splitKOf(plans[i].tactic) == 1, "SM80", plans[i].tactic, 0);
  check(ampere > 0 && ampere < count, "tactics on SM80", ampere, 6);
  p.groups = 2;
  check(rankTiles(p, kHopper, plans) == 0, "tiles for two groups", 1, 0);
}

}  // namespace

int main() {
  testFastDivmod();
  testLimits();
  testSamples();
  testRanking();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
