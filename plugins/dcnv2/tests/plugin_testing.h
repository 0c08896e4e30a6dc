// What the plugin's tests share: checks, messages, and plugins as TensorRT makes and asks them.
#pragma once

#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "plugin.h"
#include "plugin_creator.h"
#include "plugin_log.h"

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IPluginV3;
using nvinfer1::IPluginV3OneBuild;
using nvinfer1::IPluginV3OneRuntime;
using nvinfer1::PluginCapabilityType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::TensorFormat;
using nvinfer1::TensorRTPhase;

inline int failures = 0;

#define CHECK(condition, ...)                                                     \
  do {                                                                            \
    if (!(condition)) {                                                           \
      ++failures;                                                                 \
      std::fprintf(stderr, "%s:%d: %s failed: ", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, __VA_ARGS__);                                          \
      std::fputc('\n', stderr);                                                   \
    }                                                                             \
  } while (false)

struct Recorder final : nvinfer1::ILogger {
  std::string text;
  void log(Severity, const char* message) noexcept override { text += std::string(message) + "\n"; }
};

inline Recorder recorder;

// What `step` logs.
inline std::string messages(const std::function<void()>& step) {
  recorder.text.clear();
  step();
  return recorder.text;
}

inline void checkMessage(const std::string& message, const std::string& expected) {
  CHECK(message.find(expected) != std::string::npos, "found '%s', expected '%s'", message.c_str(),
        expected.c_str());
}

// An attribute as a test writes it.
struct Attribute {
  const char* name;
  std::vector<int32_t> values;
};

inline std::unique_ptr<IPluginV3> create(const std::vector<PluginField>& fields,
                                         TensorRTPhase phase = TensorRTPhase::kBUILD) {
  static dcnv2::PluginCreator creator;
  const PluginFieldCollection collection{static_cast<int32_t>(fields.size()), fields.data()};
  return std::unique_ptr<IPluginV3>(creator.createPlugin("layer1.conv", &collection, phase));
}

inline std::unique_ptr<IPluginV3> create(const std::vector<Attribute>& attributes) {
  std::vector<PluginField> fields;
  for (const Attribute& a : attributes) {
    fields.emplace_back(a.name, a.values.data(), PluginFieldType::kINT32,
                        static_cast<int32_t>(a.values.size()));
  }
  return create(fields);
}

template <class Capability>
Capability& capability(IPluginV3& plugin, PluginCapabilityType type) {
  return *static_cast<Capability*>(plugin.getCapabilityInterface(type));
}

inline IPluginV3OneBuild& build(IPluginV3& plugin) {
  return capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
}

inline IPluginV3OneRuntime& runtime(IPluginV3& plugin) {
  return capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}

inline DynamicPluginTensorDesc tensor(const std::vector<int64_t>& shape, DataType type = DataType::kFLOAT,
                                      TensorFormat format = TensorFormat::kLINEAR) {
  DynamicPluginTensorDesc result{};
  result.desc.type = type;
  result.desc.format = format;
  result.desc.dims.nbDims = static_cast<int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), result.desc.dims.d);
  result.min = result.opt = result.max = result.desc.dims;
  return result;
}

// A 3x3 layer, 8 -> 16 channels, on 10x12; the last one is the output.
inline std::vector<DynamicPluginTensorDesc> layer(int64_t batch = 2) {
  return {tensor({batch, 8, 10, 12}),
          tensor({batch, 18, 10, 12}),
          tensor({batch, 9, 10, 12}),
          tensor({16, 8, 3, 3}),
          tensor({16}),
          tensor({batch, 16, 10, 12})};
}

// In plugin_run_test.cpp.
void testRuns();
// In plugin_layers_test.cpp.
void testLayers();
