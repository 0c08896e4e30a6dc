// Tensors brought into the form that the tensor-core kernel reads, where the caller could not give them so.
#pragma once

#include "device.h"

namespace dcnv2 {

// [batch, rows, columns] to [batch, columns, rows], one block per 32x32 elements.
template <class Storage>
struct Transpose {
  static constexpr int32_t kSide = 32;
  static constexpr int32_t kThreads = 256;
  static constexpr size_t kSharedBytes = kSide * (kSide + 1) * sizeof(Storage);

  static DCNV2_FN int64_t tiles(int32_t size) { return (size + kSide - 1) / kSide; }
  static DCNV2_FN int64_t blocks(int32_t batch, int32_t rows, int32_t columns) {
    return batch * tiles(rows) * tiles(columns);
  }

  static DCNV2_DEVICE void run(const void* from, void* to, int32_t rows, int32_t columns) {
    auto* tile = reinterpret_cast<Storage*>(sharedMemory());
    const auto across = static_cast<int32_t>(tiles(columns));
    const auto down = static_cast<int32_t>(tiles(rows));
    const int32_t first_column = block() % across * kSide;
    const int32_t first_row = block() / across % down * kSide;
    const int64_t base = static_cast<int64_t>(block() / across / down) * rows * columns;
    const auto* source = static_cast<const Storage*>(from) + base;
    auto* target = static_cast<Storage*>(to) + base;
    const int32_t x = thread() % kSide;
    for (int32_t y = thread() / kSide; y < kSide; y += kThreads / kSide) {
      if (first_row + y < rows && first_column + x < columns) {
        tile[y * (kSide + 1) + x] = source[static_cast<int64_t>(first_row + y) * columns + first_column + x];
      }
    }
    barrier();
    for (int32_t y = thread() / kSide; y < kSide; y += kThreads / kSide) {
      if (first_column + y < columns && first_row + x < rows) {
        target[static_cast<int64_t>(first_column + y) * rows + first_row + x] = tile[x * (kSide + 1) + y];
      }
    }
  }
};

}  // namespace dcnv2
