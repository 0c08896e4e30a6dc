// The instructions that the kernels are made of. tests/emulation.h has the same functions for the host, so that whole
// blocks run there, thread by thread.
#pragma once

#include "numeric.h"

#ifndef __CUDACC__
#include "emulation.h"
#else

#define DCNV2_DEVICE __device__ __forceinline__

namespace dcnv2 {

struct alignas(16) Vec16 {
  uint32_t words[4];
};

struct alignas(8) Vec8 {
  uint32_t words[2];
};

DCNV2_DEVICE int32_t thread() { return static_cast<int32_t>(threadIdx.x); }
DCNV2_DEVICE int32_t block() { return static_cast<int32_t>(blockIdx.x); }
DCNV2_DEVICE void barrier() { __syncthreads(); }

// Tells the compiler that all threads of the warp have the same value.
DCNV2_DEVICE int32_t warpUniform(int32_t value) { return __shfl_sync(0xffffffffu, value, 0); }
// Keeps the compiler from splitting the sum, or computing it again.
DCNV2_DEVICE const char* opaque(const char* sum) {
  asm volatile("" : "+l"(sum));
  return sum;
}
DCNV2_DEVICE int32_t opaque(int32_t sum) {
  asm volatile("" : "+r"(sum));
  return sum;
}

DCNV2_DEVICE char* sharedMemory() {
  extern __shared__ __align__(1024) char memory[];
  return memory;
}

DCNV2_DEVICE uint32_t sharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

DCNV2_DEVICE Vec16 loadGlobal(const char* address) {
  const uint4 value = __ldg(reinterpret_cast<const uint4*>(address));
  return {{value.x, value.y, value.z, value.w}};
}

template <class Vector>
DCNV2_DEVICE void loadShared(Vector& value, const char* address) {
  value = *reinterpret_cast<const Vector*>(address);
}

template <class Vector>
DCNV2_DEVICE void store(char* address, const Vector& value) {
  *reinterpret_cast<Vector*>(address) = value;
}

// Copies 16 bytes; if not `valid`, reads nothing and writes zeros.
DCNV2_DEVICE void cpAsync(char* shared, const char* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(sharedAddress(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}
DCNV2_DEVICE void cpAsyncWait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

template <class T>
DCNV2_DEVICE uint32_t pack(float low, float high);
template <>
DCNV2_DEVICE uint32_t pack<Half>(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
template <>
DCNV2_DEVICE uint32_t pack<Bfloat16>(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
// Two corner weights in units of 1/65536, clipped to 0 and 1.
template <>
DCNV2_DEVICE uint32_t pack<Int8>(float low, float high) {
  uint16_t parts[2];
  asm("cvt.rni.u16.f32 %0, %1;" : "=h"(parts[0]) : "f"(low * 65536.0f));
  asm("cvt.rni.u16.f32 %0, %1;" : "=h"(parts[1]) : "f"(high * 65536.0f));
  return parts[0] | static_cast<uint32_t>(parts[1]) << 16;
}

// PRMT: each hexadecimal digit of `selector` picks a byte, 0 to 3 of `low` and 4 to 7 of `high`.
DCNV2_DEVICE uint32_t bytePermute(uint32_t low, uint32_t high, uint32_t selector) {
  return __byte_perm(low, high, selector);
}

// c + the two unsigned halves of a times the lower or the upper two signed bytes of b.
template <bool kUpper>
DCNV2_DEVICE int32_t dp2a(uint32_t a, uint32_t b, int32_t c) {
  int32_t sum;
  if constexpr (kUpper) {
    asm("dp2a.hi.u32.s32 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
  } else {
    asm("dp2a.lo.u32.s32 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
  }
  return sum;
}

// a * b + c of two FP16 numbers each.
DCNV2_DEVICE uint32_t hfma2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t sum;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
  return sum;
}

// The lower or the upper half of a word, in both halves.
DCNV2_DEVICE uint32_t repeatHalf(uint32_t word, int32_t upper) {
  return __byte_perm(word, 0, upper ? 0x3232 : 0x1010);
}

DCNV2_DEVICE uint32_t roundToTf32(float value) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));
  return rounded;
}

// Four 8x8 matrices of 16-bit elements (8x4 of 32-bit ones), one row address per lane.
DCNV2_DEVICE void ldmatrix(uint32_t (&matrices)[4], const char* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(sharedAddress(row))
               : "memory");
}

// mma.sync: d += a * b, m16n8 and 32 bytes deep.
template <class T>
DCNV2_DEVICE void mma(typename T::Accumulator (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
#define DCNV2_MMA(Type, kind, name)                                                                         \
  template <>                                                                                               \
  DCNV2_DEVICE void mma<Type>(Type::Accumulator(&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { \
    asm("mma.sync.aligned." name " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"         \
        : kind(d[0]), kind(d[1]), kind(d[2]), kind(d[3])                                                    \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                    \
  }
DCNV2_MMA(Half, "+f", "m16n8k16.row.col.f32.f16.f16.f32")
DCNV2_MMA(Bfloat16, "+f", "m16n8k16.row.col.f32.bf16.bf16.f32")
DCNV2_MMA(Float, "+f", "m16n8k8.row.col.f32.tf32.tf32.f32")
DCNV2_MMA(Int8, "+r", "m16n8k32.row.col.s32.s8.s8.s32")
#undef DCNV2_MMA

// Of the blocks of a cluster (SM90 and later).
DCNV2_DEVICE void clusterBarrier() {
#if __CUDA_ARCH__ >= 900
  __syncwarp();  // `aligned` wants all lanes at once, and some return early from what comes before.
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
#endif
}
// Distributed shared memory: what `shared` is in the cluster's block `rank`.
DCNV2_DEVICE Vec16 loadDistributed(const char* shared, int32_t rank) {
  Vec16 value = {};
#if __CUDA_ARCH__ >= 900
  uint32_t remote;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(sharedAddress(shared)), "r"(rank));
  asm volatile("ld.shared::cluster.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.words[0]), "=r"(value.words[1]), "=r"(value.words[2]), "=r"(value.words[3])
               : "r"(remote)
               : "memory");
#endif
  return value;
}

}  // namespace dcnv2

#include "wgmma.h"
#endif
