// Shapes of a DCNv2 node: checks, the output's expression, and the layer as the kernels see it.
#pragma once

#include <NvInferRuntime.h>

#include "dcnv2_problem.h"
#include "plugin_attributes.h"

namespace dcnv2 {

// Checks every shape against the others; -1 is a dimension that is not known yet, and passes.
// Throws std::invalid_argument that names the tensor, what was found and what was expected.
void checkShapes(const Attributes& attributes, const nvinfer1::Dims* inputs, int32_t count);

// The output's dimensions from the inputs' (`checkShapes` first).
nvinfer1::DimsExprs outputShape(const Attributes& attributes, const nvinfer1::DimsExprs* inputs,
                                nvinfer1::IExprBuilder& builder);

// Throws std::invalid_argument where the shapes, all of them known, do not fit each other.
Problem makeProblem(const Attributes& attributes, const nvinfer1::PluginTensorDesc* inputs,
                    const nvinfer1::PluginTensorDesc& output);

// Whether tensor `index` of inputs followed by the output can have the type and format that it has in
// `tensors`, given those before it.
bool supportsFormat(const Attributes& attributes, int32_t index,
                    const nvinfer1::DynamicPluginTensorDesc* tensors);

}  // namespace dcnv2
