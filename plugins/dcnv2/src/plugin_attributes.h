// The attributes of a DCNv2 node, as ONNX and the serialized engine carry them.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace dcnv2 {

struct Attributes {
  using Pair = std::array<int32_t, 2>;  // height, width

  Pair stride{1, 1};
  Pair padding{0, 0};
  Pair dilation{1, 1};
  int32_t groups = 1;
  int32_t deformable_group = 1;
  int32_t packed_offset_mask = 0;
  int32_t weight_ohwi = 0;
  int32_t relu = 0;
  int32_t allow_tf32 = 0;
  int32_t quantized = 0;
  int32_t quantized_output = 0;

  // Attributes that `fields` leaves out keep their defaults. Throws std::invalid_argument for an unknown
  // attribute, one of another type or length, or a value out of range.
  static Attributes parse(const nvinfer1::PluginFieldCollection& fields);

  // Fields whose data point into this object.
  std::vector<nvinfer1::PluginField> fields() const;

  // The same for equal attributes alone.
  std::string id() const;

  // input, offset, mask, weight, bias, scale; the mask is in `offset` where it is packed, and only what is
  // quantized has a scale.
  int32_t weightIndex() const { return packed_offset_mask ? 2 : 3; }
  int32_t biasIndex() const { return weightIndex() + 1; }
  int32_t inputCount() const { return biasIndex() + (quantized ? 2 : 1); }
};

}  // namespace dcnv2
