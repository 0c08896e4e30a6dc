// One fiber per thread, a cluster of blocks at a time. Threads run until they meet others; whoever came last goes on
// first, and now and then anyone, so that one warp runs as far ahead of the others as the kernel lets it.
#pragma once

#include <ucontext.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace dcnv2::emulation {

constexpr size_t kStackBytes = 256 << 10;

// Threads wait here until a number of them has come.
struct Meeting {
  std::vector<size_t> waiting;
};

struct WarpExchange {
  Meeting meeting;
  std::array<std::array<std::array<uint32_t, 8>, 32>, 2> operands;
};

// Shared memory of its exact size, an allocation of its own, so that the address sanitizer sees a step
// outside. All ones are NaN: before the block writes, and after it has ended.
class Memory {
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  std::unique_ptr<char, Free> bytes_;
  size_t size_ = 0;

 public:
  explicit Memory(size_t size)
      : bytes_(static_cast<char*>(std::aligned_alloc(1024, (size + 1023) / 1024 * 1024))), size_(size) {
    poison();
  }
  void poison() { std::memset(bytes_.get(), 0xff, size_); }
  char* data() const { return bytes_.get(); }
  bool holds(const void* address) const {
    const auto offset = reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(data());
    return offset < size_;
  }
};

struct Block {
  int32_t index;
  Memory shared;
  Memory async_view;  // what the asynchronous proxy, which tensor cores read through, sees of it
  int32_t running;    // threads
  Meeting meeting = {};
  std::vector<WarpExchange> warps = {};
};

// Bytes on their way into shared memory.
struct Copy {
  char* to;
  std::array<char, 16> bytes;
};
// Bytes of shared memory that this thread has written and the asynchronous proxy has not seen.
struct Write {
  const char* at;
  size_t bytes;
};
// A product of tensor cores that is under way. Its operands must stay as they were when it began.
struct Product {
  void* sums;
  size_t bytes;
  std::array<char, 512> result;
  std::function<uint64_t()> operands;  // a digest
  uint64_t operands_at_start;
  bool committed = false;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  Block* block;
  int32_t thread;
  int32_t exchanges;
  bool registers_fenced;
  std::vector<Copy> copies;
  std::vector<Write> writes;
  std::vector<Product> products;
};

struct Machine {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Block> blocks;
  std::vector<size_t> ready;  // fibers that could go on
  Meeting cluster;
  size_t current = 0;
  size_t running = 0;
  int32_t threads = 0;
  ucontext_t scheduler;
  std::function<void()> kernel;
  std::minstd_rand random;
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

[[noreturn]] inline void fail(const char* message) {
  std::fprintf(stderr, "block %d, thread %d: %s\n", self().block->index, self().thread, message);
  std::abort();
}

inline void switchToNext(bool leaving) {
  std::vector<size_t>& ready = machine.ready;
  if (ready.empty()) fail("all threads wait, for others that do not come");
  if (machine.random() % 8 == 0) std::swap(ready.back(), ready[machine.random() % ready.size()]);
  Fiber& from = self();
  machine.current = ready.back();
  ready.pop_back();
  Fiber& to = self();
  switchTo(&from.context, &to.context, to.stack.get(), kStackBytes, leaving);
}

inline void meet(Meeting& meeting, size_t size) {
  if (meeting.waiting.size() + 1 < size) {
    meeting.waiting.push_back(machine.current);
    switchToNext(false);
    return;
  }
  machine.ready.insert(machine.ready.end(), meeting.waiting.begin(), meeting.waiting.end());
  meeting.waiting.clear();
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
  if (--fiber.block->running == 0) fiber.block->shared.poison();
  if (--machine.running > 0) switchToNext(true);
#if defined(__SANITIZE_ADDRESS__)
  switchTo(&fiber.context, &machine.scheduler, scheduler_stack, scheduler_bytes, true);
#else
  switchTo(&fiber.context, &machine.scheduler, nullptr, 0, true);
#endif
}

inline void start(size_t index, Block& block, int32_t thread) {
  Fiber& fiber = *machine.fibers[index];
  fiber.block = &block;
  fiber.thread = thread;
  fiber.exchanges = 0;
  fiber.registers_fenced = false;
  fiber.copies.clear();
  fiber.writes.clear();
  fiber.products.clear();
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, fiberMain, 0);
#if defined(__SANITIZE_ADDRESS__)
  // The sanitizer's swapcontext would clear its notes of the whole stack each time: once is enough.
  fiber.context.uc_stack = {};
  __asan_unpoison_memory_region(fiber.stack.get(), kStackBytes);
#endif
}

// Runs `blocks` blocks of `threads` threads, `cluster` blocks at a time.
inline void launch(int64_t blocks, int32_t cluster, int32_t threads, size_t shared_bytes,
                   std::function<void()> kernel) {
  machine.kernel = std::move(kernel);
  machine.threads = threads;
  machine.random.seed(1);
  const size_t count = static_cast<size_t>(cluster) * static_cast<size_t>(threads);
  while (machine.fibers.size() < count) machine.fibers.push_back(std::make_unique<Fiber>());
  for (int64_t first = 0; first < blocks; first += cluster) {
    machine.blocks.clear();
    machine.blocks.reserve(static_cast<size_t>(cluster));
    machine.ready.clear();
    machine.running = count;
    for (int32_t rank = 0; rank < cluster; ++rank) {
      machine.blocks.push_back(
          {static_cast<int32_t>(first) + rank, Memory(shared_bytes), Memory(shared_bytes), threads});
      machine.blocks.back().warps.resize(static_cast<size_t>((threads + 31) / 32));
      for (int32_t thread = 0; thread < threads; ++thread) {
        const auto index = static_cast<size_t>(rank * threads + thread);
        start(index, machine.blocks.back(), thread);
        machine.ready.push_back(index);
      }
    }
    machine.current = machine.ready.back();
    machine.ready.pop_back();
    switchTo(&machine.scheduler, &self().context, self().stack.get(), kStackBytes, false);
  }
  machine.blocks.clear();
}

}  // namespace dcnv2::emulation
