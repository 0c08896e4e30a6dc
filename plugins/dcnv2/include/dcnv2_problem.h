// The operator in numbers, without CUDA: shared by the kernels, their host build and the launchers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dcnv2 {

enum class DataType : int32_t { kFloat, kHalf, kBfloat16, kInt8 };
// kNCHW32: [N, C / 32, H, W, 32], of INT8 alone.
enum class Layout : int32_t { kNCHW, kNHWC, kNCHW32 };

// One DCNv2 layer: everything that is known before the pointers are.
struct Problem {
  DataType type;         // input, weight, and unless it is kInt8, bias and output
  DataType offset_type;  // offset and mask: `type` or kFloat; kHalf or kFloat beside kInt8
  DataType output_type;  // beside kInt8: kInt8, kHalf or kFloat
  Layout layout;         // input
  Layout offset_layout;  // offset and mask
  Layout output_layout;  // `layout`, unless the types differ
  // Channels of a pixel in memory where the layout is not kNCHW (TensorRT pads kHWC8 to multiples of 8).
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
  // Weights are [out_channels, kernel_h, kernel_w, channels / groups] instead of [.., channels / groups, kh, kw].
  bool weight_ohwi;
  bool relu;  // NaN stays NaN
  bool allow_tf32;
};

struct Tensors {
  const void* input;
  const void* offset;  // (y, x) pairs per tap
  const void* mask;    // null: every sample counts fully, unless `packed_offset_mask`
  const void* weight;
  const void* bias;   // null: zero; FP32 beside kInt8
  const void* scale;  // kInt8: FP32 [out_channels], from sums of products to the output; else null
  void* output;
  void* workspace;  // `workspaceSize` bytes, 256-byte aligned
};

}  // namespace dcnv2
