// The operator in numbers, without CUDA: shared by the kernels, their host build and the launchers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dcnv2 {

enum class DataType : int32_t { kFloat, kHalf, kBfloat16 };
enum class Layout : int32_t { kNCHW, kNHWC };

// One DCNv2 layer: everything that is known before the pointers are.
struct Problem {
  DataType type;         // input, weight, bias, output
  DataType offset_type;  // offset and mask: `type` or kFloat
  Layout layout;         // input and output
  Layout offset_layout;  // offset and mask
  // Elements from one pixel to the next where the layout is kNHWC (TensorRT pads kHWC8 to multiples of 8).
  int32_t input_stride;
  int32_t offset_stride;
  int32_t mask_stride;
  int32_t output_stride;

  int32_t batch;
  int32_t channels, height, width;
  int32_t out_channels, out_height, out_width;
  int32_t kernel_h, kernel_w;
  int32_t stride_h, stride_w;
  int32_t padding_h, padding_w;
  int32_t dilation_h, dilation_w;
  int32_t groups;
  int32_t offset_groups;

  // The offset convolution's own output [N, 3 * offset_groups * taps, H, W] is given as `offset`, and `mask`
  // is null: the first two thirds are offsets, the last third is the mask before its sigmoid.
  bool packed_offset_mask;
  // Weights are [out_channels, kernel_h, kernel_w, channels / groups] instead of [.., channels / groups, kh,
  // kw].
  bool weight_ohwi;
  bool relu;  // NaN stays NaN
  bool allow_tf32;
};

struct Tensors {
  const void* input;
  const void* offset;  // (y, x) pairs per tap
  const void* mask;    // null: every sample counts fully, unless `packed_offset_mask`
  const void* weight;
  const void* bias;  // null: zero
  void* output;
  void* workspace;  // `workspaceSize` bytes, 256-byte aligned
};

}  // namespace dcnv2
