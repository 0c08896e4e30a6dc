// Messages of the plugin: to TensorRT's logger where there is one, else to standard error.
#pragma once

#include <NvInferRuntime.h>

#include <exception>
#include <string>

namespace dcnv2 {

using Severity = nvinfer1::ILogger::Severity;

// Where messages go from now on: what TensorRT's `getLogger` is.
void setLoggerSource(nvinfer1::ILogger* (*source)()) noexcept;

// One line; `logger` null means TensorRT's own.
void log(Severity severity, const std::string& message, nvinfer1::ILogger* logger = nullptr) noexcept;

// Runs a step of a noexcept override for the node `name`: what it throws is logged, and `failure` returned.
template <class Result, class Step>
Result guarded(const std::string& name, Result failure, Step&& step) noexcept {
  try {
    return step();
  } catch (const std::exception& error) {
    log(Severity::kERROR, "DCNv2 node '" + name + "': " + error.what());
  } catch (...) {
    log(Severity::kERROR, "DCNv2 node '" + name + "': unknown failure");
  }
  return failure;
}

}  // namespace dcnv2
