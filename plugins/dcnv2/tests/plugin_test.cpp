// The plugin through TensorRT's own interfaces: attributes, messages, shapes, formats, serialization. Linked
// with the emulation in place of CUDA.
#include "plugin_testing.h"

namespace {

nvinfer1::ILogger* recorderSource() { return &recorder; }

std::string serialized(IPluginV3& plugin) {
  std::string text;
  const PluginFieldCollection& fields = *runtime(plugin).getFieldsToSerialize();
  for (int32_t i = 0; i < fields.nbFields; ++i) {
    text += std::string(fields.fields[i].name) + " ";
    for (int32_t k = 0; k < fields.fields[i].length; ++k) {
      text += std::to_string(static_cast<const int32_t*>(fields.fields[i].data)[k]) + " ";
    }
  }
  return text;
}

void testRoundTrip() {
  const auto plugin = create({{"stride", {2, 1}},
                              {"padding", {1, 0}},
                              {"dilation", {2, 1}},
                              {"groups", {2}},
                              {"deformable_group", {3}},
                              {"packed_offset_mask", {1}},
                              {"weight_ohwi", {1}},
                              {"relu", {1}},
                              {"allow_tf32", {1}},
                              {"quantized", {1}},
                              {"quantized_output", {1}}});
  const std::string expected =
      "stride 2 1 padding 1 0 dilation 2 1 groups 2 deformable_group 3 packed_offset_mask 1 weight_ohwi 1 "
      "relu 1 "
      "allow_tf32 1 quantized 1 quantized_output 1 ";
  CHECK(serialized(*plugin) == expected, "%s", serialized(*plugin).c_str());

  const PluginFieldCollection& fields = *runtime(*plugin).getFieldsToSerialize();
  const auto restored = create(std::vector<PluginField>(fields.fields, fields.fields + fields.nbFields),
                               TensorRTPhase::kRUNTIME);
  CHECK(serialized(*restored) == expected, "%s", serialized(*restored).c_str());
  const std::unique_ptr<IPluginV3> clone(plugin->clone());
  CHECK(serialized(*clone) == expected, "%s", serialized(*clone).c_str());

  const std::string id = build(*plugin).getTimingCacheID();
  CHECK(id == build(*restored).getTimingCacheID(), "%s", id.c_str());
  CHECK(id != build(*create({{"relu", {1}}})).getTimingCacheID(), "%s", id.c_str());
}

void testAttributeForms() {
  const auto defaults = create(std::vector<Attribute>{});
  const auto single = create({{"stride", {1}}, {"padding", {0}}, {"dilation", {1, 1}}});
  CHECK(serialized(*single) == serialized(*defaults), "%s", serialized(*single).c_str());

  const int64_t wide[] = {2, 3};
  const auto from_wide = create(std::vector<PluginField>{{"stride", wide, PluginFieldType::kINT64, 2}});
  CHECK(serialized(*from_wide) == serialized(*create({{"stride", {2, 3}}})), "%s",
        serialized(*from_wide).c_str());
}

void testAttributeErrors() {
  const std::pair<Attribute, const char*> cases[] = {
      {{"stride", {0}}, "attribute stride is 0, expected 1 to 32767"},
      {{"stride", {1, 0}}, "attribute stride is 0, expected 1 to 32767"},
      {{"padding", {-1}}, "attribute padding is -1, expected 0 to 32767"},
      {{"padding", {1, 32768}}, "attribute padding is 32768, expected 0 to 32767"},
      {{"dilation", {INT32_MAX}}, "attribute dilation is 2147483647, expected 1 to 32767"},
      {{"padding", {1, 1, 1, 1}}, "attribute padding has 4 values, expected 1 or 2 (height, width)"},
      {{"dilation", {}}, "attribute dilation has 0 values, expected 1 or 2 (height, width)"},
      {{"groups", {1, 2}}, "attribute groups has 2 values, expected 1"},
      {{"deformable_group", {0}}, "attribute deformable_group is 0, expected at least 1"},
      {{"relu", {2}}, "attribute relu is 2, expected 0 or 1"},
      {{"quantized_output", {1}}, "attribute quantized_output is 1, expected quantized 1 beside it"},
      {{"strides", {1}}, "unknown attribute strides, expected stride, padding,"}};
  for (const auto& [attribute, expected] : cases) {
    const std::string message = messages([&, a = attribute] { CHECK(create({a}) == nullptr, "%s", a.name); });
    checkMessage(message, std::string("DCNv2 node 'layer1.conv': ") + expected);
  }
  const float one = 1.0F;
  checkMessage(
      messages([&] { create(std::vector<PluginField>{{"stride", &one, PluginFieldType::kFLOAT32, 1}}); }),
      "expected integers");
}

void checkShape(const std::vector<Attribute>& attributes, const std::vector<DynamicPluginTensorDesc>& tensors,
                const std::string& expected) {
  const auto plugin = create(attributes);
  int32_t status = 0;
  const auto count = static_cast<int32_t>(tensors.size()) - 1;
  const std::string message =
      messages([&] { status = build(*plugin).configurePlugin(tensors.data(), count, &tensors.back(), 1); });
  CHECK((status == 0) == expected.empty(), "status %d: %s", status, message.c_str());
  checkMessage(message, expected);
}

void testShapeErrors() {
  const std::vector<Attribute> padded{{"padding", {1}}};
  checkShape(padded, layer(), "");

  // Each replaces one tensor of the layer.
  const struct {
    size_t index;
    std::vector<int64_t> shape;
    const char* message;
  } cases[] = {
      {1,
       {2, 17, 10, 12},
       "node 'layer1.conv': offset has 17 channels, expected 18 (2 * deformable_group 1 * kernel 3x3)"},
      {2, {2, 18, 10, 12}, "mask has 18 channels, expected 9 (1 * deformable_group 1 * kernel 3x3)"},
      {1, {2, 18, 12, 10}, "offset has height 12, expected 10 (the output's)"},
      {2, {2, 9, 10, 10}, "mask has width 10, expected 12 (the output's)"},
      {1, {1, 18, 10, 12}, "offset has batch 1, expected 2 (the input's)"},
      {3, {16, 4, 3, 3}, "weight has 4 input channels, expected 8 (8 channels / groups 1)"},
      {4, {8}, "bias has 8 values, expected 16 (the weight's output channels)"},
      {4, {16, 1}, "bias has 2 dimensions, expected 1 (rank)"},
      {0, {8, 10, 12}, "input has 3 dimensions, expected 4 (rank)"},
      {0, {2, 8, 10, 0}, "input of 10x0 leaves no output, expected room for a kernel of 3x3"},
      {0, {2, 8, 0, 12}, "input of 0x12 leaves no output, expected room for a kernel of 3x3"}};
  for (const auto& c : cases) {
    auto tensors = layer();
    tensors[c.index] = tensor(c.shape);
    checkShape(padded, tensors, c.message);
  }
  checkShape({{"padding", {1}}, {"groups", {3}}}, layer(),
             "input has 8 channels, expected a multiple of groups 3");
  checkShape({{"padding", {1}}, {"deformable_group", {3}}}, layer(),
             "input has 8 channels, expected a multiple of deformable_group 3");
  checkShape({{"padding", {1}}, {"packed_offset_mask", {1}}}, layer(), "has 5 inputs, expected 4");
  const std::vector<Attribute> quantized{{"padding", {1}}, {"quantized", {1}}};
  checkShape(quantized, layer(), "has 5 inputs, expected 6 (input, offset, mask, weight, bias, scale)");
  auto scaled = layer();
  scaled.insert(scaled.begin() + 5, tensor({15}));
  checkShape(quantized, scaled, "scale has 15 values, expected 16 (the weight's output channels)");
  checkShape({}, layer(), "offset has height 10, expected 8 (the output's)");
  auto empty = layer();
  empty[0] = tensor({2, 8, 0, 12});
  checkShape({{"padding", {6}}}, empty, "input of 0x12 leaves no output");
}

void testDynamicShapes() {
  auto tensors = layer();
  for (const size_t i : {0, 1, 2, 5}) {
    DynamicPluginTensorDesc& t = tensors[i];
    for (const int axis : {0, 2, 3}) t.desc.dims.d[axis] = -1;
    t.min.d[0] = 0;
    t.max.d[0] = 64;
  }
  checkShape({{"padding", {1}}}, tensors, "");
  const auto plugin = create({{"padding", {1}}});
  build(*plugin).configurePlugin(tensors.data(), 5, &tensors[5], 1);
  const int32_t count = build(*plugin).getNbTactics();
  std::vector<int32_t> numbers(count);
  CHECK(build(*plugin).getValidTactics(numbers.data(), count) == 0, "%d", count);
  CHECK(count > 0 && *std::min_element(numbers.begin(), numbers.end()) > 0, "%d tactics", count);

  tensors[1].max.d[2] = 11;
  checkShape({{"padding", {1}}}, tensors, "offset has height 11, expected 10 (the output's)");
}

void testFormats() {
  const auto plugin = create(std::vector<Attribute>{});
  const DataType types[] = {DataType::kFLOAT, DataType::kHALF, DataType::kBF16, DataType::kINT8,
                            DataType::kINT32};
  const TensorFormat formats[] = {TensorFormat::kLINEAR, TensorFormat::kHWC8, TensorFormat::kHWC,
                                  TensorFormat::kCHW2};
  const auto text = [](DataType type, TensorFormat format, DataType offset_type, TensorFormat offset_format) {
    std::string result;
    for (const int value : {static_cast<int>(type), static_cast<int>(format), static_cast<int>(offset_type),
                            static_cast<int>(offset_format)}) {
      result += std::to_string(value) + ",";
    }
    return result + " ";
  };
  std::string supported;
  auto tensors = layer();
  // Input and output alike, offset and mask alike, weight and bias as the input's type: every other choice is refused.
  for (const DataType type : types) {
    for (const TensorFormat format : formats) {
      for (const DataType offset_type : types) {
        for (const TensorFormat offset_format : formats) {
          for (auto& t : tensors) t.desc.type = type;
          for (const size_t i : {0, 5}) tensors[i].desc.format = format;
          for (const size_t i : {1, 2}) {
            tensors[i].desc.type = offset_type;
            tensors[i].desc.format = offset_format;
          }
          bool all = true;
          for (int32_t i = 0; i < 6; ++i) {
            all = all && build(*plugin).supportsFormatCombination(i, tensors.data(), 5, 1);
          }
          if (all) supported += text(type, format, offset_type, offset_format);
        }
      }
    }
  }
  std::string expected;
  for (const TensorFormat format : {TensorFormat::kLINEAR, TensorFormat::kHWC}) {
    for (const TensorFormat offset_format : {TensorFormat::kLINEAR, TensorFormat::kHWC}) {
      expected += text(DataType::kFLOAT, format, DataType::kFLOAT, offset_format);
    }
  }
  for (const DataType type : {DataType::kHALF, DataType::kBF16}) {
    for (const TensorFormat format : {TensorFormat::kLINEAR, TensorFormat::kHWC8}) {
      expected += text(type, format, DataType::kFLOAT, TensorFormat::kLINEAR);
      expected += text(type, format, DataType::kFLOAT, TensorFormat::kHWC);
      expected += text(type, format, type, TensorFormat::kLINEAR);
      expected += text(type, format, type, TensorFormat::kHWC8);
    }
  }
  CHECK(supported == expected, "found %s, expected %s", supported.c_str(), expected.c_str());

  for (auto& t : tensors) {
    t.desc.type = DataType::kHALF;
    t.desc.format = TensorFormat::kHWC8;
  }
  CHECK(build(*plugin).supportsFormatCombination(5, tensors.data(), 5, 1), "16 channels");
  tensors[5].desc.dims.d[1] = 12;
  CHECK(!build(*plugin).supportsFormatCombination(5, tensors.data(), 5, 1), "12 channels, padded");

  for (auto& t : tensors) t = tensor({1}, DataType::kHALF);
  tensors[3].desc.format = TensorFormat::kHWC8;
  CHECK(!build(*plugin).supportsFormatCombination(3, tensors.data(), 5, 1), "a channels-last weight");
  CHECK(!build(*plugin).supportsFormatCombination(0, tensors.data(), 4, 1), "four inputs");
}

// INT8 input and weight, FP32 bias and scale, offsets in FP16 or FP32; the output is INT8 in the input's
// format, or of the offsets' type and channels-last where the input is not linear.
void testInt8Formats() {
  const TensorFormat formats[] = {TensorFormat::kLINEAR, TensorFormat::kHWC8,  TensorFormat::kHWC,
                                  TensorFormat::kHWC16,  TensorFormat::kCHW32, TensorFormat::kCHW4};
  const DataType types[] = {DataType::kFLOAT, DataType::kHALF, DataType::kBF16, DataType::kINT8};
  for (const int32_t output_int8 : {0, 1}) {
    const auto plugin = create({{"quantized", {1}}, {"quantized_output", {output_int8}}});
    std::string supported;
    for (const TensorFormat format : formats) {
      for (const DataType offset : types) {
        for (const DataType type : types) {
          for (const TensorFormat output_format : formats) {
            auto tensors = layer();
            tensors.insert(tensors.begin() + 5, tensor({16}));
            tensors[0].desc.type = tensors[3].desc.type = DataType::kINT8;
            tensors[1].desc.type = tensors[2].desc.type = offset;
            tensors[0].desc.format = format;
            tensors[6] = tensor({2, 32, 10, 12}, type, output_format);
            bool all = (type == DataType::kINT8) == (output_int8 == 1);
            for (int32_t i = 0; i < 7; ++i) {
              all = all && build(*plugin).supportsFormatCombination(i, tensors.data(), 6, 1);
            }
            for (const int value : {static_cast<int>(format), static_cast<int>(offset),
                                    static_cast<int>(type), static_cast<int>(output_format)}) {
              if (all) supported += std::to_string(value) + ",";
            }
            if (all) supported += " ";
          }
        }
      }
    }
    const std::string expected = output_int8 ? "0,0,2,0, 0,1,2,0, 11,0,2,11, 11,1,2,11, 5,0,2,5, 5,1,2,5, "
                                             : "0,0,0,0, 0,1,1,0, 11,0,0,8, 11,1,1,2, 5,0,0,8, 5,1,1,2, ";
    CHECK(supported == expected, "found %s, expected %s", supported.c_str(), expected.c_str());

    nvinfer1::DataType output;
    const nvinfer1::DataType inputs[] = {DataType::kINT8, DataType::kHALF};
    build(*plugin).getOutputDataTypes(&output, 1, inputs, 2);
    CHECK(output == (output_int8 ? DataType::kINT8 : DataType::kHALF), "%d", static_cast<int>(output));
  }
}

}  // namespace

int main() {
  dcnv2::setLoggerSource(recorderSource);
  testRoundTrip();
  testAttributeForms();
  testAttributeErrors();
  testShapeErrors();
  testDynamicShapes();
  testFormats();
  testInt8Formats();
  testRuns();
  testLayers();
  if (failures == 0) std::puts("passed");
  return failures == 0 ? 0 : 1;
}
