// How the library meets TensorRT, however it was loaded. It links to no TensorRT: preloaded, it is in processes that
// have none, and most never load one.
//
// - TensorRT is there already (Triton's plugins=, dlopen): registered at load.
// - TensorRT comes later, perhaps opened with RTLD_LOCAL (LD_PRELOAD into Triton): the two functions with which all use
//   of TensorRT begins are found here first, register, and go on to the real ones.
// - TensorRT's loadLibrary: it registers what getCreators returns.

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <array>
#include <mutex>
#include <string>

#include "plugin.h"
#include "plugin_creator.h"
#include "plugin_log.h"

#define DCNV2_EXPORT extern "C" __attribute__((visibility("default")))

namespace dcnv2 {
namespace {

using nvinfer1::ILogger;
using nvinfer1::IPluginCreatorInterface;
using nvinfer1::IPluginRegistry;

// Every library that has a plugin registry. Its layout differs between majors, TensorRT-RTX (1) included.
constexpr std::array<const char*, 3> kLibraries{"libnvinfer.so.10", "libnvinfer.so.11",
                                                "libtensorrt_rtx.so.1"};

IPluginRegistry* registry = nullptr;

// Never destroyed: the registry outlives it.
PluginCreator& creator() {
  static auto* const instance = new PluginCreator;
  return *instance;
}

void* loadedLibrary(const char* name) { return dlopen(name, RTLD_LAZY | RTLD_NOLOAD); }

template <class Function>
Function* find(void* library, const char* name) {
  return reinterpret_cast<Function*>(dlsym(library, name));
}

int32_t versionPart(void* library, const char* function) {
  const auto part = find<int32_t()>(library, function);
  return part != nullptr ? part() : 0;
}

int32_t majorOf(void* library) { return versionPart(library, "getInferLibMajorVersion"); }

std::string versionOf(void* library) {
  return std::to_string(majorOf(library)) + "." +
         std::to_string(versionPart(library, "getInferLibMinorVersion")) + "." +
         std::to_string(versionPart(library, "getInferLibPatchVersion"));
}

void registerCreator(void* library, ILogger* logger) {
  setLoggerSource(find<ILogger*()>(library, "getLogger"));
  registry = find<IPluginRegistry*()>(library, "getPluginRegistry")();
  const std::string plugin = "DCNv2 plugin " DCNV2_VERSION;
  if (registry->registerCreator(creator(), kPluginNamespace)) {
    log(Severity::kINFO,
        plugin + " registered with TensorRT " + versionOf(library) +
            " (FP32, FP16, BF16, INT8; linear, channels-last)",
        logger);
  } else {
    log(Severity::kERROR, plugin + " is not registered: TensorRT has another plugin named DCNv2, version 1",
        logger);
  }
}

// To standard error: the other TensorRT's logger has another layout.
void refuse(const char* name, void* library) {
  log(Severity::kERROR, "DCNv2 plugin " DCNV2_VERSION
                        " is not registered: it was built for " DCNV2_TENSORRT_LIBRARY ", found " +
                            std::string(name) + " (TensorRT " + versionOf(library) +
                            "); load the build for that");
}

// Registers, once, with the TensorRT that we were built for if the process has it; says so if it has only another one.
void meetTensorRt(ILogger* logger) noexcept {
  const char* other = nullptr;
  void* other_library = nullptr;
  for (const char* name : kLibraries) {
    void* const library = loadedLibrary(name);
    if (library == nullptr) continue;
    if (majorOf(library) == DCNV2_TENSORRT_MAJOR) {
      static std::once_flag once;
      std::call_once(once, registerCreator, library, logger);
      return;
    }
    other = name;
    other_library = library;
  }
  if (other == nullptr) return;
  static std::once_flag once;
  std::call_once(once, refuse, other, other_library);
}

// Calls TensorRT's function of this name, of the major that the caller was compiled for, or of the one there is.
void* create(const char* function, void* logger, int32_t version) noexcept {
  const int32_t major = version / 10000;
  meetTensorRt(major == DCNV2_TENSORRT_MAJOR ? static_cast<ILogger*>(logger) : nullptr);
  auto real = find<void*(void*, int32_t)>(RTLD_NEXT, function);
  for (const char* name : kLibraries) {
    void* const library = loadedLibrary(name);
    if (library == nullptr || (real != nullptr && majorOf(library) != major)) continue;
    real = find<void*(void*, int32_t)>(library, function);
  }
  return real != nullptr ? real(logger, version) : nullptr;
}

struct AtLoad {
  AtLoad() noexcept { meetTensorRt(nullptr); }
} at_load;

}  // namespace
}  // namespace dcnv2

DCNV2_EXPORT void* createInferRuntime_INTERNAL(void* logger, int32_t version) noexcept {
  return dcnv2::create("createInferRuntime_INTERNAL", logger, version);
}

DCNV2_EXPORT void* createInferBuilder_INTERNAL(void* logger, int32_t version) noexcept {
  return dcnv2::create("createInferBuilder_INTERNAL", logger, version);
}

DCNV2_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) noexcept {
  using namespace dcnv2;
  static IPluginCreatorInterface* const creators[] = {&creator()};
  meetTensorRt(nullptr);
  // loadLibrary fails where the creator is registered already.
  if (registry != nullptr) registry->deregisterCreator(creator());
  count = registry != nullptr ? 1 : 0;
  return creators;
}

// loadLibrary takes a library without it for a failure.
DCNV2_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder*) noexcept {}
