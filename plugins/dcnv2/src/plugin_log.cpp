#include "plugin_log.h"

#include <atomic>
#include <cstdio>

namespace dcnv2 {
namespace {

std::atomic<nvinfer1::ILogger* (*)()> logger_source{nullptr};

}  // namespace

void setLoggerSource(nvinfer1::ILogger* (*source)()) noexcept { logger_source = source; }

void log(Severity severity, const std::string& message, nvinfer1::ILogger* logger) noexcept {
  const auto source = logger_source.load();
  if (logger == nullptr && source != nullptr) logger = source();
  if (logger != nullptr) {
    logger->log(severity, message.c_str());
  } else {
    std::fprintf(stderr, "%s\n", message.c_str());
  }
}

}  // namespace dcnv2
