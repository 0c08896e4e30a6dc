#include "plugin_attributes.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string_view>

namespace dcnv2 {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

constexpr int32_t kAny = std::numeric_limits<int32_t>::max();
constexpr int32_t kFar = 32767;  // so that coordinates fit 32 bits

struct Slot {
  const char* name;
  int32_t* values;
  int32_t length;
  int32_t lowest, highest;
};

std::array<Slot, 11> slots(Attributes& a) {
  return {{{"stride", a.stride.data(), 2, 1, kFar},
           {"padding", a.padding.data(), 2, 0, kFar},
           {"dilation", a.dilation.data(), 2, 1, kFar},
           {"groups", &a.groups, 1, 1, kAny},
           {"deformable_group", &a.deformable_group, 1, 1, kAny},
           {"packed_offset_mask", &a.packed_offset_mask, 1, 0, 1},
           {"weight_ohwi", &a.weight_ohwi, 1, 0, 1},
           {"relu", &a.relu, 1, 0, 1},
           {"allow_tf32", &a.allow_tf32, 1, 0, 1},
           {"quantized", &a.quantized, 1, 0, 1},
           {"quantized_output", &a.quantized_output, 1, 0, 1}}};
}

int64_t valueAt(const PluginField& field, int32_t index) {
  switch (field.type) {
    case PluginFieldType::kINT32:
      return static_cast<const int32_t*>(field.data)[index];
    case PluginFieldType::kINT64:
      return static_cast<const int64_t*>(field.data)[index];
    default:
      throw std::invalid_argument("attribute " + std::string(field.name) + " has the field type " +
                                  std::to_string(static_cast<int32_t>(field.type)) + ", expected integers");
  }
}

void read(const PluginField& field, const Slot& slot) {
  const std::string name = slot.name;
  const int32_t length = field.data != nullptr ? field.length : 0;
  if (length != 1 && length != slot.length) {
    throw std::invalid_argument("attribute " + name + " has " + std::to_string(length) +
                                " values, expected " + (slot.length == 1 ? "1" : "1 or 2 (height, width)"));
  }
  for (int32_t i = 0; i < slot.length; ++i) {
    const int64_t value = valueAt(field, std::min(i, length - 1));
    if (value < slot.lowest || value > slot.highest) {
      throw std::invalid_argument("attribute " + name + " is " + std::to_string(value) + ", expected " +
                                  (slot.highest == kAny
                                       ? "at least " + std::to_string(slot.lowest)
                                       : std::to_string(slot.lowest) + (slot.highest == 1 ? " or " : " to ") +
                                             std::to_string(slot.highest)));
    }
    slot.values[i] = static_cast<int32_t>(value);
  }
}

}  // namespace

Attributes Attributes::parse(const nvinfer1::PluginFieldCollection& fields) {
  Attributes attributes;
  const auto known = slots(attributes);
  for (int32_t i = 0; i < fields.nbFields; ++i) {
    const PluginField& field = fields.fields[i];
    const auto slot = std::find_if(known.begin(), known.end(),
                                   [&](const Slot& s) { return std::string_view(s.name) == field.name; });
    if (slot == known.end()) {
      std::string names;
      for (const Slot& s : known) names += (names.empty() ? "" : ", ") + std::string(s.name);
      throw std::invalid_argument("unknown attribute " + std::string(field.name) + ", expected " + names);
    }
    read(field, *slot);
  }
  if (attributes.quantized_output && !attributes.quantized) {
    throw std::invalid_argument("attribute quantized_output is 1, expected quantized 1 beside it");
  }
  return attributes;
}

std::vector<PluginField> Attributes::fields() const {
  std::vector<PluginField> result;
  for (const Slot& slot : slots(const_cast<Attributes&>(*this))) {
    result.emplace_back(slot.name, slot.values, PluginFieldType::kINT32, slot.length);
  }
  return result;
}

std::string Attributes::id() const {
  std::string result;
  for (const PluginField& field : fields()) {
    result += (result.empty() ? "" : ";") + std::string(field.name) + "=";
    for (int32_t i = 0; i < field.length; ++i)
      result += (i > 0 ? "," : "") + std::to_string(valueAt(field, i));
  }
  return result;
}

}  // namespace dcnv2
