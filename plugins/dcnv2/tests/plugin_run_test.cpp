// The plugin through TensorRT's own interfaces: workspace, tactics, failures. Where every launch fails, its
// message tells which tactic ran.
#include "emulated_runtime.h"
#include "plugin_testing.h"

namespace {

void testWorkspace() {
  const auto plugin = create({{"padding", {1}}});
  auto tensors = layer();
  for (auto& t : tensors) t.desc.type = DataType::kHALF;
  const auto size = [&] { return build(*plugin).getWorkspaceSize(tensors.data(), 5, &tensors[5], 1); };
  constexpr size_t kWeight = 2304;  // 16 * 8 * 3 * 3 halves, a multiple of 256
  CHECK(size() == kWeight + 2 * 8 * 10 * 12 * 2, "%zu", size());

  // Beyond the largest image of the tensor-core kernels a smaller one may still be copied.
  for (const size_t i : {0, 1, 2, 5}) {
    tensors[i].desc.dims.d[2] = tensors[i].desc.dims.d[3] = -1;
    tensors[i].max.d[2] = tensors[i].max.d[3] = 20000;
  }
  CHECK(size() == kWeight + 2 * size_t{INT32_MAX}, "%zu", size());

  // TensorRT rounds it up, and must not arrive at zero.
  tensors[1].max.d[2] = 19999;
  messages([&] { CHECK(size() >= size_t{1} << 48 && size() < SIZE_MAX / 2, "%zu", size()); });
}

// The tensor-core kernels run some numbers of channels up to the largest, if not that one itself.
void testWorkspaceOfDynamicChannels() {
  const auto plugin = create({{"padding", {1}}, {"deformable_group", {5}}});
  auto tensors = layer();
  tensors[0] = tensor({2, 325, 10, 12});
  tensors[1] = tensor({2, 90, 10, 12});
  tensors[2] = tensor({2, 45, 10, 12});
  tensors[3] = tensor({16, 325, 3, 3});
  for (auto& t : tensors) t.desc.type = DataType::kHALF;
  tensors[0].desc.dims.d[1] = tensors[3].desc.dims.d[1] = -1;
  const size_t size = build(*plugin).getWorkspaceSize(tensors.data(), 5, &tensors[5], 1);
  CHECK(size >= (16 * 9 + 2 * 10 * 12) * 320 * 2, "%zu", size);
}

// Of every tensor, as it comes with a run.
std::vector<nvinfer1::PluginTensorDesc> descriptions(const std::vector<DynamicPluginTensorDesc>& tensors) {
  std::vector<nvinfer1::PluginTensorDesc> descs;
  for (const auto& t : tensors) descs.push_back(t.desc);
  return descs;
}

int32_t enqueue(IPluginV3& plugin, const std::vector<nvinfer1::PluginTensorDesc>& descs) {
  const void* inputs[5] = {};
  void* outputs[1] = {};
  return runtime(plugin).enqueue(descs.data(), &descs[5], inputs, outputs, nullptr, nullptr);
}

int32_t enqueueBatch(int64_t batch) {
  const auto plugin = create({{"padding", {1}}});
  const std::unique_ptr<IPluginV3> attached(runtime(*plugin).attachToContext(nullptr));
  const auto descs = descriptions(layer(batch));
  CHECK(runtime(*attached).onShapeChange(descs.data(), 5, &descs[5], 1) == 0, "batch %d",
        static_cast<int>(batch));
  return enqueue(*attached, descs);
}

// Every launch fails while it lives.
struct LaunchesFail {
  LaunchesFail() { dcnv2::emulation::launch_error = cudaErrorLaunchFailure; }
  ~LaunchesFail() { dcnv2::emulation::launch_error = cudaSuccess; }
};

void testFailure() {
  const LaunchesFail fail;
  CHECK(enqueueBatch(0) == 0, "an empty batch");
  int32_t status = 0;
  const std::string message = messages([&] { status = enqueueBatch(2); });
  CHECK(status != 0, "a launch that fails");
  checkMessage(message, "node 'layer1.conv': tactic");
}

// A 3x3 layer of halves, 16 -> 16 channels.
std::vector<DynamicPluginTensorDesc> square(int64_t side) {
  std::vector<DynamicPluginTensorDesc> tensors{tensor({1, 16, side, side}),
                                               tensor({1, 18, side, side}),
                                               tensor({1, 9, side, side}),
                                               tensor({16, 16, 3, 3}),
                                               tensor({16}),
                                               tensor({1, 16, side, side})};
  for (auto& t : tensors) t.desc.type = DataType::kHALF;
  return tensors;
}

// TensorRT sets tactic and shape in either order. A timed tactic runs every shape that it can.
void testTactics() {
  const LaunchesFail fail;
  const auto timed = square(10);
  const auto plugin = create({{"padding", {1}}});
  build(*plugin).configurePlugin(timed.data(), 5, &timed[5], 1);
  std::vector<int32_t> numbers(build(*plugin).getNbTactics());
  build(*plugin).getValidTactics(numbers.data(), static_cast<int32_t>(numbers.size()));
  CHECK(numbers.size() > 1, "%zu tactics", numbers.size());
  CHECK(numbers.back() == 1, "%d is last, expected the plain kernel", numbers.back());

  const auto checkTactic = [](IPluginV3& each, const std::vector<nvinfer1::PluginTensorDesc>& descs,
                              int32_t expected) {
    checkMessage(messages([&] { enqueue(each, descs); }), "tactic " + std::to_string(expected) + " failed");
  };
  const auto usual = descriptions(timed);
  const auto other = descriptions(square(300));
  // More bytes than the tensor-core kernels count, and fewer offsets than the plain one does.
  const auto large = descriptions(square(8900));
  for (const int32_t number : numbers) {
    runtime(*plugin).setTactic(number);
    for (const auto* descs : {&usual, &other, &large}) {
      runtime(*plugin).onShapeChange(descs->data(), 5, &descs->at(5), 1);
      const std::unique_ptr<IPluginV3> clone(plugin->clone());
      for (IPluginV3* each : {plugin.get(), clone.get()}) {
        checkTactic(*each, *descs, descs == &large ? 1 : number);
      }
    }
  }
  runtime(*plugin).onShapeChange(usual.data(), 5, &usual[5], 1);
  for (const int32_t number : numbers) {
    runtime(*plugin).setTactic(number);
    checkTactic(*plugin, usual, number);
  }
}

}  // namespace

void testRuns() {
  testWorkspace();
  testWorkspaceOfDynamicChannels();
  testFailure();
  testTactics();
}
