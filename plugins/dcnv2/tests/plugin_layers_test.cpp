// Generated layers through the plugin, from the node's attributes to `enqueue`, with the kernels' own source
// on the host in place of CUDA, against the definition.
#include <deque>

#include "layers.h"
#include "plugin_testing.h"

namespace {

using dcnv2::Case;
using dcnv2::Layout;
using dcnv2::Placed;
using dcnv2::Problem;
using nvinfer1::PluginTensorDesc;

constexpr int32_t kLayers = 120;
constexpr int32_t kPlainTactic = 1;

// Dimensions as TensorRT gives them while it builds; all are known here.
class Dimension final : public nvinfer1::IDimensionExpr, public nvinfer1::apiv::VDimensionExpr {
  const int64_t value_;

 public:
  explicit Dimension(int64_t value) : value_(value) { mImpl = this; }
  bool isConstant() const override { return true; }
  int64_t getConstantValue() const override { return value_; }
  bool isSizeTensor() const override { return false; }
};

class DimensionBuilder final : public nvinfer1::IExprBuilder, public nvinfer1::apiv::VExprBuilder {
  std::deque<Dimension> made_;

 public:
  DimensionBuilder() { mImpl = this; }
  const nvinfer1::IDimensionExpr* constant(int64_t value) override { return &made_.emplace_back(value); }
  const nvinfer1::IDimensionExpr* operation(nvinfer1::DimensionOperation operation,
                                            const nvinfer1::IDimensionExpr& first,
                                            const nvinfer1::IDimensionExpr& second) override {
    const int64_t a = first.getConstantValue();
    const int64_t b = second.getConstantValue();
    switch (operation) {
      case nvinfer1::DimensionOperation::kSUM:
        return constant(a + b);
      case nvinfer1::DimensionOperation::kSUB:
        return constant(a - b);
      case nvinfer1::DimensionOperation::kPROD:
        return constant(a * b);
      case nvinfer1::DimensionOperation::kFLOOR_DIV:
        return constant(a / b);
      default:
        return nullptr;
    }
  }
  const nvinfer1::IDimensionExpr* declareSizeTensor(int32_t, const nvinfer1::IDimensionExpr&,
                                                    const nvinfer1::IDimensionExpr&) override {
    return nullptr;
  }
};

nvinfer1::DataType typeOf(dcnv2::DataType type) {
  return type == dcnv2::DataType::kFloat  ? DataType::kFLOAT
         : type == dcnv2::DataType::kHalf ? DataType::kHALF
                                          : DataType::kBF16;
}

TensorFormat formatOf(Layout layout, dcnv2::DataType type) {
  if (layout == Layout::kNCHW) return TensorFormat::kLINEAR;
  return type == dcnv2::DataType::kFloat ? TensorFormat::kHWC : TensorFormat::kHWC8;
}

std::vector<Attribute> attributesOf(const Problem& p) {
  return {{"stride", {p.stride_h, p.stride_w}},
          {"padding", {p.padding_h, p.padding_w}},
          {"dilation", {p.dilation_h, p.dilation_w}},
          {"groups", {p.groups}},
          {"deformable_group", {p.offset_groups}},
          {"packed_offset_mask", {p.packed_offset_mask}},
          {"weight_ohwi", {p.weight_ohwi}},
          {"relu", {p.relu}},
          {"allow_tf32", {p.allow_tf32}}};
}

// The tensors of a layer in the order of the node's inputs; the last one is the output.
std::vector<DynamicPluginTensorDesc> tensorsOf(const Problem& p) {
  const auto type = typeOf(p.type);
  const auto offset_type = typeOf(p.offset_type);
  const auto format = formatOf(p.layout, p.type);
  const auto offset_format = formatOf(p.offset_layout, p.offset_type);
  const int64_t depth = p.channels / p.groups;
  const std::vector<int64_t> weight =
      p.weight_ohwi ? std::vector<int64_t>{p.out_channels, p.kernel_h, p.kernel_w, depth}
                    : std::vector<int64_t>{p.out_channels, depth, p.kernel_h, p.kernel_w};
  std::vector<DynamicPluginTensorDesc> tensors{
      tensor({p.batch, p.channels, p.height, p.width}, type, format),
      tensor({p.batch, Placed::offsetChannels(p), p.out_height, p.out_width}, offset_type, offset_format),
      tensor({p.batch, Placed::samples(p), p.out_height, p.out_width}, offset_type, offset_format),
      tensor(weight, type),
      tensor({p.out_channels}, type),
      tensor({p.batch, p.out_channels, p.out_height, p.out_width}, type, format)};
  if (p.packed_offset_mask) tensors.erase(tensors.begin() + 2);
  return tensors;
}

// As TensorRT lays the tensors out in those formats.
Problem laidOut(Problem p) {
  const auto stride = [](Layout layout, dcnv2::DataType type, int32_t channels) {
    return formatOf(layout, type) == TensorFormat::kHWC8 ? (channels + 7) / 8 * 8 : channels;
  };
  p.input_stride = stride(p.layout, p.type, p.channels);
  p.output_stride = stride(p.layout, p.type, p.out_channels);
  p.offset_stride = stride(p.offset_layout, p.offset_type, Placed::offsetChannels(p));
  p.mask_stride = stride(p.offset_layout, p.offset_type, Placed::samples(p));
  return p;
}

Case draw(std::mt19937& random, int32_t index) {
  Case c;
  do {
    c = dcnv2::generate(random, index);
  } while (!c.has_mask);
  c.problem.allow_tf32 = random() % 2 == 0;
  c.problem.weight_ohwi = random() % 2 == 0;  // otherwise the plugin copies it
  // Padded channels of an output are refused.
  if (c.problem.type != dcnv2::DataType::kFloat && c.problem.out_channels % 8 != 0) {
    c.problem.layout = Layout::kNCHW;
  }
  c.problem.output_layout = c.problem.layout;
  return c;
}

void checkOutputShape(IPluginV3& plugin, const std::vector<DynamicPluginTensorDesc>& tensors,
                      const Problem& p) {
  DimensionBuilder builder;
  std::vector<nvinfer1::DimsExprs> inputs(tensors.size() - 1);
  for (size_t i = 0; i < inputs.size(); ++i) {
    inputs[i].nbDims = tensors[i].desc.dims.nbDims;
    for (int32_t d = 0; d < inputs[i].nbDims; ++d) inputs[i].d[d] = builder.constant(tensors[i].max.d[d]);
  }
  nvinfer1::DimsExprs output;
  const auto count = static_cast<int32_t>(inputs.size());
  CHECK(build(plugin).getOutputShapes(inputs.data(), count, nullptr, 0, &output, 1, builder) == 0, "shapes");
  const int64_t expected[] = {p.batch, p.out_channels, p.out_height, p.out_width};
  for (int32_t d = 0; d < 4; ++d) {
    const int64_t found = output.d[d]->getConstantValue();
    CHECK(found == expected[d], "dimension %d is %lld", d, static_cast<long long>(found));
  }
}

// The plain kernel, and a tensor-core tactic if there is one: the least work for the host.
std::vector<int32_t> tacticsOf(IPluginV3& plugin, const Problem& p, int32_t index) {
  std::vector<int32_t> numbers(static_cast<size_t>(build(plugin).getNbTactics()));
  build(plugin).getValidTactics(numbers.data(), static_cast<int32_t>(numbers.size()));
  const bool tiles = index % 2 == 0 && (p.type != dcnv2::DataType::kFloat || p.allow_tf32);
  CHECK((numbers.size() > 1) == tiles || p.batch == 0, "layer %d: %zu tactics", index, numbers.size());
  std::vector<int32_t> chosen{kPlainTactic};
  for (const int32_t shape : {6, 2, 1, 4}) {
    const auto found =
        std::find_if(numbers.begin(), numbers.end(), [&](int32_t n) { return n / 16 == shape; });
    if (found == numbers.end()) continue;
    chosen.push_back(*found);
    break;
  }
  return chosen;
}

double run(IPluginV3& built, int32_t tactic, const Case& c,
           const std::vector<DynamicPluginTensorDesc>& tensors, size_t workspace_size) {
  std::vector<PluginTensorDesc> descs;
  for (const auto& t : tensors) descs.push_back(t.desc);
  const PluginTensorDesc& output = descs.back();
  const auto count = static_cast<int32_t>(descs.size()) - 1;
  const PluginFieldCollection& fields = *runtime(built).getFieldsToSerialize();
  const auto restored = create(std::vector<PluginField>(fields.fields, fields.fields + fields.nbFields),
                               TensorRTPhase::kRUNTIME);
  const std::unique_ptr<IPluginV3> plugin(runtime(*restored).attachToContext(nullptr));
  runtime(*plugin).setTactic(tactic);
  CHECK(runtime(*plugin).onShapeChange(descs.data(), count, &output, 1) == 0, "%s", recorder.text.c_str());

  const Problem p = laidOut(c.problem);
  Placed placed(c, p);
  const dcnv2::Tensors at = placed.tensors();
  std::vector<const void*> inputs{at.input, at.offset, at.mask, at.weight, at.bias};
  if (p.packed_offset_mask) inputs.erase(inputs.begin() + 2);
  void* outputs[] = {at.output};
  constexpr size_t kGuard = 256;
  std::vector<char> workspace(workspace_size + 2 * kGuard, '\x5a');
  char* aligned =
      workspace.data() + (kGuard - reinterpret_cast<uintptr_t>(workspace.data()) % kGuard) % kGuard;
  const int32_t status =
      runtime(*plugin).enqueue(descs.data(), &output, inputs.data(), outputs, aligned, nullptr);
  CHECK(status == 0, "tactic %d: %s", tactic, recorder.text.c_str());
  CHECK(std::all_of(aligned + workspace_size, workspace.data() + workspace.size(),
                    [](char byte) { return byte == '\x5a'; }),
        "tactic %d writes beyond its workspace of %zu bytes", tactic, workspace_size);
  return placed.error(dcnv2::define(c));
}

}  // namespace

void testLayers() {
  std::mt19937 random(20261127);
  int32_t on_tiles = 0;
  for (int32_t index = 0; index < kLayers; ++index) {
    const Case c = draw(random, index);
    const Problem& p = c.problem;
    const auto tensors = tensorsOf(p);
    const auto count = static_cast<int32_t>(tensors.size()) - 1;
    const auto plugin = create(attributesOf(p));
    recorder.text.clear();
    checkOutputShape(*plugin, tensors, p);
    for (int32_t i = 0; i <= count; ++i) {
      CHECK(build(*plugin).supportsFormatCombination(i, tensors.data(), count, 1), "layer %d, tensor %d",
            index, i);
    }
    auto profile = tensors;
    for (auto& t : profile) {
      const bool has_batch = &t == &profile.back() || &t - profile.data() < count - 2;
      if (index % 3 == 0 && has_batch) t.desc.dims.d[0] = -1;
    }
    CHECK(build(*plugin).configurePlugin(profile.data(), count, &profile.back(), 1) == 0, "layer %d: %s",
          index, recorder.text.c_str());
    const size_t workspace = build(*plugin).getWorkspaceSize(profile.data(), count, &profile.back(), 1);
    for (const int32_t tactic : tacticsOf(*plugin, p, index)) {
      const double error = run(*plugin, tactic, c, tensors, workspace);
      const bool exact = tactic == kPlainTactic;
      const double limit = exact ? dcnv2::exactLimit(p.type) : dcnv2::tileLimit(p.type);
      CHECK(error <= limit, "layer %d, tactic %d: relative error %g, expected at most %g", index, tactic,
            error, limit);
      on_tiles += !exact && p.batch > 0;
    }
  }
  CHECK(on_tiles >= kLayers / 4, "%d runs on tensor cores", on_tiles);
}
