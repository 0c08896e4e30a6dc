#include "plugin_creator.h"

#include <stdexcept>

#include "plugin.h"
#include "plugin_log.h"

namespace dcnv2 {

PluginCreator::PluginCreator()
    : fields_(defaults_.fields()), collection_{static_cast<int32_t>(fields_.size()), fields_.data()} {}

nvinfer1::IPluginV3* PluginCreator::createPlugin(const char* name,
                                                 const nvinfer1::PluginFieldCollection* fields,
                                                 nvinfer1::TensorRTPhase) noexcept {
  const std::string node = name != nullptr ? name : "";
  return guarded<nvinfer1::IPluginV3*>(node, nullptr, [&] {
    if (fields == nullptr) throw std::invalid_argument("no attributes, expected a field collection");
    return new Plugin(node, Attributes::parse(*fields));
  });
}

const char* PluginCreator::getPluginName() const noexcept { return kPluginName; }
const char* PluginCreator::getPluginVersion() const noexcept { return kPluginVersion; }
const char* PluginCreator::getPluginNamespace() const noexcept { return kPluginNamespace; }

}  // namespace dcnv2
