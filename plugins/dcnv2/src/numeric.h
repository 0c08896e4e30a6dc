// The tensors' element types. 16-bit numbers are handled by their bits: the same source compiles for device and host.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "dcnv2_problem.h"

#ifdef __CUDACC__
#define DCNV2_FN __host__ __device__ __forceinline__
#else
#define DCNV2_FN inline
#endif

namespace dcnv2 {

DCNV2_FN uint32_t bitsOf(float value) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
#endif
}

DCNV2_FN float floatOf(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
#endif
}

// Reads global memory that nothing writes while the kernel runs.
template <class Value>
DCNV2_FN Value loadReadOnly(const Value* address) {
#ifdef __CUDA_ARCH__
  return __ldg(address);
#else
  return *address;
#endif
}

// `Accumulator`: of the products. `Coordinate`: type of offsets that are not FP32.
struct Float {
  using Storage = float;
  using Accumulator = float;
  using Coordinate = Float;
  static constexpr DataType kType = DataType::kFloat;

  static DCNV2_FN float load(Storage stored) { return stored; }
  static DCNV2_FN Storage store(float value) { return value; }
};

struct Half {
  using Storage = uint16_t;
  using Accumulator = float;
  using Coordinate = Half;
  static constexpr DataType kType = DataType::kHalf;

  static DCNV2_FN float load(Storage stored) {
#ifdef __CUDA_ARCH__
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(stored));
    return value;
#else
    const uint32_t sign = (stored & 0x8000u) << 16;
    const uint32_t magnitude = stored & 0x7fffu;
    if (magnitude >= 0x7c00u) return floatOf(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
    const float value = magnitude < 0x400u ? std::ldexp(static_cast<float>(magnitude), -24)
                                           : floatOf((magnitude << 13) + (112u << 23));
    return floatOf(bitsOf(value) | sign);
#endif
  }

  static DCNV2_FN Storage store(float value) {
#ifdef __CUDA_ARCH__
    Storage stored;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(stored) : "f"(value));
    return stored;
#else
    const auto sign = static_cast<Storage>((bitsOf(value) >> 16) & 0x8000u);
    const float magnitude = std::fabs(value);
    if (magnitude != magnitude) return static_cast<Storage>(sign | 0x7e00u);
    if (magnitude >= 65520.0f) return static_cast<Storage>(sign | 0x7c00u);
    // nearbyint rounds to nearest even, as the device does.
    if (magnitude < 0x1p-14f)
      return static_cast<Storage>(sign | static_cast<Storage>(std::nearbyint(magnitude * 0x1p24f)));
    const uint32_t bits = bitsOf(magnitude);
    return static_cast<Storage>(sign | ((bits - (112u << 23) + 0xfffu + ((bits >> 13) & 1u)) >> 13));
#endif
  }
};

struct Bfloat16 {
  using Storage = uint16_t;
  using Accumulator = float;
  using Coordinate = Bfloat16;
  static constexpr DataType kType = DataType::kBfloat16;

  static DCNV2_FN float load(Storage stored) { return floatOf(static_cast<uint32_t>(stored) << 16); }

  static DCNV2_FN Storage store(float value) {
    if (value != value) return 0x7fffu;
    const uint32_t bits = bitsOf(value);
    return static_cast<Storage>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
};

struct Int8 {
  using Storage = int8_t;
  using Accumulator = int32_t;
  using Coordinate = Half;
  static constexpr DataType kType = DataType::kInt8;

  static DCNV2_FN float load(Storage stored) { return static_cast<float>(stored); }

  // To nearest even, as TensorRT's own quantization.
  static DCNV2_FN Storage store(float value) {
#ifdef __CUDA_ARCH__
    int32_t stored;
    asm("cvt.rni.sat.s8.f32 %0, %1;" : "=r"(stored) : "f"(value));
    return static_cast<Storage>(stored);
#else
    if (value != value) return 0;
    return static_cast<Storage>(std::nearbyint(std::fmin(std::fmax(value, -128.0f), 127.0f)));
#endif
  }
};

DCNV2_FN void storeAs(DataType type, void* tensor, int64_t index, float value) {
  switch (type) {
    case DataType::kFloat:
      static_cast<float*>(tensor)[index] = value;
      break;
    case DataType::kHalf:
      static_cast<uint16_t*>(tensor)[index] = Half::store(value);
      break;
    case DataType::kBfloat16:
      static_cast<uint16_t*>(tensor)[index] = Bfloat16::store(value);
      break;
    case DataType::kInt8:
      static_cast<int8_t*>(tensor)[index] = Int8::store(value);
      break;
  }
}

}  // namespace dcnv2
