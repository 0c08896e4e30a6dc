// Runs the kernels on the host: one fiber per thread, a cluster of blocks at a time. Warp and warpgroup
// instructions meet, exchange operands and compute what the PTX ISA says of their fragments; shared memory
// starts as NaN, has its exact size, and is an allocation of its own, so that the address sanitizer sees a
// step outside.
#pragma once

#include <ucontext.h>

#include <array>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#include "numeric.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define DCNV2_DEVICE inline

namespace dcnv2 {

struct alignas(16) Vec16 {
  uint32_t words[4];
};

struct alignas(8) Vec8 {
  uint32_t words[2];
};

namespace emulation {

constexpr size_t kStackBytes = 256 << 10;

// Threads wait here until `size` of them have come.
struct Meeting {
  int32_t arrived = 0;
  int64_t generation = 0;
};

struct WarpExchange {
  Meeting meeting;
  std::array<std::array<std::array<uint32_t, 8>, 32>, 2> operands;
};

struct Block {
  int32_t index;
  char* shared;
  Meeting meeting;
  std::vector<WarpExchange> warps;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  Block* block;
  int32_t thread;
  int32_t exchanges = 0;
  bool done = false;
};

struct Machine {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Block> blocks;
  Meeting cluster;
  size_t current = 0;
  size_t running = 0;
  int32_t threads = 0;
  ucontext_t scheduler;
  std::function<void()> kernel;
};

inline Machine machine;

inline Fiber& self() { return *machine.fibers[machine.current]; }

inline void switchTo(ucontext_t* from, ucontext_t* to, const void* stack, size_t bytes, bool leaving) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(leaving ? nullptr : &fake, stack, bytes);
  swapcontext(from, to);
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
  (void)stack, (void)bytes, (void)leaving;
  swapcontext(from, to);
#endif
}

inline void yield() {
  Fiber& from = self();
  size_t next = machine.current;
  do {
    next = (next + 1) % machine.running;
  } while (machine.fibers[next]->done);
  if (next == machine.current) {
    if (from.done) std::abort();
    return;
  }
  machine.current = next;
  Fiber& to = self();
  switchTo(&from.context, &to.context, to.stack.get(), kStackBytes, from.done);
}

inline void meet(Meeting& meeting, int32_t size) {
  const int64_t generation = meeting.generation;
  if (++meeting.arrived == size) {
    meeting.arrived = 0;
    ++meeting.generation;
    return;
  }
  while (meeting.generation == generation) yield();
}

#if defined(__SANITIZE_ADDRESS__)
inline const void* scheduler_stack = nullptr;
inline size_t scheduler_bytes = 0;
#endif

inline void fiberMain() {
#if defined(__SANITIZE_ADDRESS__)
  const void* stack = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &stack, &bytes);
  if (scheduler_stack == nullptr) scheduler_stack = stack, scheduler_bytes = bytes;
#endif
  machine.kernel();
  Fiber& fiber = self();
  fiber.done = true;
  bool others = false;
  for (size_t i = 0; i < machine.running; ++i) others = others || !machine.fibers[i]->done;
  if (others) yield();
#if defined(__SANITIZE_ADDRESS__)
  switchTo(&fiber.context, &machine.scheduler, scheduler_stack, scheduler_bytes, true);
#else
  switchTo(&fiber.context, &machine.scheduler, nullptr, 0, true);
#endif
}

// Runs `blocks` blocks of `threads` threads, `cluster` blocks at a time.
inline void launch(int64_t blocks, int32_t cluster, int32_t threads, size_t shared_bytes,
                   std::function<void()> kernel) {
  machine.kernel = std::move(kernel);
  machine.threads = threads;
  machine.running = static_cast<size_t>(cluster) * static_cast<size_t>(threads);
  while (machine.fibers.size() < machine.running) machine.fibers.push_back(std::make_unique<Fiber>());
  for (int64_t first = 0; first < blocks; first += cluster) {
    machine.blocks = std::vector<Block>(static_cast<size_t>(cluster));
    machine.cluster = {};
    for (size_t i = 0; i < machine.blocks.size(); ++i) {
      Block& block = machine.blocks[i];
      block.index = static_cast<int32_t>(first + static_cast<int64_t>(i));
      block.shared = static_cast<char*>(std::aligned_alloc(1024, (shared_bytes + 1023) / 1024 * 1024));
      std::memset(block.shared, 0xff, shared_bytes);
      block.warps.resize(static_cast<size_t>((threads + 31) / 32));
    }
    for (size_t i = 0; i < machine.running; ++i) {
      Fiber& fiber = *machine.fibers[i];
      fiber.block = &machine.blocks[i / static_cast<size_t>(threads)];
      fiber.thread = static_cast<int32_t>(i % static_cast<size_t>(threads));
      fiber.exchanges = 0;
      fiber.done = false;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStackBytes;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, fiberMain, 0);
    }
    machine.current = 0;
    switchTo(&machine.scheduler, &machine.fibers[0]->context, machine.fibers[0]->stack.get(), kStackBytes,
             false);
    for (Block& block : machine.blocks) std::free(block.shared);
  }
}

// Each lane gives eight words and sees those of all 32.
inline const std::array<std::array<uint32_t, 8>, 32>& exchange(const std::array<uint32_t, 8>& own) {
  Fiber& fiber = self();
  WarpExchange& warp = fiber.block->warps[static_cast<size_t>(fiber.thread / 32)];
  auto& operands = warp.operands[static_cast<size_t>(fiber.exchanges++ % 2)];
  operands[static_cast<size_t>(fiber.thread % 32)] = own;
  meet(warp.meeting, 32);
  return operands;
}

template <class T>
float element(uint32_t word, int32_t half) {
  return T::load(static_cast<typename T::Storage>(half ? word >> 16 : word));
}
// The tensor cores ignore the low 13 bits of a TF32 operand.
template <>
inline float element<Float>(uint32_t word, int32_t) {
  return floatOf(word & ~0x1fffu);
}

}  // namespace emulation

inline int32_t thread() { return emulation::self().thread; }
inline int32_t block() { return emulation::self().block->index; }
inline int32_t uniform(int32_t value) { return value; }
template <class Sum>
Sum whole(Sum sum) {
  return sum;
}
inline char* sharedMemory() { return emulation::self().block->shared; }
inline void barrier() { emulation::meet(emulation::self().block->meeting, emulation::machine.threads); }
inline void clusterBarrier() {
  emulation::meet(emulation::machine.cluster, static_cast<int32_t>(emulation::machine.running));
}

template <class Vector>
void loadShared(Vector& value, const char* address) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(value) != 0) std::abort();
  std::memcpy(&value, address, sizeof(value));
}
template <class Vector>
void store(char* address, const Vector& value) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(value) != 0) std::abort();
  std::memcpy(address, &value, sizeof(value));
}
inline Vec16 loadGlobal(const char* address) {
  Vec16 value;
  loadShared(value, address);
  return value;
}
inline Vec16 loadCluster(const char* shared, int32_t rank) {
  return loadGlobal(emulation::machine.blocks[static_cast<size_t>(rank)].shared + (shared - sharedMemory()));
}
inline void copyAsync(char* shared, const char* global, bool valid) {
  store(shared, valid ? loadGlobal(global) : Vec16{});
}
inline void copyAsyncWait() {}

template <class T>
uint32_t pack(float low, float high) {
  return static_cast<uint32_t>(T::store(low)) | static_cast<uint32_t>(T::store(high)) << 16;
}
inline uint32_t halfMultiplyAdd(uint32_t a, uint32_t b, uint32_t c) {
  using emulation::element;
  return pack<Half>(element<Half>(a, 0) * element<Half>(b, 0) + element<Half>(c, 0),
                    element<Half>(a, 1) * element<Half>(b, 1) + element<Half>(c, 1));
}
inline uint32_t repeatHalf(uint32_t word, int32_t upper) {
  return (upper ? word >> 16 : word & 0xffffu) * 0x10001u;
}
inline uint32_t roundToTf32(float value) { return (bitsOf(value) + 0x1000u) & ~0x1fffu; }

inline void loadMatrices(uint32_t (&matrices)[4], const char* row) {
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

// Fragments of mma.m16n8k16 (16-bit) and m16n8k8 (TF32): the same registers, two elements or one in each.
template <class T>
void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  constexpr int32_t kElements = 4 / sizeof(typename T::Storage);
  const auto& lanes = emulation::exchange({a[0], a[1], a[2], a[3], b0, b1});
  const auto lane = static_cast<size_t>(thread() % 32);
  for (size_t i = 0; i < 4; ++i) {
    const size_t row = lane / 4;
    const size_t column = lane % 4 * 2 + i % 2;
    for (size_t word = 0; word < 8; ++word) {
      for (int32_t half = 0; half < kElements; ++half) {
        d[i] += emulation::element<T>(lanes[row * 4 + word % 4][i / 2 + word / 4 * 2], half) *
                emulation::element<T>(lanes[column * 4 + word % 4][4 + word / 4], half);
      }
    }
  }
}

inline void warpgroupBegin() {}
inline void warpgroupCommit() {}
inline void warpgroupWait() {}
inline void warpgroupFence() {}

inline uint64_t matrixDescriptor(const char* tile) { return reinterpret_cast<uint64_t>(tile) >> 4; }

// The 128-byte swizzle permutes address bits 4 to 6 by bits 7 to 9.
template <class T, size_t kTiles>
void warpgroupMultiply(float (&d)[kTiles][4], uint64_t a, uint64_t b) {
  const auto at = [](uint64_t tile, int32_t row, int32_t word) {
    uint64_t address = (tile << 4) + static_cast<uint64_t>(row * 128 + word * 4);
    address ^= (address >> 7 & 7) << 4;
    uint32_t value;
    std::memcpy(&value, reinterpret_cast<const char*>(address), 4);
    return value;
  };
  constexpr int32_t kElements = 4 / sizeof(typename T::Storage);
  const int32_t lane = thread() % 32;
  for (size_t tile = 0; tile < kTiles; ++tile) {
    for (int32_t i = 0; i < 4; ++i) {
      const int32_t row = thread() % 128 / 32 * 16 + lane / 4 + i / 2 * 8;
      const int32_t column = static_cast<int32_t>(tile) * 8 + lane % 4 * 2 + i % 2;
      for (int32_t word = 0; word < 8; ++word) {
        for (int32_t half = 0; half < kElements; ++half) {
          d[tile][i] += emulation::element<T>(at(a, row, word), half) *
                        emulation::element<T>(at(b, column, word), half);
        }
      }
    }
  }
}

}  // namespace dcnv2
