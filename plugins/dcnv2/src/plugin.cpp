#include "plugin.h"

#include <algorithm>
#include <array>
#include <stdexcept>

#include "plugin_log.h"
#include "plugin_shapes.h"

namespace dcnv2 {
namespace {

using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

constexpr int32_t kSuccess = 0;
constexpr int32_t kFailure = -1;
constexpr size_t kTimedTactics = 16;  // the best guesses: each one costs time in every build

// The layer at one point of the optimization profile: `extent` is its minimum, optimum or maximum.
Problem problemAt(const Attributes& attributes, const DynamicPluginTensorDesc* inputs,
                  const DynamicPluginTensorDesc& output, Dims DynamicPluginTensorDesc::* extent) {
  const auto resolve = [&](const DynamicPluginTensorDesc& tensor) {
    PluginTensorDesc desc = tensor.desc;
    for (int32_t i = 0; i < desc.dims.nbDims; ++i) {
      if (desc.dims.d[i] < 0) desc.dims.d[i] = (tensor.*extent).d[i];
    }
    return desc;
  };
  std::array<PluginTensorDesc, 6> resolved;
  for (int32_t i = 0; i < attributes.inputCount(); ++i) resolved[i] = resolve(inputs[i]);
  return makeProblem(attributes, resolved.data(), resolve(output));
}

}  // namespace

Plugin::Plugin(std::string name, const Attributes& attributes)
    : name_(std::move(name)),
      attributes_(attributes),
      timing_id_(std::string("dcnv2 " DCNV2_VERSION ";") + attributes_.id()),
      fields_(attributes_.fields()),
      serialized_{static_cast<int32_t>(fields_.size()), fields_.data()} {}

Plugin::Plugin(const Plugin& other) : Plugin(other.name_, other.attributes_) {
  tactics_ = other.tactics_;
  tactic_ = other.tactic_;
  problem_ = other.problem_;
  problem_tactic_ = other.problem_tactic_;
}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
  return guarded<nvinfer1::IPluginV3*>(name_, nullptr, [&] { return new Plugin(*this); });
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

int32_t Plugin::getOutputDataTypes(nvinfer1::DataType* output_types, int32_t output_count,
                                   const nvinfer1::DataType* input_types,
                                   int32_t input_count) const noexcept {
  if (output_count != 1 || input_count < 2) return kFailure;
  // Only INT8 has outputs of another type: that of the offsets, which is the network's own.
  output_types[0] = input_types[attributes_.quantized && !attributes_.quantized_output ? 1 : 0];
  return kSuccess;
}

int32_t Plugin::getOutputShapes(const DimsExprs* inputs, int32_t input_count, const DimsExprs*, int32_t,
                                DimsExprs* outputs, int32_t, nvinfer1::IExprBuilder& builder) noexcept {
  return guarded(name_, kFailure, [&] {
    std::vector<Dims> shapes(input_count);
    for (int32_t i = 0; i < input_count; ++i) {
      shapes[i].nbDims = inputs[i].nbDims;
      for (int32_t d = 0; d < inputs[i].nbDims; ++d) {
        shapes[i].d[d] = inputs[i].d[d]->isConstant() ? inputs[i].d[d]->getConstantValue() : -1;
      }
    }
    checkShapes(attributes_, shapes.data(), input_count);
    outputs[0] = outputShape(attributes_, inputs, builder);
    return kSuccess;
  });
}

bool Plugin::supportsFormatCombination(int32_t index, const DynamicPluginTensorDesc* tensors,
                                       int32_t input_count, int32_t) noexcept {
  return input_count == attributes_.inputCount() && supportsFormat(attributes_, index, tensors);
}

int32_t Plugin::configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                                const DynamicPluginTensorDesc* outputs, int32_t) noexcept {
  return guarded(name_, kFailure, [&] {
    std::vector<Dims> shapes(input_count);
    std::transform(inputs, inputs + input_count, shapes.begin(),
                   [](const auto& input) { return input.desc.dims; });
    checkShapes(attributes_, shapes.data(), input_count);
    for (const auto extent : {&DynamicPluginTensorDesc::min, &DynamicPluginTensorDesc::max})
      problemAt(attributes_, inputs, outputs[0], extent);
    const Problem usual = problemAt(attributes_, inputs, outputs[0], &DynamicPluginTensorDesc::opt);
    tactics_.resize(kTimedTactics);
    const int32_t count = tactics(usual, tactics_.data(), kTimedTactics);
    tactics_.resize(std::min<size_t>(count, kTimedTactics));
    return kSuccess;
  });
}

size_t Plugin::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t,
                                const DynamicPluginTensorDesc* outputs, int32_t) const noexcept {
  // What no device has makes the build fail; too little would let the kernels write beyond it. Less than the
  // largest size, which TensorRT would round up to none.
  return guarded(name_, size_t{1} << 48, [&] {
    return workspaceSize(problemAt(attributes_, inputs, outputs[0], &DynamicPluginTensorDesc::max),
                         kAnyTactic);
  });
}

int32_t Plugin::getNbTactics() noexcept { return static_cast<int32_t>(tactics_.size()); }

int32_t Plugin::getValidTactics(int32_t* tactics, int32_t count) noexcept {
  std::copy_n(tactics_.begin(), std::min<size_t>(count, tactics_.size()), tactics);
  return kSuccess;
}

int32_t Plugin::setTactic(int32_t tactic) noexcept {
  tactic_ = tactic;
  chooseTactic();
  return kSuccess;
}

int32_t Plugin::onShapeChange(const PluginTensorDesc* inputs, int32_t, const PluginTensorDesc* outputs,
                              int32_t) noexcept {
  return guarded(name_, kFailure, [&] {
    problem_ = makeProblem(attributes_, inputs, outputs[0]);
    chooseTactic();
    return kSuccess;
  });
}

void Plugin::chooseTactic() noexcept {
  problem_tactic_ = tactic_;
  if (problem_.batch > 0 && !canRun(problem_, tactic_)) tactics(problem_, &problem_tactic_, 1);
}

int32_t Plugin::enqueue(const PluginTensorDesc*, const PluginTensorDesc*, const void* const* inputs,
                        void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
  return guarded(name_, kFailure, [&] {
    if (problem_.batch == 0) return kSuccess;
    const Tensors tensors{inputs[0],
                          inputs[1],
                          attributes_.packed_offset_mask ? nullptr : inputs[2],
                          inputs[attributes_.weightIndex()],
                          inputs[attributes_.biasIndex()],
                          attributes_.quantized ? inputs[attributes_.biasIndex() + 1] : nullptr,
                          outputs[0],
                          workspace};
    const cudaError_t error = forward(problem_, tensors, problem_tactic_, stream);
    if (error != cudaSuccess) {
      throw std::runtime_error("tactic " + std::to_string(problem_tactic_) +
                               " failed: " + cudaGetErrorString(error));
    }
    return kSuccess;
  });
}

}  // namespace dcnv2
