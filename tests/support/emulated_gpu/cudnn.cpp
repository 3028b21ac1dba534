// cuDNN's backend API as far as ops/cudnn.cpp uses it, on the host: descriptors are maps of
// attributes, graphs of a convolution and pointwise operations are run as plain loops.
//
// Strict where the library is: unknown descriptors and attributes, missing ones, misaligned
// pointers and unknown uids are errors. It recommends engines that nobody may take, before and
// beside good ones: what they compute is NaN or has TF32's precision. Engine 0 adds in another
// order than the others and is the fastest, though recommended last. CONVOY_EMULATED_CUDNN_PREFERS
// and _REFUSES name an engine that is recommended first, or that does not work (a plan from its
// JSON does). Engine 10 compiles and is recommended only so.
#include <cudnn_backend.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "ops/core/tensor.h"
#include "tests/support/emulated_gpu/emulated_gpu.h"

struct cudnnContext {
  cudaStream_t stream = nullptr;
};

namespace convoy::emulated_gpu {
namespace {

thread_local std::string last_error;

struct Refused {
  cudnnStatus_t status;
  std::string why;
};
[[noreturn]] void refuse(cudnnStatus_t status, std::string why) {
  throw Refused{status, std::move(why)};
}
template <typename Body>
cudnnStatus_t guarded(Body body) {
  try {
    body();
    return CUDNN_STATUS_SUCCESS;
  } catch (const Refused& r) {
    last_error = r.why;
    std::fprintf(stderr, "%s", r.status >= 3000 ? "" : ("emulated cuDNN: " + r.why + "\n").c_str());
    return r.status;
  }
}

// ---- Descriptors.

struct Descriptor;
using Reference = std::shared_ptr<Descriptor>;

struct Attribute {
  cudnnBackendAttributeType_t type = {};
  std::vector<char> bytes;  // of all values
  std::vector<Reference> descriptors;
};
struct Descriptor {
  cudnnBackendDescriptorType_t type = {};
  bool final = false;
  std::map<int, Attribute> attributes;

  bool has(int name) const { return attributes.contains(name); }
  const Attribute& at(int name) const {
    const auto found = attributes.find(name);
    if (found == attributes.end())
      refuse(CUDNN_STATUS_BAD_PARAM,
             "descriptor " + std::to_string(type) + " lacks attribute " + std::to_string(name));
    return found->second;
  }
  template <typename T>
  std::vector<T> all(int name) const {
    const Attribute& a = at(name);
    std::vector<T> values(a.bytes.size() / sizeof(T));
    if (!values.empty()) std::memcpy(values.data(), a.bytes.data(), a.bytes.size());
    return values;
  }
  template <typename T>
  T get(int name) const {
    return all<T>(name).at(0);
  }
  const Descriptor& one(int name) const { return *at(name).descriptors.at(0); }
  template <typename T>
  void put(int name, cudnnBackendAttributeType_t t, const std::vector<T>& values) {
    Attribute& a = attributes[name] = {.type = t};
    a.bytes.resize(values.size() * sizeof(T));
    if (!values.empty()) std::memcpy(a.bytes.data(), values.data(), a.bytes.size());
  }
};

Reference& of(cudnnBackendDescriptor_t descriptor) {
  if (!descriptor) refuse(CUDNN_STATUS_BAD_PARAM_NULL_POINTER, "a null descriptor");
  return *static_cast<Reference*>(descriptor);
}

size_t size_of(cudnnBackendAttributeType_t type) {
  switch (type) {
    case CUDNN_TYPE_BOOLEAN:
    case CUDNN_TYPE_CHAR:
      return 1;
    case CUDNN_TYPE_INT64:
    case CUDNN_TYPE_HANDLE:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_BACKEND_DESCRIPTOR:
      return 8;
    default:
      return 4;
  }
}

// The attributes of each descriptor that may be set, with their type; those that must be come
// first, up to kOptional.
struct Rule {
  int name;
  cudnnBackendAttributeType_t type;
};
constexpr Rule kOptional = {-1, {}};

const std::vector<Rule>& rules(cudnnBackendDescriptorType_t type) {
  constexpr auto kInt = CUDNN_TYPE_INT64;
  constexpr auto kPart = CUDNN_TYPE_BACKEND_DESCRIPTOR;
  constexpr auto kData = CUDNN_TYPE_DATA_TYPE;
  // alpha, beta, the convolution and its three tensors, which are numbered alike.
  const auto operation = [](int first) {
    return std::vector<Rule>{{first, CUDNN_TYPE_FLOAT},
                             {first + 1, CUDNN_TYPE_FLOAT},
                             {first + 2, kPart},
                             {first + 3, kPart},
                             {first + 4, kPart},
                             {first + 5, kPart},
                             kOptional};
  };
  static const std::map<cudnnBackendDescriptorType_t, std::vector<Rule>> all = {
      {CUDNN_BACKEND_TENSOR_DESCRIPTOR,
       {{CUDNN_ATTR_TENSOR_UNIQUE_ID, kInt},
        {CUDNN_ATTR_TENSOR_DATA_TYPE, kData},
        {CUDNN_ATTR_TENSOR_DIMENSIONS, kInt},
        {CUDNN_ATTR_TENSOR_STRIDES, kInt},
        {CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, kInt},
        kOptional,
        {CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN},
        {CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN}}},
      {CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR,
       {{CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, kInt},
        {CUDNN_ATTR_CONVOLUTION_COMP_TYPE, kData},
        {CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE},
        {CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, kInt},
        {CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, kInt},
        {CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, kInt},
        {CUDNN_ATTR_CONVOLUTION_DILATIONS, kInt},
        kOptional}},
      {CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
       operation(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA)},
      {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
       operation(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA)},
      {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
       operation(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA)},
      {CUDNN_BACKEND_POINTWISE_DESCRIPTOR,
       {{CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE},
        {CUDNN_ATTR_POINTWISE_MATH_PREC, kData},
        kOptional,
        {CUDNN_ATTR_POINTWISE_NAN_PROPAGATION, CUDNN_TYPE_NAN_PROPOGATION}}},
      {CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR,
       {{CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, kPart},
        {CUDNN_ATTR_OPERATION_POINTWISE_XDESC, kPart},
        {CUDNN_ATTR_OPERATION_POINTWISE_YDESC, kPart},
        kOptional,
        {CUDNN_ATTR_OPERATION_POINTWISE_BDESC, kPart}}},
      {CUDNN_BACKEND_OPERATION_GEN_STATS_DESCRIPTOR,
       {{CUDNN_ATTR_OPERATION_GENSTATS_MODE, CUDNN_TYPE_GENSTATS_MODE},
        {CUDNN_ATTR_OPERATION_GENSTATS_MATH_PREC, kData},
        {CUDNN_ATTR_OPERATION_GENSTATS_XDESC, kPart},
        {CUDNN_ATTR_OPERATION_GENSTATS_SUMDESC, kPart},
        {CUDNN_ATTR_OPERATION_GENSTATS_SQSUMDESC, kPart},
        kOptional}},
      {CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR,
       {{CUDNN_ATTR_OPERATIONGRAPH_OPS, kPart},
        {CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE},
        kOptional}},
      {CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR,
       {{CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, kPart},
        {CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE},
        kOptional}},
      {CUDNN_BACKEND_ENGINE_DESCRIPTOR,
       {{CUDNN_ATTR_ENGINE_OPERATION_GRAPH, kPart},
        {CUDNN_ATTR_ENGINE_GLOBAL_INDEX, kInt},
        kOptional}},
      {CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR,
       {{CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE},
        {CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, kInt},
        kOptional}},
      {CUDNN_BACKEND_ENGINECFG_DESCRIPTOR,
       {{CUDNN_ATTR_ENGINECFG_ENGINE, kPart},
        kOptional,
        {CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, kPart}}},
      {CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR,
       {{CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE},
        kOptional,  // but one of these must be
        {CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, kPart},
        {CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION, CUDNN_TYPE_CHAR}}},
      {CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR,
       {{CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, kInt},
        {CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR},
        {CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR},
        kOptional}},
  };
  const auto found = all.find(type);
  if (found == all.end())
    refuse(CUDNN_STATUS_BAD_PARAM_DESCRIPTOR_TYPE,
           "descriptors of type " + std::to_string(type) + " are not emulated");
  return found->second;
}

// ---- Graphs.

struct Tensor {
  int64_t uid, alignment;
  std::vector<int64_t> dims, strides;
  cudnnDataType_t type;
  bool is_virtual, is_by_value;

  explicit Tensor(const Descriptor& d)
      : uid(d.get<int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID)),
        alignment(d.get<int64_t>(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT)),
        dims(d.all<int64_t>(CUDNN_ATTR_TENSOR_DIMENSIONS)),
        strides(d.all<int64_t>(CUDNN_ATTR_TENSOR_STRIDES)),
        type(d.get<cudnnDataType_t>(CUDNN_ATTR_TENSOR_DATA_TYPE)),
        is_virtual(d.has(CUDNN_ATTR_TENSOR_IS_VIRTUAL)),
        is_by_value(d.has(CUDNN_ATTR_TENSOR_IS_BY_VALUE)) {
    if (dims.size() != 4 || strides.size() != 4)
      refuse(CUDNN_STATUS_BAD_PARAM, "tensors have four dimensions here");
  }
  int64_t elements() const { return dims[0] * dims[1] * dims[2] * dims[3]; }
  size_t element_bytes() const { return type == CUDNN_DATA_FLOAT ? 4 : 2; }
};

// The values of a tensor in fp32, in the order of its dimensions.
using Values = std::vector<float>;

// body(index of a value, place of the element)
template <typename Body>
void for_each_element(const Tensor& t, Body body) {
  size_t i = 0;
  for (int64_t a = 0; a < t.dims[0]; ++a)
    for (int64_t b = 0; b < t.dims[1]; ++b)
      for (int64_t c = 0; c < t.dims[2]; ++c)
        for (int64_t d = 0; d < t.dims[3]; ++d)
          body(i++, a * t.strides[0] + b * t.strides[1] + c * t.strides[2] + d * t.strides[3]);
}
Values read(const Tensor& t, const void* memory) {
  Values out(static_cast<size_t>(t.elements()));
  for_each_element(t, [&](size_t i, int64_t at) {
    out[i] = t.type == CUDNN_DATA_FLOAT  ? static_cast<const float*>(memory)[at]
             : t.type == CUDNN_DATA_HALF ? to_float(static_cast<const Float16*>(memory)[at])
                                         : to_float(static_cast<const Bfloat16*>(memory)[at]);
  });
  return out;
}
void write(const Tensor& t, void* memory, const Values& values) {
  for_each_element(t, [&](size_t i, int64_t at) {
    if (t.type == CUDNN_DATA_FLOAT)
      static_cast<float*>(memory)[at] = values[i];
    else if (t.type == CUDNN_DATA_HALF)
      static_cast<Float16*>(memory)[at] = to_float16(values[i]);
    else
      static_cast<Bfloat16*>(memory)[at] = to_bfloat16(values[i]);
  });
}

struct Operation {
  cudnnBackendDescriptorType_t kind = {};
  std::vector<Tensor> in;
  std::vector<Tensor> out;  // one; of sums two
  int64_t stride = 1, padding = 0;
  std::vector<Tensor> x, w, y;  // of a convolution, one each
  cudnnPointwiseMode_t mode = {};
  bool keeps_nan = false;
};

Operation read_operation(const Descriptor& d) {
  Operation op{.kind = d.type};
  if (d.type == CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR) {
    const Descriptor& what = d.one(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR);
    op.mode = what.get<cudnnPointwiseMode_t>(CUDNN_ATTR_POINTWISE_MODE);
    op.keeps_nan = what.has(CUDNN_ATTR_POINTWISE_NAN_PROPAGATION) &&
                   what.get<int>(CUDNN_ATTR_POINTWISE_NAN_PROPAGATION) == 1;
    op.in.emplace_back(d.one(CUDNN_ATTR_OPERATION_POINTWISE_XDESC));
    if (d.has(CUDNN_ATTR_OPERATION_POINTWISE_BDESC))
      op.in.emplace_back(d.one(CUDNN_ATTR_OPERATION_POINTWISE_BDESC));
    op.out.emplace_back(d.one(CUDNN_ATTR_OPERATION_POINTWISE_YDESC));
    const bool two = op.mode == CUDNN_POINTWISE_ADD || op.mode == CUDNN_POINTWISE_MUL;
    if (!two && op.mode != CUDNN_POINTWISE_RELU_FWD)
      refuse(CUDNN_STATUS_NOT_SUPPORTED, "pointwise mode " + std::to_string(op.mode));
    if (op.in.size() != (two ? 2u : 1u)) refuse(CUDNN_STATUS_BAD_PARAM, "operands of a pointwise");
    return op;
  }
  if (d.type == CUDNN_BACKEND_OPERATION_GEN_STATS_DESCRIPTOR) {
    op.in.emplace_back(d.one(CUDNN_ATTR_OPERATION_GENSTATS_XDESC));
    op.out.emplace_back(d.one(CUDNN_ATTR_OPERATION_GENSTATS_SUMDESC));
    op.out.emplace_back(d.one(CUDNN_ATTR_OPERATION_GENSTATS_SQSUMDESC));
    for (const Tensor& t : op.out)
      if (t.elements() != op.in[0].dims[1] || t.dims[1] != op.in[0].dims[1] ||
          t.type != CUDNN_DATA_FLOAT)
        refuse(CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH, "shapes of sums");
    return op;
  }
  const bool forward = d.type == CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR;
  const bool to_data = d.type == CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR;
  const int first = forward   ? CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA
                    : to_data ? CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA
                              : CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA;
  if (d.get<float>(first) != 1.0f || d.get<float>(first + 1) != 0.0f)
    refuse(CUDNN_STATUS_NOT_SUPPORTED, "alpha and beta other than 1 and 0");
  // Each operation orders its tensors otherwise: W X Y, W DX DY, DW X DY.
  op.w.emplace_back(d.one(first + 3));
  op.x.emplace_back(d.one(first + 4));
  op.y.emplace_back(d.one(first + 5));
  op.out = forward ? op.y : to_data ? op.x : op.w;
  if (!to_data) op.in.push_back(op.x[0]);
  if (forward || to_data) op.in.push_back(op.w[0]);
  if (!forward) op.in.push_back(op.y[0]);
  const Descriptor& conv = d.one(first + 2);
  if (conv.get<cudnnDataType_t>(CUDNN_ATTR_CONVOLUTION_COMP_TYPE) != CUDNN_DATA_FLOAT ||
      conv.get<int>(CUDNN_ATTR_CONVOLUTION_CONV_MODE) != CUDNN_CROSS_CORRELATION)
    refuse(CUDNN_STATUS_NOT_SUPPORTED, "convolutions are cross-correlations in fp32 here");
  for (const int name : {CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS,
                         CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_ATTR_CONVOLUTION_DILATIONS}) {
    const auto v = conv.all<int64_t>(name);
    if (v.size() != 2 || v[0] != v[1]) refuse(CUDNN_STATUS_NOT_SUPPORTED, "unequal geometry");
  }
  op.stride = conv.get<int64_t>(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES);
  op.padding = conv.get<int64_t>(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS);
  if (conv.get<int64_t>(CUDNN_ATTR_CONVOLUTION_DILATIONS) != 1 ||
      conv.get<int64_t>(CUDNN_ATTR_CONVOLUTION_POST_PADDINGS) != op.padding)
    refuse(CUDNN_STATUS_NOT_SUPPORTED, "unequal geometry");
  const auto &x = op.x[0].dims, &w = op.w[0].dims, &y = op.y[0].dims;
  bool fits = x[0] == y[0] && w[0] == y[1] && x[1] % w[1] == 0 && w[0] % (x[1] / w[1]) == 0;
  for (const size_t i : {2, 3})
    fits = fits && (x[i] + 2 * op.padding - w[i]) / op.stride + 1 == y[i];
  if (!fits) refuse(CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH, "shapes of a convolution");
  return op;
}

std::vector<Operation> operations(const Descriptor& graph) {
  std::vector<Operation> all;
  for (const Reference& op : graph.at(CUDNN_ATTR_OPERATIONGRAPH_OPS).descriptors)
    all.push_back(read_operation(*op));
  if (all.empty() || all[0].kind == CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR)
    refuse(CUDNN_STATUS_NOT_SUPPORTED_GRAPH_PATTERN, "a graph begins with a convolution here");
  for (size_t i = 1; i < all.size(); ++i) {
    // What is summed is written, too.
    const bool sums = all[i].kind == CUDNN_BACKEND_OPERATION_GEN_STATS_DESCRIPTOR;
    if ((!sums && all[i].kind != CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR) ||
        all[i].in[0].uid != all[i - 1].out[0].uid || all[i - 1].out[0].is_virtual == sums)
      refuse(CUDNN_STATUS_NOT_SUPPORTED_GRAPH_PATTERN, "a graph is a chain here");
  }
  return all;
}

bool sums_up(const std::vector<Operation>& ops) {
  return ops.back().kind == CUDNN_BACKEND_OPERATION_GEN_STATS_DESCRIPTOR;
}

// What the real library (9.19, for an H200) has no engine for.
bool is_unsupported(const std::vector<Operation>& ops) {
  const Tensor &x = ops[0].x[0], &w = ops[0].w[0], &y = ops[0].y[0];
  if (sums_up(ops) && (x.type == CUDNN_DATA_FLOAT || x.dims[1] % 8 != 0 || y.dims[1] % 8 != 0))
    return true;
  const int64_t groups = x.dims[1] / w.dims[1];
  if (ops[0].kind == CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR &&
      x.type != CUDNN_DATA_FLOAT && ops.back().out[0].type == CUDNN_DATA_FLOAT)
    return ops.size() == 1 || groups > 1 || x.dims[1] % 8 != 0 || y.dims[1] % 8 != 0;
  return ops.size() > 1 && x.type == CUDNN_DATA_BFLOAT16 && groups > 1 && w.dims[1] % 2 != 0;
}

// ---- Engines.

struct Engine {
  int64_t index;
  std::vector<int> notes;
  bool refuses = false;  // its plans
  bool compiles = false;
  int64_t workspace = 0;
};
const std::vector<Engine>& engines() {
  static const std::vector<Engine> all = {
      {.index = 3,
       .notes = {CUDNN_NUMERICAL_NOTE_TENSOR_CORE, CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC}},
      {.index = 4, .notes = {CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION}},
      {.index = 12, .notes = {CUDNN_NUMERICAL_NOTE_WINOGRAD}},
      {.index = 6, .notes = {}, .refuses = true},
      {.index = 7, .notes = {}, .compiles = true, .workspace = 64},
      {.index = 8, .notes = {}, .workspace = int64_t{1} << 40},
      {.index = 5, .notes = {CUDNN_NUMERICAL_NOTE_TENSOR_CORE}, .workspace = 1000},
      {.index = 9, .notes = {}, .workspace = 2000},
      {.index = 0, .notes = {CUDNN_NUMERICAL_NOTE_STRICT_NAN_PROP}},
      {.index = 10, .notes = {}, .compiles = true, .workspace = 3000},
  };
  return all;
}
constexpr int64_t kTensorCores = 5, kFma = 9, kPlain = 0, kCompiled = 7, kCompiledWell = 10;
constexpr int64_t kKnobValues = 3;  // of CUDNN_KNOB_TYPE_TILE_SIZE, which engines 5 and 9 have

// An environment variable that names an engine; -1: none.
int64_t named_by(const char* variable) {
  const char* text = std::getenv(variable);
  return text ? std::atoi(text) : -1;
}
bool refuses(const Engine& engine) {
  return engine.refuses || engine.index == named_by("CONVOY_EMULATED_CUDNN_REFUSES");
}

const Engine& engine_of(const Descriptor& engine) {
  const auto index = engine.get<int64_t>(CUDNN_ATTR_ENGINE_GLOBAL_INDEX);
  for (const Engine& e : engines())
    if (e.index == index) return e;
  refuse(CUDNN_STATUS_NOT_SUPPORTED, "no engine " + std::to_string(index));
}

Reference make(cudnnBackendDescriptorType_t type) {
  auto d = std::make_shared<Descriptor>();
  d->type = type;
  return d;
}

Reference configuration(const Reference& graph, int64_t engine_index, int64_t knob) {
  const Reference engine = make(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  engine->attributes[CUDNN_ATTR_ENGINE_OPERATION_GRAPH].descriptors = {graph};
  engine->put<int64_t>(CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, {engine_index});
  engine->final = true;
  const Reference out = make(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
  out->attributes[CUDNN_ATTR_ENGINECFG_ENGINE].descriptors = {engine};
  if (engine_index == kTensorCores || engine_index == kFma) {
    const Reference choice = make(CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR);
    choice->put<int>(CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE,
                     {CUDNN_KNOB_TYPE_TILE_SIZE});
    choice->put<int64_t>(CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64, {knob});
    choice->final = true;
    out->attributes[CUDNN_ATTR_ENGINECFG_KNOB_CHOICES].descriptors = {choice};
  }
  out->final = true;
  return out;
}

std::vector<Reference> recommended(const Descriptor& heuristics) {
  const Reference graph = heuristics.at(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH).descriptors.at(0);
  const std::vector<Operation> ops = operations(*graph);
  if (is_unsupported(ops)) return {};
  // In bf16 the library compiles all that sum up.
  if (sums_up(ops) && ops[0].x[0].type == CUDNN_DATA_BFLOAT16)
    return {configuration(graph, kCompiled, 1)};
  std::vector<Reference> all;
  switch (heuristics.get<cudnnBackendHeurMode_t>(CUDNN_ATTR_ENGINEHEUR_MODE)) {
    case CUDNN_HEUR_MODE_A:
      for (const Engine& e : engines())
        if (e.index == named_by("CONVOY_EMULATED_CUDNN_PREFERS"))
          all.push_back(configuration(graph, e.index, 1));
      for (const Engine& e : engines())
        if (e.index != kPlain && e.index != kCompiledWell && (e.index != kCompiled || sums_up(ops)))
          all.push_back(configuration(graph, e.index, 1));
      break;
    case CUDNN_HEUR_MODE_B:  // one of them again
      for (int64_t knob = 1; knob < kKnobValues; ++knob)
        all.push_back(configuration(graph, kFma, knob));
      break;
    default:
      all.push_back(configuration(graph, kPlain, 0));
  }
  return all;
}

// ---- A plan's JSON: its configuration, which is all that there is to know here.

void write_json(std::ostream& out, const Descriptor& d) {
  out << d.type << ' ' << d.attributes.size() << ' ';
  for (const auto& [name, a] : d.attributes) {
    const bool handle = a.type == CUDNN_TYPE_HANDLE;  // another process has another
    out << name << ' ' << a.type << ' ' << (handle ? 0 : a.bytes.size()) << ' ';
    if (!handle)
      for (const char byte : a.bytes) out << int{byte} << ' ';
    out << a.descriptors.size() << ' ';
    for (const Reference& part : a.descriptors) write_json(out, *part);
  }
}

Reference read_json(std::istream& in) {
  const auto number = [&] {
    int64_t n = 0;
    if (!(in >> n)) refuse(CUDNN_STATUS_BAD_PARAM, "the JSON of a plan");
    return n;
  };
  const Reference d = make(static_cast<cudnnBackendDescriptorType_t>(number()));
  for (int64_t attributes = number(); attributes > 0; --attributes) {
    Attribute& a = d->attributes[static_cast<int>(number())];
    a.type = static_cast<cudnnBackendAttributeType_t>(number());
    for (int64_t bytes = number(); bytes > 0; --bytes)
      a.bytes.push_back(static_cast<char>(number()));
    for (int64_t parts = number(); parts > 0; --parts) a.descriptors.push_back(read_json(in));
  }
  d->final = true;
  return d;
}

Reference from_json(const std::string& json) {
  std::istringstream in(json);
  return read_json(in);
}

// ---- Finalizing and reading.

void finalize(Descriptor& d) {
  for (const Rule& rule : rules(d.type)) {
    if (rule.name == kOptional.name) break;
    if (!d.has(rule.name))
      refuse(CUDNN_STATUS_BAD_PARAM, "descriptor " + std::to_string(d.type) + " lacks attribute " +
                                         std::to_string(rule.name));
  }
  switch (d.type) {
    case CUDNN_BACKEND_TENSOR_DESCRIPTOR: {
      const Tensor t(d);
      if (t.alignment <= 0 || t.alignment % static_cast<int64_t>(t.element_bytes()) != 0)
        refuse(CUDNN_STATUS_BAD_PARAM, "a tensor's alignment");
      break;
    }
    case CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR:
      operations(d);
      break;
    case CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR:
      if (recommended(d).empty()) refuse(CUDNN_STATUS_NOT_SUPPORTED, "no engine for this graph");
      break;
    case CUDNN_BACKEND_ENGINE_DESCRIPTOR:
      engine_of(d);
      if (is_unsupported(operations(d.one(CUDNN_ATTR_ENGINE_OPERATION_GRAPH))))
        refuse(CUDNN_STATUS_NOT_SUPPORTED, "no engine for this graph");
      break;
    case CUDNN_BACKEND_ENGINECFG_DESCRIPTOR: {
      const int64_t index = engine_of(d.one(CUDNN_ATTR_ENGINECFG_ENGINE)).index;
      if (!d.has(CUDNN_ATTR_ENGINECFG_KNOB_CHOICES)) break;
      for (const Reference& knob : d.at(CUDNN_ATTR_ENGINECFG_KNOB_CHOICES).descriptors)
        if ((index != kTensorCores && index != kFma) ||
            knob->get<int>(CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE) != CUDNN_KNOB_TYPE_TILE_SIZE ||
            knob->get<int64_t>(CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE) >= kKnobValues)
          refuse(CUDNN_STATUS_NOT_SUPPORTED, "no such knob");
      break;
    }
    case CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR:
      if (d.has(CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION)) {
        const Attribute& json = d.at(CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION);
        d.attributes[CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG].descriptors = {
            from_json({json.bytes.begin(), json.bytes.end()})};
      } else if (refuses(engine_of(d.one(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG)
                                       .one(CUDNN_ATTR_ENGINECFG_ENGINE))))
        refuse(CUDNN_STATUS_NOT_SUPPORTED, "this engine's plans never work");
      break;
    case CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR:
      if (d.all<int64_t>(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS).size() !=
          d.all<void*>(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS).size())
        refuse(CUDNN_STATUS_BAD_PARAM, "as many uids as pointers");
      break;
    default:
      break;
  }
  d.final = true;
}

// What a final descriptor says beside what was set.
void read_attribute(const Descriptor& d, cudnnBackendAttributeName_t name, int64_t most,
                    int64_t* count, void* out) {
  std::vector<Reference> descriptors;
  Attribute numbers;
  switch (name) {
    case CUDNN_ATTR_ENGINEHEUR_RESULTS:
      descriptors = recommended(d);
      break;
    case CUDNN_ATTR_ENGINECFG_ENGINE:
      descriptors = d.at(name).descriptors;
      break;
    case CUDNN_ATTR_ENGINECFG_KNOB_CHOICES:
      if (most > 0 && d.has(name)) descriptors = d.at(name).descriptors;  // 0: the library says 0
      break;
    case CUDNN_ATTR_ENGINE_NUMERICAL_NOTE: {
      const auto& notes = engine_of(d).notes;
      numbers = {.type = CUDNN_TYPE_NUMERICAL_NOTE};
      numbers.bytes.resize(notes.size() * sizeof(int));
      if (!notes.empty()) std::memcpy(numbers.bytes.data(), notes.data(), numbers.bytes.size());
      break;
    }
    case CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE: {
      const int note = CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION;
      numbers = {.type = CUDNN_TYPE_BEHAVIOR_NOTE};
      if (engine_of(d).compiles) numbers.bytes.resize(sizeof note);
      if (!numbers.bytes.empty()) std::memcpy(numbers.bytes.data(), &note, sizeof note);
      break;
    }
    case CUDNN_ATTR_ENGINECFG_WORKSPACE_SIZE:
    case CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE: {
      const Descriptor& configuration = name == CUDNN_ATTR_ENGINECFG_WORKSPACE_SIZE
                                            ? d
                                            : d.one(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG);
      const int64_t bytes = engine_of(configuration.one(CUDNN_ATTR_ENGINECFG_ENGINE)).workspace;
      numbers = {.type = CUDNN_TYPE_INT64, .bytes = std::vector<char>(sizeof bytes)};
      std::memcpy(numbers.bytes.data(), &bytes, sizeof bytes);
      break;
    }
    case CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION: {
      std::ostringstream json;
      write_json(json, d.one(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG));
      const std::string text = json.str();
      *count = static_cast<int64_t>(text.size());
      if (most > 0) std::memcpy(out, text.data(), static_cast<size_t>(std::min(most, *count)));
      return;
    }
    case CUDNN_ATTR_ENGINE_GLOBAL_INDEX:
    case CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE:
    case CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE:
      numbers = d.at(name);
      break;
    default:
      refuse(CUDNN_STATUS_NOT_SUPPORTED, "attribute " + std::to_string(name) + " is not emulated");
  }
  if (!descriptors.empty()) {
    *count = static_cast<int64_t>(descriptors.size());
    auto* places = static_cast<cudnnBackendDescriptor_t*>(out);
    for (int64_t i = 0; i < std::min(most, *count); ++i)
      *of(places[i]) = *descriptors[static_cast<size_t>(i)];
    return;
  }
  const size_t bytes = numbers.bytes.empty() ? 1 : size_of(numbers.type);
  *count = static_cast<int64_t>(numbers.bytes.size() / bytes);
  if (most < *count) refuse(CUDNN_STATUS_BAD_PARAM_SIZE_INSUFFICIENT, "no room for an attribute");
  if (*count > 0) std::memcpy(out, numbers.bytes.data(), numbers.bytes.size());
}

// ---- Execution.

float to_tf32(float v) {
  uint32_t word;
  std::memcpy(&word, &v, sizeof word);
  if ((word & 0x7f800000u) != 0x7f800000u) word = (word + 0xfffu + (word >> 13 & 1u)) & ~0x1fffu;
  std::memcpy(&v, &word, sizeof v);
  return v;
}

// Calls body(index in x, in w, in y) for each product of a convolution, in a fixed order, or in the
// opposite one.
template <typename Body>
void for_each_product(const Operation& op, bool reversed, Body body) {
  const auto &x = op.x[0].dims, &w = op.w[0].dims, &y = op.y[0].dims;
  const int64_t per_group = w[0] / (x[1] / w[1]);
  const auto index = [](const std::vector<int64_t>& d, int64_t a, int64_t b, int64_t c, int64_t e) {
    return static_cast<size_t>(((a * d[1] + b) * d[2] + c) * d[3] + e);
  };
  const auto product = [&](int64_t n, int64_t k, int64_t p, int64_t q, int64_t c, int64_t r,
                           int64_t s) {
    const int64_t h = p * op.stride + r - op.padding, v = q * op.stride + s - op.padding;
    if (h < 0 || h >= x[2] || v < 0 || v >= x[3]) return;
    body(index(x, n, k / per_group * w[1] + c, h, v), index(w, k, c, r, s), index(y, n, k, p, q));
  };
  const auto at = [&](int64_t i, int64_t count) { return reversed ? count - 1 - i : i; };
  for (int64_t n = 0; n < y[0]; ++n)
    for (int64_t k = 0; k < y[1]; ++k)
      for (int64_t p = 0; p < y[2]; ++p)
        for (int64_t q = 0; q < y[3]; ++q)
          for (int64_t c = 0; c < w[1]; ++c)
            for (int64_t r = 0; r < w[2]; ++r)
              for (int64_t s = 0; s < w[3]; ++s)
                product(at(n, y[0]), at(k, y[1]), at(p, y[2]), at(q, y[3]), at(c, w[1]),
                        at(r, w[2]), at(s, w[3]));
}

void run(const std::vector<Operation>& ops, const Engine& engine, std::map<int64_t, void*> memory,
         void* workspace) {
  spend(sums_up(ops) ? 0.5 : engine.index == kPlain ? 1 : 2);
  if (engine.workspace > 0) std::memset(workspace, 0xff, static_cast<size_t>(engine.workspace));
  Values chain;  // what the last operation made
  for (const Operation& op : ops) {
    std::vector<Values> in;
    for (const Tensor& t : op.in) in.push_back(t.is_virtual ? chain : read(t, memory.at(t.uid)));
    Values out(static_cast<size_t>(op.out[0].elements()));
    if (op.kind == CUDNN_BACKEND_OPERATION_GEN_STATS_DESCRIPTOR) {
      const auto& d = op.in[0].dims;
      const auto plane = static_cast<size_t>(d[2] * d[3]), channels = static_cast<size_t>(d[1]);
      Values squares(channels);
      for (size_t i = 0; i < in[0].size(); ++i) {
        out[i / plane % channels] += in[0][i];
        squares[i / plane % channels] += in[0][i] * in[0][i];
      }
      write(op.out[1], memory.at(op.out[1].uid), squares);
    } else if (op.kind == CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR) {
      const auto& d = op.out[0].dims;
      const auto plane = static_cast<size_t>(d[2] * d[3]), channels = static_cast<size_t>(d[1]);
      for (size_t i = 0; i < out.size(); ++i) {
        const float a = in[0][i];
        const float b = in.size() < 2                ? 0.0f
                        : in[1].size() == 1          ? in[1][0]
                        : in[1].size() == out.size() ? in[1][i]
                                                     : in[1].at(i / plane % channels);
        out[i] = op.mode == CUDNN_POINTWISE_ADD   ? a + b
                 : op.mode == CUDNN_POINTWISE_MUL ? a * b
                 : op.keeps_nan                   ? (a < 0.0f ? 0.0f : a)
                                                  : (a > 0.0f ? a : 0.0f);
      }
    } else {
      if (engine.index == kTensorCores && op.in[0].type == CUDNN_DATA_FLOAT)
        for (Values& values : in)
          for (float& v : values) v = to_tf32(v);
      const bool forward = op.kind == CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR;
      const bool to_data = op.kind == CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR;
      for_each_product(op, engine.index == kPlain, [&](size_t x, size_t w, size_t y) {
        if (forward)
          out[y] += in[0][x] * in[1][w];
        else if (to_data)
          out[x] += in[0][w] * in[1][y];
        else
          out[w] += in[0][x] * in[1][y];
      });
      if (engine.index != kTensorCores && engine.index != kFma && engine.index != kPlain &&
          engine.index != kCompiledWell)
        out.assign(out.size(), std::numeric_limits<float>::quiet_NaN());
    }
    if (!op.out[0].is_virtual) write(op.out[0], memory.at(op.out[0].uid), out);
    chain = std::move(out);
  }
}

void execute(cudnnHandle_t handle, const Descriptor& plan, const Descriptor& pack) {
  if (!plan.final || !pack.final)
    refuse(CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED, "a plan or pack that is not final");
  if (plan.get<cudnnHandle_t>(CUDNN_ATTR_EXECUTION_PLAN_HANDLE) != handle)
    refuse(CUDNN_STATUS_BAD_PARAM, "the plan has another handle");
  const Descriptor& engine =
      plan.one(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG).one(CUDNN_ATTR_ENGINECFG_ENGINE);
  const std::vector<Operation> ops = operations(engine.one(CUDNN_ATTR_ENGINE_OPERATION_GRAPH));
  const auto uids = pack.all<int64_t>(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
  const auto pointers = pack.all<void*>(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);
  std::map<int64_t, void*> given, memory;
  for (size_t i = 0; i < uids.size(); ++i)
    if (!given.emplace(uids[i], pointers[i]).second)
      refuse(CUDNN_STATUS_BAD_PARAM_DUPLICATED_ENTRIES, "a uid twice");
  std::vector<std::shared_ptr<float>> values;  // handed over as numbers, as they are now
  for (const Operation& op : ops)
    for (const auto* tensors : {&op.in, &op.out})
      for (const Tensor& t : *tensors) {
        if (t.is_virtual) continue;
        void* p = given.contains(t.uid) ? given[t.uid] : nullptr;
        if (!p) refuse(CUDNN_STATUS_BAD_PARAM, "no pointer for uid " + std::to_string(t.uid));
        if (t.is_by_value) {
          values.push_back(std::make_shared<float>(*static_cast<float*>(p)));
          p = values.back().get();
        } else if (reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(t.alignment) != 0) {
          refuse(CUDNN_STATUS_BAD_PARAM_MISALIGNED_POINTER, "uid " + std::to_string(t.uid));
        }
        memory[t.uid] = p;
      }
  if (memory.size() != given.size()) refuse(CUDNN_STATUS_BAD_PARAM, "a uid that no tensor has");
  const Tensor& result = ops.back().out[0];
  for (const auto& [uid, p] : memory)
    if (uid != result.uid && p == memory[result.uid])
      refuse(CUDNN_STATUS_BAD_PARAM, "the result lies over an input");
  auto* workspace = pack.get<void*>(CUDNN_ATTR_VARIANT_PACK_WORKSPACE);
  const Engine& e = engine_of(engine);
  if (e.workspace > 0 && (!workspace || reinterpret_cast<uintptr_t>(workspace) % 16 != 0))
    refuse(CUDNN_STATUS_BAD_PARAM_MISALIGNED_POINTER, "the workspace");
  enqueue(handle->stream, [=] {
    run(ops, e, memory, workspace);
    (void)values;
  });
}

}  // namespace
}  // namespace convoy::emulated_gpu

using namespace convoy::emulated_gpu;

extern "C" {

size_t cudnnGetVersion() {
  return CUDNN_VERSION;
}
const char* cudnnGetErrorString(cudnnStatus_t status) {
  return status == CUDNN_STATUS_SUCCESS ? "CUDNN_STATUS_SUCCESS"
         : status >= 3000               ? "CUDNN_STATUS_NOT_SUPPORTED"
                                        : "CUDNN_STATUS_BAD_PARAM";
}
void cudnnGetLastErrorString(char* message, size_t max_size) {
  if (max_size > 0) std::snprintf(message, max_size, "%s", last_error.c_str());
}
cudnnStatus_t cudnnCreate(cudnnHandle_t* handle) {
  *handle = new cudnnContext;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) {
  delete handle;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
  handle->stream = stream;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type,
                                           cudnnBackendDescriptor_t* descriptor) {
  return guarded([&] {
    rules(type);
    *descriptor = new Reference(make(type));
  });
}
cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor) {
  delete static_cast<Reference*>(descriptor);
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t descriptor,
                                       cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t count,
                                       const void* values) {
  return guarded([&] {
    Descriptor& d = *of(descriptor);
    if (d.final) refuse(CUDNN_STATUS_BAD_PARAM, "setting an attribute of a final descriptor");
    const auto& allowed = rules(d.type);
    const auto rule = std::find_if(allowed.begin(), allowed.end(),
                                   [&](const Rule& r) { return r.name == static_cast<int>(name); });
    if (rule == allowed.end())
      refuse(CUDNN_STATUS_NOT_SUPPORTED, "attribute " + std::to_string(name) + " of descriptor " +
                                             std::to_string(d.type) + " is not emulated");
    if (rule->type != type)
      refuse(CUDNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE,
             "the type of attribute " + std::to_string(name));
    if (count <= 0 || !values) refuse(CUDNN_STATUS_BAD_PARAM, "an attribute without values");
    Attribute a{.type = type};
    if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR) {
      for (int64_t i = 0; i < count; ++i) {
        const Reference& part = of(static_cast<const cudnnBackendDescriptor_t*>(values)[i]);
        if (!part->final) refuse(CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED, "a part that is not final");
        a.descriptors.push_back(part);
      }
    } else {
      a.bytes.resize(static_cast<size_t>(count) * size_of(type));
      std::memcpy(a.bytes.data(), values, a.bytes.size());
    }
    d.attributes[name] = std::move(a);
  });
}
cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t descriptor,
                                       cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t, int64_t most, int64_t* count,
                                       void* values) {
  return guarded([&] {
    const Descriptor& d = *of(descriptor);
    if (!d.final) refuse(CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED, "reading what is not final");
    read_attribute(d, name, most, count, values);
  });
}
cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t descriptor) {
  return guarded([&] { finalize(*of(descriptor)); });
}
cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan,
                                  cudnnBackendDescriptor_t pack) {
  return guarded([&] { execute(handle, *of(plan), *of(pack)); });
}

}  // extern "C"
