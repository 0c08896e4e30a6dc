// Runs the kernels on the host, no more synchronous than the GPU. Warp and warpgroup instructions exchange
// operands and compute what the PTX ISA says of their fragments. Asynchronous copies and products complete
// when they are waited for, and until then their targets are NaN. What a thread writes to shared memory
// reaches the asynchronous proxy by a fence.
#pragma once

#include <type_traits>

#include "fibers.h"
#include "numeric.h"

#define DCNV2_DEVICE inline

namespace dcnv2 {

struct alignas(16) Vec16 {
  uint32_t words[4];
};

struct alignas(8) Vec8 {
  uint32_t words[2];
};

namespace emulation {

// Each lane gives eight words and sees those of all 32.
inline const std::array<std::array<uint32_t, 8>, 32>& exchange(const std::array<uint32_t, 8>& own) {
  Fiber& fiber = self();
  WarpExchange& warp = fiber.block->warps[static_cast<size_t>(fiber.thread / 32)];
  auto& operands = warp.operands[static_cast<size_t>(fiber.exchanges++ % 2)];
  operands[static_cast<size_t>(fiber.thread % 32)] = own;
  meet(warp.meeting, 32);
  return operands;
}

// One of the elements that a word holds.
template <class T>
auto element(uint32_t word, size_t index) {
  typename T::Storage stored;
  std::memcpy(&stored, reinterpret_cast<const char*>(&word) + index * sizeof(stored), sizeof(stored));
  return T::load(stored);
}
// The tensor cores ignore the low 13 bits of a TF32 operand.
template <>
inline auto element<Float>(uint32_t word, size_t) {
  return floatOf(word & ~0x1fffu);
}

// Adds the products of two words' elements.
template <class T, class Accumulator>
void addProducts(Accumulator& sum, uint32_t a, uint32_t b) {
  for (size_t i = 0; i < 4 / sizeof(typename T::Storage); ++i) {
    sum += static_cast<Accumulator>(element<T>(a, i) * element<T>(b, i));
  }
}

// NaN, or a number that no sum of a test is.
template <class Accumulator>
void poison(Accumulator* sums, size_t count) {
  std::memset(sums, std::is_floating_point_v<Accumulator> ? 0xff : 0x5a, count * sizeof(Accumulator));
}

// Seen by threads at once, by the asynchronous proxy after a fence: until then it sees NaN.
inline void write(char* address, const void* value, size_t bytes) {
  Fiber& fiber = self();
  const Block& block = *fiber.block;
  std::memcpy(address, value, bytes);
  if (!block.shared.holds(address)) return;
  std::memset(block.async_view.data() + (address - block.shared.data()), 0xff, bytes);
  fiber.writes.push_back({address, bytes});
}

}  // namespace emulation

inline int32_t thread() { return emulation::self().thread; }
inline int32_t block() { return emulation::self().block->index; }
inline int32_t warpUniform(int32_t value) { return value; }
template <class Value>
Value opaque(Value value) {
  return value;
}
inline char* sharedMemory() { return emulation::self().block->shared.data(); }
inline void barrier() {
  emulation::meet(emulation::self().block->meeting, static_cast<size_t>(emulation::machine.threads));
}
inline void clusterBarrier() {
  const size_t blocks = emulation::machine.blocks.size();
  emulation::meet(emulation::machine.cluster, blocks * static_cast<size_t>(emulation::machine.threads));
}

template <class Vector>
void loadShared(Vector& value, const char* address) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(value) != 0) emulation::fail("misaligned access");
  std::memcpy(&value, address, sizeof(value));
}
template <class Vector>
void store(char* address, const Vector& value) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(value) != 0) emulation::fail("misaligned access");
  emulation::write(address, &value, sizeof(value));
}
inline Vec16 loadGlobal(const char* address) {
  Vec16 value;
  loadShared(value, address);
  return value;
}
inline Vec16 loadDistributed(const char* shared, int32_t rank) {
  const emulation::Block& block = emulation::machine.blocks[static_cast<size_t>(rank)];
  return loadGlobal(block.shared.data() + (shared - sharedMemory()));
}

inline void cpAsync(char* shared, const char* global, bool valid) {
  const Vec16 value = valid ? loadGlobal(global) : Vec16{};
  emulation::Copy copy{shared, {}};
  std::memcpy(copy.bytes.data(), &value, sizeof(value));
  emulation::self().copies.push_back(copy);
  store(shared, Vec16{{UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX}});
}
inline void cpAsyncWait() {
  auto& copies = emulation::self().copies;
  for (const emulation::Copy& copy : copies) emulation::write(copy.to, copy.bytes.data(), copy.bytes.size());
  copies.clear();
}

template <class T>
uint32_t pack(float low, float high) {
  return static_cast<uint32_t>(T::store(low)) | static_cast<uint32_t>(T::store(high)) << 16;
}
template <>
inline uint32_t pack<Int8>(float low, float high) {
  const auto part = [](float value) {
    return static_cast<uint32_t>(std::nearbyint(std::fmin(std::fmax(value, 0.0f) * 65536.0f, 65535.0f)));
  };
  return part(low) | part(high) << 16;
}
inline uint32_t bytePermute(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t bytes = low | static_cast<uint64_t>(high) << 32;
  uint32_t result = 0;
  for (int32_t i = 0; i < 4; ++i) {
    result |= static_cast<uint32_t>(bytes >> (selector >> (4 * i) & 7) * 8 & 0xff) << 8 * i;
  }
  return result;
}
template <bool kUpper>
int32_t dp2a(uint32_t a, uint32_t b, int32_t c) {
  for (int32_t i = 0; i < 2; ++i) {
    const auto byte = static_cast<int8_t>(b >> ((kUpper ? 16 : 0) + 8 * i));
    c += static_cast<int32_t>(a >> 16 * i & 0xffff) * byte;
  }
  return c;
}
inline uint32_t hfma2(uint32_t a, uint32_t b, uint32_t c) {
  using emulation::element;
  return pack<Half>(element<Half>(a, 0) * element<Half>(b, 0) + element<Half>(c, 0),
                    element<Half>(a, 1) * element<Half>(b, 1) + element<Half>(c, 1));
}
inline uint32_t repeatHalf(uint32_t word, int32_t upper) {
  return (upper ? word >> 16 : word & 0xffffu) * 0x10001u;
}
inline uint32_t roundToTf32(float value) { return (bitsOf(value) + 0x1000u) & ~0x1fffu; }

inline void ldmatrix(uint32_t (&matrices)[4], const char* row) {
  const auto address = reinterpret_cast<uintptr_t>(row);
  const auto& rows =
      emulation::exchange({static_cast<uint32_t>(address), static_cast<uint32_t>(address >> 32)});
  const auto lane = static_cast<size_t>(thread() % 32);
  for (size_t i = 0; i < 4; ++i) {
    const auto& source = rows[8 * i + lane / 4];
    const char* from = reinterpret_cast<const char*>(source[0] | static_cast<uintptr_t>(source[1]) << 32);
    std::memcpy(&matrices[i], from + lane % 4 * 4, 4);
  }
}

// Fragments of mma.m16n8k8 (TF32), m16n8k16 (16-bit) and m16n8k32 (8-bit): the same registers.
template <class T, class Accumulator>
void mma(Accumulator (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const auto& lanes = emulation::exchange({a[0], a[1], a[2], a[3], b0, b1});
  const auto lane = static_cast<size_t>(thread() % 32);
  for (size_t i = 0; i < 4; ++i) {
    const size_t row = lane / 4;
    const size_t column = lane % 4 * 2 + i % 2;
    for (size_t word = 0; word < 8; ++word) {
      emulation::addProducts<T>(d[i], lanes[row * 4 + word % 4][i / 2 + word / 4 * 2],
                                lanes[column * 4 + word % 4][4 + word / 4]);
    }
  }
}

// wgmma.fence, commit_group, wait_group 0.
inline void warpgroupArrive() { emulation::self().registers_fenced = true; }
inline void warpgroupCommitBatch() {
  for (emulation::Product& product : emulation::self().products) product.committed = true;
}
inline void warpgroupWait() {
  auto& products = emulation::self().products;
  size_t left = 0;
  for (emulation::Product& product : products) {
    if (!product.committed) {
      products[left++] = std::move(product);
      continue;
    }
    if (product.operands() != product.operands_at_start) {
      emulation::fail("operands of a product changed while it was under way");
    }
    std::memcpy(product.sums, product.result.data(), product.bytes);
  }
  products.resize(left);
}
// fence.proxy.async
inline void fenceProxyAsync() {
  emulation::Fiber& fiber = emulation::self();
  const emulation::Block& block = *fiber.block;
  for (const emulation::Write& write : fiber.writes) {
    std::memcpy(block.async_view.data() + (write.at - block.shared.data()), write.at, write.bytes);
  }
  fiber.writes.clear();
}

inline uint64_t smemDescriptor(const char* tile) { return reinterpret_cast<uint64_t>(tile) >> 4; }

namespace emulation {

// A word of a matrix in the asynchronous proxy's view. The 128-byte swizzle permutes address bits 4 to 6 by
// bits 7 to 9.
inline uint32_t matrixWord(uint64_t descriptor, size_t row, size_t word) {
  const Block& block = *self().block;
  uint64_t offset =
      (descriptor << 4) + row * 128 + word * 4 - reinterpret_cast<uint64_t>(block.shared.data());
  offset ^= (offset >> 7 & 7) << 4;
  uint32_t value;
  std::memcpy(&value, block.async_view.data() + offset, 4);
  return value;
}

}  // namespace emulation

template <class T, class Accumulator, size_t kTiles>
void wgmma(Accumulator (&d)[kTiles][4], uint64_t a, uint64_t b) {
  using emulation::matrixWord;
  emulation::Fiber& fiber = emulation::self();
  if (!fiber.registers_fenced) emulation::fail("a warpgroup's product without wgmma.fence");
  // This thread's rows of both matrices: two of a, two of each tile of b.
  const auto lane = static_cast<size_t>(thread() % 32);
  const size_t row = static_cast<size_t>(thread() % 128 / 32) * 16 + lane / 4;
  const size_t column = lane % 4 * 2;
  const auto operands = [=] {
    uint64_t digest = 0;
    for (size_t i = 0; i < 2 + 2 * kTiles; ++i) {
      for (size_t word = 0; word < 8; ++word) {
        digest = digest * 1099511628211u + (i < 2 ? matrixWord(a, row + i * 8, word)
                                                  : matrixWord(b, i / 2 * 8 - 8 + column + i % 2, word));
      }
    }
    return digest;
  };
  emulation::Product product{&d, sizeof(d), {}, operands, operands()};
  static_assert(sizeof(d) <= sizeof(product.result));
  // Products of the same sums wait for each other.
  const void* before = &d;
  for (const emulation::Product& other : fiber.products) {
    if (other.sums == &d) before = other.result.data();
  }
  Accumulator sums[kTiles][4];
  std::memcpy(sums, before, sizeof(d));
  for (size_t tile = 0; tile < kTiles; ++tile) {
    for (size_t i = 0; i < 4; ++i) {
      for (size_t word = 0; word < 8; ++word) {
        emulation::addProducts<T>(sums[tile][i], matrixWord(a, row + i / 2 * 8, word),
                                  matrixWord(b, tile * 8 + column + i % 2, word));
      }
    }
  }
  std::memcpy(product.result.data(), sums, sizeof(d));
  emulation::poison(&d[0][0], 4 * kTiles);
  fiber.products.push_back(std::move(product));
}

}  // namespace dcnv2
