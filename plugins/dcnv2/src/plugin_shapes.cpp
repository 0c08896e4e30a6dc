#include "plugin_shapes.h"

#include <stdexcept>
#include <string>
#include <vector>

namespace dcnv2 {
namespace {

using nvinfer1::DimensionOperation;
using nvinfer1::Dims;
using nvinfer1::IDimensionExpr;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

constexpr int64_t kUnknown = -1;
constexpr int64_t kDimensions = int64_t{1} << 30;  // coordinates, paddings added, fit 32 bits

std::string text(int64_t value) { return value == kUnknown ? "?" : std::to_string(value); }

bool known(int64_t value) { return value != kUnknown; }

// Positions of the weight's dimensions: [O, kh, kw, I] or [O, I, kh, kw].
struct WeightAxes {
  int32_t channels, height, width;
  explicit WeightAxes(const Attributes& a)
      : channels(a.weight_ohwi ? 3 : 1), height(a.weight_ohwi ? 1 : 2), width(a.weight_ohwi ? 2 : 3) {}
};

int64_t outputSide(int64_t side, int64_t kernel, int32_t stride, int32_t padding, int32_t dilation) {
  if (side == 0) return 0;  // nothing to sample, whatever the padding
  if (!known(side) || !known(kernel)) return kUnknown;
  const int64_t room = side + 2 * int64_t{padding} - int64_t{dilation} * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

// "`what` found`unit`, expected ..." unless one of the two is unknown.
void expect(const std::string& what, int64_t found, const char* unit, int64_t expected,
            const std::string& why) {
  if (known(found) && known(expected) && found != expected) {
    throw std::invalid_argument(what + " " + text(found) + unit + ", expected " + text(expected) + " (" +
                                why + ")");
  }
}

void expectDivisible(const char* what, int64_t value, const char* attribute, int32_t divisor) {
  if (known(value) && (value == 0 || value % divisor != 0)) {
    throw std::invalid_argument(std::string(what) + " has " + text(value) +
                                " channels, expected a multiple of " + attribute + " " +
                                std::to_string(divisor));
  }
}

DataType dataType(nvinfer1::DataType type) {
  switch (type) {
    case nvinfer1::DataType::kFLOAT:
      return DataType::kFloat;
    case nvinfer1::DataType::kHALF:
      return DataType::kHalf;
    case nvinfer1::DataType::kBF16:
      return DataType::kBfloat16;
    case nvinfer1::DataType::kINT8:
      return DataType::kInt8;
    default:
      throw std::invalid_argument("tensor type " + std::to_string(static_cast<int32_t>(type)) +
                                  ", expected FP32, FP16, BF16 or INT8");
  }
}

Layout layout(const PluginTensorDesc& tensor) {
  if (tensor.format == TensorFormat::kCHW32) return Layout::kNCHW32;
  return tensor.format == TensorFormat::kLINEAR ? Layout::kNCHW : Layout::kNHWC;
}

int32_t pixelStride(const PluginTensorDesc& tensor) {
  const auto channels = static_cast<int32_t>(tensor.dims.d[1]);
  const auto padded = [&](int32_t vector) { return (channels + vector - 1) / vector * vector; };
  switch (tensor.format) {
    case TensorFormat::kHWC8:
      return padded(8);
    case TensorFormat::kHWC16:
      return padded(16);
    case TensorFormat::kCHW32:
      return padded(32);
    default:
      return channels;
  }
}

}  // namespace

void checkShapes(const Attributes& attributes, const Dims* inputs, int32_t count) {
  const Attributes& a = attributes;
  if (count != a.inputCount()) {
    throw std::invalid_argument("has " + std::to_string(count) + " inputs, expected " +
                                std::to_string(a.inputCount()) + " (input, " +
                                (a.packed_offset_mask ? "packed offset and mask" : "offset, mask") +
                                ", weight, bias" + (a.quantized ? ", scale)" : ")"));
  }
  std::vector<std::string> names{"input", "offset", "weight", "bias", "scale"};
  if (!a.packed_offset_mask) names.insert(names.begin() + 2, "mask");
  for (int32_t i = 0; i < count; ++i) {
    expect(names[i] + " has", inputs[i].nbDims, " dimensions", i < a.biasIndex() ? 4 : 1, "rank");
  }
  const Dims& input = inputs[0];
  const Dims& weight = inputs[a.weightIndex()];
  const WeightAxes axes(a);
  const int64_t kernel_h = weight.d[axes.height];
  const int64_t kernel_w = weight.d[axes.width];
  const int64_t channels = input.d[1];
  if (kernel_h == 0 || kernel_w == 0) throw std::invalid_argument("weight has an empty kernel");

  expectDivisible("input", channels, "groups", a.groups);
  expectDivisible("input", channels, "deformable_group", a.deformable_group);
  expectDivisible("output", weight.d[0], "groups", a.groups);
  expect("weight has", weight.d[axes.channels], " input channels",
         known(channels) ? channels / a.groups : kUnknown,
         text(channels) + " channels / groups " + std::to_string(a.groups));
  for (int32_t i = a.biasIndex(); i < count; ++i) {
    expect(names[i] + " has", inputs[i].d[0], " values", weight.d[0], "the weight's output channels");
  }

  const int64_t out_h = outputSide(input.d[2], kernel_h, a.stride[0], a.padding[0], a.dilation[0]);
  const int64_t out_w = outputSide(input.d[3], kernel_w, a.stride[1], a.padding[1], a.dilation[1]);
  const std::string kernel = text(kernel_h) + "x" + text(kernel_w);
  if (out_h == 0 || out_w == 0) {
    throw std::invalid_argument("input of " + text(input.d[2]) + "x" + text(input.d[3]) +
                                " leaves no output, expected room for a kernel of " + kernel);
  }
  const int64_t taps =
      known(kernel_h) && known(kernel_w) ? kernel_h * kernel_w * a.deformable_group : kUnknown;
  for (int32_t i = 1; i < a.weightIndex(); ++i) {
    const std::string& name = names[i];
    const int32_t per_tap = a.packed_offset_mask ? 3 : (i == 1 ? 2 : 1);
    expect(name + " has", inputs[i].d[1], " channels", known(taps) ? per_tap * taps : kUnknown,
           std::to_string(per_tap) + " * deformable_group " + std::to_string(a.deformable_group) +
               " * kernel " + kernel);
    expect(name + " has batch", inputs[i].d[0], "", input.d[0], "the input's");
    expect(name + " has height", inputs[i].d[2], "", out_h, "the output's");
    expect(name + " has width", inputs[i].d[3], "", out_w, "the output's");
  }
}

nvinfer1::DimsExprs outputShape(const Attributes& attributes, const nvinfer1::DimsExprs* inputs,
                                nvinfer1::IExprBuilder& builder) {
  const nvinfer1::DimsExprs& input = inputs[0];
  const nvinfer1::DimsExprs& weight = inputs[attributes.weightIndex()];
  const WeightAxes axes(attributes);
  const auto apply = [&](DimensionOperation operation, const IDimensionExpr* left, int64_t right) {
    return builder.operation(operation, *left, *builder.constant(right));
  };
  const auto side = [&](const IDimensionExpr* size, const IDimensionExpr* kernel, int32_t stride,
                        int32_t padding, int32_t dilation) {
    // (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1
    const auto* reach = apply(DimensionOperation::kPROD, kernel, dilation);
    const auto* padded = apply(DimensionOperation::kSUM, size, 2 * int64_t{padding} + dilation - 1);
    const auto* room = builder.operation(DimensionOperation::kSUB, *padded, *reach);
    return apply(DimensionOperation::kSUM, apply(DimensionOperation::kFLOOR_DIV, room, stride), 1);
  };
  nvinfer1::DimsExprs output;
  output.nbDims = 4;
  output.d[0] = input.d[0];
  output.d[1] = weight.d[0];
  for (int32_t i = 0; i < 2; ++i) {
    output.d[2 + i] = side(input.d[2 + i], weight.d[i == 0 ? axes.height : axes.width], attributes.stride[i],
                           attributes.padding[i], attributes.dilation[i]);
  }
  return output;
}

Problem makeProblem(const Attributes& attributes, const PluginTensorDesc* inputs,
                    const PluginTensorDesc& output) {
  const Attributes& a = attributes;
  Dims shapes[6];
  for (int32_t i = 0; i < a.inputCount(); ++i) {
    shapes[i] = inputs[i].dims;
    for (int32_t d = 0; d < shapes[i].nbDims; ++d) {
      if (shapes[i].d[d] >= kDimensions) {
        throw std::invalid_argument("dimension " + text(shapes[i].d[d]) + ", expected less than 2^30");
      }
    }
  }
  checkShapes(a, shapes, a.inputCount());
  const WeightAxes axes(a);
  const auto side = [&](const Dims& dims, int32_t axis) { return static_cast<int32_t>(dims.d[axis]); };
  const Dims& weight = shapes[a.weightIndex()];

  Problem p{};
  p.type = dataType(inputs[0].type);
  p.offset_type = dataType(inputs[1].type);
  p.output_type = dataType(output.type);
  p.layout = layout(inputs[0]);
  p.output_layout = layout(output);
  p.offset_layout = layout(inputs[1]);
  p.input_stride = pixelStride(inputs[0]);
  p.offset_stride = pixelStride(inputs[1]);
  p.mask_stride = a.packed_offset_mask ? 0 : pixelStride(inputs[2]);
  p.output_stride = pixelStride(output);
  p.batch = side(shapes[0], 0);
  p.channels = side(shapes[0], 1);
  p.height = side(shapes[0], 2);
  p.width = side(shapes[0], 3);
  p.out_channels = side(weight, 0);
  p.out_height = side(shapes[1], 2);
  p.out_width = side(shapes[1], 3);
  p.kernel_h = side(weight, axes.height);
  p.kernel_w = side(weight, axes.width);
  p.stride_h = a.stride[0];
  p.stride_w = a.stride[1];
  p.padding_h = a.padding[0];
  p.padding_w = a.padding[1];
  p.dilation_h = a.dilation[0];
  p.dilation_w = a.dilation[1];
  p.groups = a.groups;
  p.offset_groups = a.deformable_group;
  p.packed_offset_mask = a.packed_offset_mask != 0;
  p.weight_ohwi = a.weight_ohwi != 0;
  p.relu = a.relu != 0;
  p.allow_tf32 = a.allow_tf32 != 0;
  return p;
}

bool supportsFormat(const Attributes& attributes, int32_t index,
                    const nvinfer1::DynamicPluginTensorDesc* tensors) {
  using Type = nvinfer1::DataType;
  const auto at = [&](int32_t i) -> const PluginTensorDesc& { return tensors[i].desc; };
  const PluginTensorDesc& tensor = at(index);
  const bool linear = tensor.format == TensorFormat::kLINEAR;
  const auto is_image = [&] {
    switch (tensor.type) {
      case Type::kFLOAT:
        return linear || tensor.format == TensorFormat::kHWC;
      case Type::kHALF:
      case Type::kBF16:
        return linear || tensor.format == TensorFormat::kHWC8;
      case Type::kINT8:
        return linear || tensor.format == TensorFormat::kHWC16 || tensor.format == TensorFormat::kCHW32;
      default:
        return false;
    }
  };
  const bool quantized = attributes.quantized != 0;
  if (index == 0) return (tensor.type == Type::kINT8) == quantized && is_image();
  if (index == 1) {
    const Type own = quantized ? Type::kHALF : at(0).type;
    return (tensor.type == own || tensor.type == Type::kFLOAT) && is_image();
  }
  if (index < attributes.weightIndex()) return tensor.type == at(1).type && tensor.format == at(1).format;
  if (index < attributes.inputCount()) {
    return linear &&
           tensor.type == (quantized && index >= attributes.biasIndex() ? Type::kFLOAT : at(0).type);
  }
  // The kernels leave padded channels of the output as they are, and who reads them may not expect that.
  const bool padded = tensor.dims.d[1] % (tensor.format == TensorFormat::kHWC8    ? 8
                                          : tensor.format == TensorFormat::kHWC16 ? 16
                                          : tensor.format == TensorFormat::kCHW32 ? 32
                                                                                  : 1) !=
                      0;
  if (padded) return false;
  // From INT8 to another type, channels-last input goes with channels-last output.
  if (tensor.type != at(0).type) {
    return tensor.type == at(1).type && is_image() && linear == (at(0).format == TensorFormat::kLINEAR);
  }
  return tensor.format == at(0).format;
}

}  // namespace dcnv2
