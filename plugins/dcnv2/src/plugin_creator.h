// What TensorRT's registry knows of the plugin: it makes a Plugin from a node's attributes.
#pragma once

#include <NvInferRuntime.h>

#include <vector>

#include "plugin_attributes.h"

namespace dcnv2 {

class PluginCreator final : public nvinfer1::IPluginCreatorV3One {
 public:
  PluginCreator();

  // Null, after a message that names the node, where the attributes are not right.
  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;

  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
  const char* getPluginName() const noexcept override;
  const char* getPluginVersion() const noexcept override;
  const char* getPluginNamespace() const noexcept override;

 private:
  const Attributes defaults_;
  const std::vector<nvinfer1::PluginField> fields_;
  const nvinfer1::PluginFieldCollection collection_;
};

}  // namespace dcnv2
