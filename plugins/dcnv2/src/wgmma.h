// wgmma, SM90's products: both operands in shared memory, in 128-byte rows with the 128-byte swizzle.
#pragma once

#include <cstdint>

namespace dcnv2 {

DCNV2_DEVICE void warpgroupArrive() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DCNV2_DEVICE void warpgroupCommitBatch() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
DCNV2_DEVICE void warpgroupWait() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }
// Makes this thread's stores to shared memory visible to the tensor cores.
DCNV2_DEVICE void fenceProxyAsync() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// PTX ISA, "Matrix descriptor": address, 1024 bytes from one group of eight rows to the next, 128-byte swizzle.
DCNV2_DEVICE uint64_t smemDescriptor(const char* tile) {
  return ((sharedAddress(tile) & 0x3ffffu) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62);
}

// d += a * b, m64 by n(kTiles * 8) and 32 bytes deep.
template <class T, int kTiles>
DCNV2_DEVICE void wgmma(typename T::Accumulator (&d)[kTiles][4], uint64_t a, uint64_t b);

#define DCNV2_D(kind, i) kind(d[i][0]), kind(d[i][1]), kind(d[i][2]), kind(d[i][3])
#define DCNV2_D4(kind, i) DCNV2_D(kind, i), DCNV2_D(kind, i + 1), DCNV2_D(kind, i + 2), DCNV2_D(kind, i + 3)
#define DCNV2_D16(kind, i) \
  DCNV2_D4(kind, i), DCNV2_D4(kind, i + 4), DCNV2_D4(kind, i + 8), DCNV2_D4(kind, i + 12)

#define DCNV2_R16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"

#define DCNV2_R32                                                          \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"

#define DCNV2_R64                                                                    \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

#define DCNV2_WGMMA(Type, tiles, shape, tail, registers, a_register, b_register, ...)                  \
  template <>                                                                                          \
  DCNV2_DEVICE void wgmma<Type, tiles>(Type::Accumulator(&d)[tiles][4], uint64_t a, uint64_t b) {      \
    asm volatile("wgmma.mma_async.sync.aligned." shape " {" registers "}, " a_register ", " b_register \
                 ", " tail ";"                                                                         \
                 : __VA_ARGS__                                                                         \
                 : "l"(a), "l"(b));                                                                    \
  }
#define DCNV2_WGMMA_SIZES(Type, kind, depth, types, tail)                                      \
  DCNV2_WGMMA(Type, 4, "m64n32" depth types, tail, DCNV2_R16, "%16", "%17", DCNV2_D4(kind, 0)) \
  DCNV2_WGMMA(Type, 8, "m64n64" depth types, tail, DCNV2_R32, "%32", "%33", DCNV2_D4(kind, 0), \
              DCNV2_D4(kind, 4))                                                               \
  DCNV2_WGMMA(Type, 16, "m64n128" depth types, tail, DCNV2_R64, "%64", "%65", DCNV2_D16(kind, 0))
DCNV2_WGMMA_SIZES(Half, "+f", "k16", ".f32.f16.f16", "1, 1, 1, 0, 0")
DCNV2_WGMMA_SIZES(Bfloat16, "+f", "k16", ".f32.bf16.bf16", "1, 1, 1, 0, 0")
DCNV2_WGMMA_SIZES(Float, "+f", "k8", ".f32.tf32.tf32", "1, 1, 1")
DCNV2_WGMMA_SIZES(Int8, "+r", "k32", ".s32.s8.s8", "1")
#undef DCNV2_WGMMA_SIZES
#undef DCNV2_WGMMA
#undef DCNV2_R64
#undef DCNV2_R32
#undef DCNV2_R16
#undef DCNV2_D16
#undef DCNV2_D4
#undef DCNV2_D

}  // namespace dcnv2
