#include "ops/cudnn.h"

#include <cudnn_backend.h>
#include <dlfcn.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <future>
#include <limits>
#include <optional>
#include <system_error>
#include <thread>
#include <type_traits>

#include "ops/core/cuda_handle.h"
#include "ops/core/error.h"
#include "ops/core/log.h"

namespace convoy::cudnn {
namespace {

// A plan that wants more is not taken: two tensors of a large layer.
constexpr int64_t kMostWorkspaceBytes = int64_t{2} << 30;

std::string last_error() {
  char text[1024] = "";
  cudnnGetLastErrorString(text, sizeof text);
  return printable(text);
}

void check(cudnnStatus_t status, const char* what) {
  if (status != CUDNN_STATUS_SUCCESS)
    fail(ExitCode::kFault, "cuDNN: {} while {}: {}", cudnnGetErrorString(status), what,
         last_error());
}

void destroy(cudnnStatus_t status, const char* what) noexcept {
  if (status != CUDNN_STATUS_SUCCESS)
    log::error("cuDNN: {} while freeing {}", cudnnGetErrorString(status), what);
}
void destroy_handle(cudnnHandle_t handle) {
  destroy(cudnnDestroy(handle), "its handle");
}
void destroy_descriptor(cudnnBackendDescriptor_t descriptor) {
  destroy(cudnnBackendDestroyDescriptor(descriptor), "a descriptor");
}
using Handle = cuda::UniqueHandle<cudnnHandle_t, &destroy_handle>;

// ---- Descriptors.

template <typename T>
constexpr auto kTypeOf = std::enable_if_t<sizeof(T) == 0, cudnnBackendAttributeType_t>{};
template <>
constexpr auto kTypeOf<cudnnHandle_t> = CUDNN_TYPE_HANDLE;
template <>
constexpr auto kTypeOf<cudnnDataType_t> = CUDNN_TYPE_DATA_TYPE;
template <>
constexpr auto kTypeOf<bool> = CUDNN_TYPE_BOOLEAN;
template <>
constexpr auto kTypeOf<int64_t> = CUDNN_TYPE_INT64;
template <>
constexpr auto kTypeOf<float> = CUDNN_TYPE_FLOAT;
template <>
constexpr auto kTypeOf<char> = CUDNN_TYPE_CHAR;
template <>
constexpr auto kTypeOf<void*> = CUDNN_TYPE_VOID_PTR;
template <>
constexpr auto kTypeOf<cudnnConvolutionMode_t> = CUDNN_TYPE_CONVOLUTION_MODE;
template <>
constexpr auto kTypeOf<cudnnPointwiseMode_t> = CUDNN_TYPE_POINTWISE_MODE;
template <>
constexpr auto kTypeOf<cudnnGenStatsMode_t> = CUDNN_TYPE_GENSTATS_MODE;
template <>
constexpr auto kTypeOf<cudnnNanPropagation_t> = CUDNN_TYPE_NAN_PROPOGATION;
template <>
constexpr auto kTypeOf<cudnnBackendHeurMode_t> = CUDNN_TYPE_HEUR_MODE;
template <>
constexpr auto kTypeOf<cudnnBackendKnobType_t> = CUDNN_TYPE_KNOB_TYPE;
template <>
constexpr auto kTypeOf<cudnnBackendNumericalNote_t> = CUDNN_TYPE_NUMERICAL_NOTE;
template <>
constexpr auto kTypeOf<cudnnBackendBehaviorNote_t> = CUDNN_TYPE_BEHAVIOR_NOTE;

class Descriptor {
 public:
  explicit Descriptor(cudnnBackendDescriptorType_t type) {
    cudnnBackendDescriptor_t descriptor = nullptr;
    check(cudnnBackendCreateDescriptor(type, &descriptor), "making a descriptor");
    descriptor_ = Owned(descriptor);
  }

  template <typename T>
  Descriptor& set(cudnnBackendAttributeName_t name, const T& value) {
    return set(name, kTypeOf<T>, 1, &value);
  }
  template <typename T>
  Descriptor& set(cudnnBackendAttributeName_t name, const std::vector<T>& values) {
    return set(name, kTypeOf<T>, static_cast<int64_t>(values.size()), values.data());
  }
  Descriptor& set(cudnnBackendAttributeName_t name, const Descriptor& value) {
    const cudnnBackendDescriptor_t raw = value.raw();
    return set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &raw);
  }
  Descriptor& set(cudnnBackendAttributeName_t name, const std::vector<Descriptor>& values) {
    std::vector<cudnnBackendDescriptor_t> raw;
    for (const Descriptor& value : values) raw.push_back(value.raw());
    return set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, static_cast<int64_t>(raw.size()), raw.data());
  }

  cudnnStatus_t try_finalize() { return cudnnBackendFinalize(raw()); }
  Descriptor&& finalize() {
    check(try_finalize(), "finalizing a descriptor");
    return std::move(*this);
  }

  // At most `most` values; none where the descriptor does not say.
  template <typename T>
  std::vector<T> get(cudnnBackendAttributeName_t name, size_t most) const {
    std::vector<T> values(most);
    int64_t count = 0;
    if (cudnnBackendGetAttribute(raw(), name, kTypeOf<T>, static_cast<int64_t>(most), &count,
                                 values.data()) != CUDNN_STATUS_SUCCESS)
      count = 0;
    values.resize(std::min(most, static_cast<size_t>(count)));
    return values;
  }
  template <typename T>
  T get(cudnnBackendAttributeName_t name) const {
    T value{};
    int64_t count = 0;
    check(cudnnBackendGetAttribute(raw(), name, kTypeOf<T>, 1, &count, &value),
          "reading a descriptor");
    return value;
  }
  // A text as long as the descriptor says; "" where it does not say.
  std::string text(cudnnBackendAttributeName_t name) const {
    int64_t count = 0;
    cudnnBackendGetAttribute(raw(), name, CUDNN_TYPE_CHAR, 0, &count, nullptr);
    const auto chars = get<char>(name, static_cast<size_t>(count));
    return {chars.begin(), chars.end()};
  }
  // Descriptors of this type, at most `most`.
  std::vector<Descriptor> get(cudnnBackendAttributeName_t name, cudnnBackendDescriptorType_t type,
                              int64_t most) const {
    std::vector<Descriptor> all;
    std::vector<cudnnBackendDescriptor_t> raw_all;
    for (int64_t i = 0; i < most; ++i) raw_all.push_back(all.emplace_back(type).raw());
    all.erase(all.begin() + std::min(count(name, raw_all), most), all.end());
    return all;
  }
  // How many there are; what there is of them is copied into `out`.
  int64_t count(cudnnBackendAttributeName_t name,
                std::vector<cudnnBackendDescriptor_t> out = {}) const {
    int64_t count = 0;
    check(cudnnBackendGetAttribute(raw(), name, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                   static_cast<int64_t>(out.size()), &count,
                                   out.empty() ? nullptr : out.data()),
          "reading a descriptor");
    return count;
  }

  cudnnBackendDescriptor_t raw() const { return descriptor_.get(); }

 private:
  Descriptor& set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count,
                  const void* values) {
    const cudnnStatus_t status = cudnnBackendSetAttribute(raw(), name, type, count, values);
    if (status != CUDNN_STATUS_SUCCESS)
      fail(ExitCode::kFault, "cuDNN: {} while setting attribute {}: {}",
           cudnnGetErrorString(status), static_cast<int>(name), last_error());
    return *this;
  }

  using Owned = cuda::UniqueHandle<cudnnBackendDescriptor_t, &destroy_descriptor>;
  Owned descriptor_;
};

// ---- Operation graphs.

enum Uid : int64_t { kX = 1, kW, kY, kBias, kResidual, kOne, kSum, kSquares, kFirstVirtual };

cudnnDataType_t data_type(DType type) {
  return type == DType::kFloat32    ? CUDNN_DATA_FLOAT
         : type == DType::kBfloat16 ? CUDNN_DATA_BFLOAT16
                                    : CUDNN_DATA_HALF;
}

// Kinds of tensors that are not in the GPU's memory: inside of a fused kernel, or handed over as a
// number.
enum class Where { kMemory, kInside, kByValue };

Descriptor tensor(int64_t uid, const Shape& s, DType type, Where where = Where::kMemory) {
  Descriptor out(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  out.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, uid)
      .set(CUDNN_ATTR_TENSOR_DATA_TYPE, data_type(type))
      .set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, int64_t{16})
      .set(CUDNN_ATTR_TENSOR_DIMENSIONS, std::vector<int64_t>{s.n, s.c, s.h, s.w})
      .set(CUDNN_ATTR_TENSOR_STRIDES, std::vector<int64_t>{s.h * s.w * s.c, 1, s.w * s.c, s.c});
  if (where == Where::kInside) out.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, true);
  if (where == Where::kByValue) out.set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, true);
  return out.finalize();
}

Descriptor geometry(const Convolution& c) {
  const std::vector<int64_t> strides(2, c.stride), paddings(2, c.padding), dilations(2, 1);
  return Descriptor(CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR)
      .set(CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, int64_t{2})
      .set(CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_DATA_FLOAT)
      .set(CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_CROSS_CORRELATION)
      .set(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, strides)
      .set(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, paddings)
      .set(CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, paddings)
      .set(CUDNN_ATTR_CONVOLUTION_DILATIONS, dilations)
      .finalize();
}

Descriptor convolution(const Convolution& c, const Descriptor& x, const Descriptor& w,
                       const Descriptor& y) {
  const Descriptor conv = geometry(c);
  switch (c.pass) {
    case Pass::kForward:
      return Descriptor(CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR)
          .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, conv)
          .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, x)
          .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, w)
          .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, y)
          .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, 1.0f)
          .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, 0.0f)
          .finalize();
    case Pass::kBackwardData:
      return Descriptor(CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR)
          .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC, conv)
          .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX, x)
          .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W, w)
          .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY, y)
          .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA, 1.0f)
          .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA, 0.0f)
          .finalize();
    case Pass::kBackwardWeights:
      break;
  }
  return Descriptor(CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR)
      .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC, conv)
      .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X, x)
      .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW, w)
      .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY, y)
      .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA, 1.0f)
      .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA, 0.0f)
      .finalize();
}

// out = mode(in [, operand]) in fp32.
Descriptor pointwise(cudnnPointwiseMode_t mode, const Descriptor& in, const Descriptor* operand,
                     const Descriptor& out) {
  Descriptor what(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
  what.set(CUDNN_ATTR_POINTWISE_MODE, mode).set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_DATA_FLOAT);
  if (mode == CUDNN_POINTWISE_RELU_FWD)  // so that NaN is seen
    what.set(CUDNN_ATTR_POINTWISE_NAN_PROPAGATION, CUDNN_PROPAGATE_NAN);
  Descriptor op(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  op.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, what.finalize())
      .set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, in)
      .set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, out);
  if (operand) op.set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, *operand);
  return op.finalize();
}

struct Step {
  cudnnPointwiseMode_t mode;
  std::optional<Descriptor> operand;
};

struct Graph {
  std::vector<int64_t> uids;  // of the tensors in memory or by value
  std::vector<Descriptor> operations;
  Descriptor graph{CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR};
};

Graph make_graph(const Convolution& c, cudnnHandle_t handle) {
  const Shape w_shape = {c.y.c, c.x.c / c.groups, c.kernel, c.kernel};
  const bool to_weights = c.pass == Pass::kBackwardWeights;
  const Descriptor x = tensor(kX, c.x, c.type),
                   w = tensor(kW, w_shape, to_weights ? DType::kFloat32 : c.type),
                   y = tensor(kY, c.y, c.type);
  Graph out{.uids = {kX, kW, kY}};
  std::vector<Step> steps;
  const auto operand = [&](int64_t uid, const Shape& shape, DType type, Where where) {
    out.uids.push_back(uid);
    return tensor(uid, shape, type, where);
  };
  if (c.bias)
    steps.push_back(
        {CUDNN_POINTWISE_ADD, operand(kBias, {1, c.y.c, 1, 1}, DType::kFloat32, Where::kMemory)});
  if (c.residual)
    steps.push_back({CUDNN_POINTWISE_ADD, operand(kResidual, c.y, c.type, Where::kMemory)});
  if (c.relu) steps.push_back({CUDNN_POINTWISE_RELU_FWD, std::nullopt});
  // No engine writes fp32 gradients from 16-bit tensors, but those that fuse hand over their fp32
  // sums to what follows; of all that can follow, this has most engines.
  if (to_weights && c.type != DType::kFloat32)
    steps.push_back(
        {CUDNN_POINTWISE_MUL, operand(kOne, {1, 1, 1, 1}, DType::kFloat32, Where::kByValue)});

  const Shape& result_shape = to_weights ? w_shape : c.y;
  const Descriptor& result = to_weights ? w : y;
  std::vector<Descriptor> inside;
  for (size_t i = 0; i < steps.size(); ++i)
    inside.push_back(tensor(kFirstVirtual + static_cast<int64_t>(i), result_shape, DType::kFloat32,
                            Where::kInside));
  const Descriptor& sums = steps.empty() ? result : inside[0];
  out.operations.push_back(
      convolution(c, x, to_weights ? sums : w, c.pass == Pass::kForward ? sums : y));
  for (size_t i = 0; i < steps.size(); ++i)
    out.operations.push_back(pointwise(steps[i].mode, inside[i],
                                       steps[i].operand ? &*steps[i].operand : nullptr,
                                       i + 1 < steps.size() ? inside[i + 1] : result));
  if (c.sums) {
    const Shape vector = {1, c.y.c, 1, 1};
    const auto in_memory = [&](int64_t uid) {
      return operand(uid, vector, DType::kFloat32, Where::kMemory);
    };
    out.operations.push_back(Descriptor(CUDNN_BACKEND_OPERATION_GEN_STATS_DESCRIPTOR)
                                 .set(CUDNN_ATTR_OPERATION_GENSTATS_MODE, CUDNN_GENSTATS_SUM_SQSUM)
                                 .set(CUDNN_ATTR_OPERATION_GENSTATS_MATH_PREC, CUDNN_DATA_FLOAT)
                                 .set(CUDNN_ATTR_OPERATION_GENSTATS_XDESC, y)
                                 .set(CUDNN_ATTR_OPERATION_GENSTATS_SUMDESC, in_memory(kSum))
                                 .set(CUDNN_ATTR_OPERATION_GENSTATS_SQSUMDESC, in_memory(kSquares))
                                 .finalize());
  }
  if (handle) out.graph.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, handle);
  out.graph.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, out.operations).finalize();
  return out;
}

// ---- Engines.

const char* name_of(cudnnBackendNumericalNote_t note) {
  switch (note) {
    case CUDNN_NUMERICAL_NOTE_TENSOR_CORE:
      return "TENSOR_CORE";
    case CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS:
      return "DOWN_CONVERT_INPUTS";
    case CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION:
      return "REDUCED_PRECISION_REDUCTION";
    case CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC:
      return "NONDETERMINISTIC";
    case CUDNN_NUMERICAL_NOTE_STRICT_NAN_PROP:
      return "STRICT_NAN_PROP";
    default:
      return "FFT_OR_WINOGRAD";
  }
}

std::vector<cudnnBackendNumericalNote_t> notes_of(const Descriptor& engine) {
  return engine.get<cudnnBackendNumericalNote_t>(CUDNN_ATTR_ENGINE_NUMERICAL_NOTE,
                                                 CUDNN_NUMERICAL_NOTE_TYPE_COUNT);
}

bool compiles_at_run_time(const Descriptor& engine) {
  const auto notes = engine.get<cudnnBackendBehaviorNote_t>(CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE,
                                                            CUDNN_BEHAVIOR_NOTE_TYPE_COUNT);
  return std::ranges::find(notes, CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION) != notes.end();
}

// Notes that an engine may have: its sums are plain sums of products in fp32, in a fixed order.
// (One that converts its inputs down may well mean fp16.) Of those that are compiled, the notes say
// nothing of sums of y: cuDNN 9.19's add them up by atomics.
bool is_allowed(const Convolution& c, const Descriptor& engine) {
  if (c.sums && compiles_at_run_time(engine)) return false;
  const bool tensor_cores = c.type != DType::kFloat32 || c.tf32;
  return std::ranges::all_of(notes_of(engine), [&](cudnnBackendNumericalNote_t note) {
    return note == CUDNN_NUMERICAL_NOTE_STRICT_NAN_PROP ||
           (note == CUDNN_NUMERICAL_NOTE_TENSOR_CORE && tensor_cores);
  });
}

bool contains(const std::vector<Choice>& all, const Choice& choice) {
  return std::ranges::find(all, choice) != all.end();
}

// Those of the library's choices that are measured; they are taken from `all`. The favourites,
// which come first, are often variants of one engine, and the fastest another's: of fp32 gradients
// of 16-bit weights on an H200, the one for Hopper's tensor cores comes last of 16.
std::vector<Choice> take_promising(std::vector<Choice>& all, size_t most) {
  const size_t favourites = std::min<size_t>(4, most);
  std::vector<Choice> taken;
  for (const Choice& choice : all)
    if (taken.size() < favourites ||
        (taken.size() < most &&
         std::ranges::find(taken, choice.engine, &Choice::engine) == taken.end()))
      taken.push_back(choice);
  std::erase_if(all, [&](const Choice& choice) { return contains(taken, choice); });
  return taken;
}

// A long sum, as of a gradient of weights, may be cut into pieces, so that more of the GPU works on
// it. The library offers one number of pieces, if any; these are a half, a quarter, twice and four
// times as many. What no engine takes is refused as any other choice.
std::vector<Choice> in_other_pieces(const Choice& choice) {
  constexpr auto kPieces = CUDNN_KNOB_TYPE_SPLIT_K_SLC;
  Choice other = choice;
  auto knob = std::ranges::find(other.knobs, int64_t{kPieces}, &std::pair<int64_t, int64_t>::first);
  if (knob == other.knobs.end()) knob = other.knobs.insert(knob, {kPieces, 1});
  const int64_t now = knob->second;
  std::vector<Choice> all;
  for (const int64_t pieces : {now / 4, now / 2, 2 * now, 4 * now}) {
    knob->second = pieces;
    if (pieces > 0) all.push_back(other);
  }
  return all;
}

// How make_graph() builds graphs: another number where it builds other ones, so that no plan of
// theirs is taken from before.
constexpr int kGraphs = 1;

// By which its kernel is kept; "" where it is not.
std::string kernel_name(const Convolution& c, const Choice& choice) {
  static const std::string compiler = Library::compiler();
  if (compiler.empty()) return "";
  return fmt::format("{} = {} by {} from graph {}", to_text(c), to_text(choice), compiler, kGraphs);
}

Choice choice_of(const Descriptor& configuration, const Descriptor& engine) {
  Choice choice{.engine = engine.get<int64_t>(CUDNN_ATTR_ENGINE_GLOBAL_INDEX), .knobs = {}};
  for (const Descriptor& knob :
       configuration.get(CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR,
                         CUDNN_KNOB_TYPE_COUNTS))
    choice.knobs.emplace_back(knob.get<cudnnBackendKnobType_t>(CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE),
                              knob.get<int64_t>(CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE));
  return choice;
}

}  // namespace

// ---- Texts.

std::string to_text(const Convolution& c) {
  static constexpr const char* kPasses[] = {"forward", "backward data", "backward weights"};
  return fmt::format("{} x {} y {} kernel {} stride {} padding {} groups {} {}{}{}{}{}",
                     kPasses[static_cast<int>(c.pass)], to_string(c.x), to_string(c.y), c.kernel,
                     c.stride, c.padding, c.groups, c.tf32 ? "tf32" : convoy::name_of(c.type),
                     c.bias ? " bias" : "", c.residual ? " residual" : "", c.relu ? " relu" : "",
                     c.sums ? " sums" : "");
}

// ---- Plans.

struct Plan::Parts {
  cudnnHandle_t handle;  // null: the GPU is not here
  int64_t channels;      // of y
  Graph graph;
  Choice choice;
  std::vector<std::string> notes;
  Descriptor plan{CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR};
  bool compiled = false;  // for this plan, so it took its time
  size_t workspace_bytes = 0;
};

Plan::Plan(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Plan::~Plan() = default;
const Choice& Plan::choice() const {
  return parts_->choice;
}
size_t Plan::workspace_bytes() const {
  return parts_->workspace_bytes;
}
const std::vector<std::string>& Plan::notes() const {
  return parts_->notes;
}

std::string Plan::kernel() const {
  return parts_->compiled ? parts_->plan.text(CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION) : "";
}

void Plan::run(const Arguments& a, cudaStream_t stream) const {
  if (!parts_->handle) fail(ExitCode::kFault, "cuDNN: a plan for a GPU that is not here");
  check(cudnnSetStream(parts_->handle, stream), "taking a stream");
  static const float one = 1.0f;
  std::vector<void*> pointers;
  for (const int64_t uid : parts_->graph.uids) {
    const void* p = uid == kX          ? a.x
                    : uid == kW        ? a.w
                    : uid == kY        ? a.y
                    : uid == kBias     ? a.bias
                    : uid == kResidual ? a.residual
                    : uid == kSum      ? a.sums
                    : uid == kSquares  ? a.sums + parts_->channels
                                       : &one;
    pointers.push_back(const_cast<void*>(p));
  }
  Descriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, parts_->graph.uids)
      .set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, pointers)
      .set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, a.workspace)
      .finalize();
  check(cudnnBackendExecute(parts_->handle, parts_->plan.raw(), pack.raw()),
        "starting a convolution");
}

// ---- The library.

struct Library::Target {
  int gpu = 0;
  std::vector<Handle> handles;       // of this thread, and of those that help to compile
  std::optional<Descriptor> device;  // in place of handles
  KernelStore kernels;

  // The plan of a choice, or null with the library's reason.
  std::shared_ptr<const Plan> make(const Convolution& c, const Choice& choice,
                                   std::string& why) const {
    return make(c, choice, why, handle());
  }
  // The plan of each choice, or null. Side by side: an engine's kernels may take a second to
  // compile.
  std::vector<std::shared_ptr<const Plan>> make_all(const Convolution& c,
                                                    const std::vector<Choice>& choices);
  cudnnHandle_t handle() const { return handles.empty() ? nullptr : handles.front().get(); }
  void add_handle();

 private:
  std::shared_ptr<const Plan> make(const Convolution& c, const Choice& choice, std::string& why,
                                   cudnnHandle_t with) const;
  std::shared_ptr<const Plan> try_make(const Convolution& c, const Choice& choice, std::string& why,
                                       cudnnHandle_t with) const;
  // A plan's descriptor, for this GPU.
  Descriptor new_plan(cudnnHandle_t with) const;
  // The plan of a kernel that was kept; nothing where there is none, the library does not take it
  // or it wants another workspace.
  std::optional<Descriptor> kept(const Convolution& c, const Choice& choice, int64_t workspace,
                                 cudnnHandle_t with) const;
};

Library::Library(std::shared_ptr<Decisions> decisions)
    : target_(std::make_unique<Target>()), decisions_(std::move(decisions)) {
  cuda::check(cudaGetDevice(&target_->gpu));
  target_->add_handle();
}

Library::Library(const std::string& device)
    : target_(std::make_unique<Target>()), decisions_(std::make_shared<Decisions>()) {
  target_->device.emplace(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
  target_->device
      ->set(CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION,
            std::vector<char>(device.begin(), device.end()))
      .finalize();
}

Library::~Library() = default;

std::string Library::version() {
  const size_t version = cudnnGetVersion();
  return fmt::format("cuDNN {}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

std::string Library::compiler() {
#ifdef CONVOY_EMULATED_GPU
  return "emulated NVRTC";
#else
  // The one that cuDNN loads, too. Its version does not tell builds apart.
  const std::string name = fmt::format("libnvrtc.so.{}", CUDART_VERSION / 1000);
  void* const library = ::dlopen(name.c_str(), RTLD_LAZY);
  void* const symbol = library ? ::dlsym(library, "nvrtcVersion") : nullptr;
  Dl_info file = {};
  int major = 0, minor = 0;
  std::error_code error;
  if (!symbol || reinterpret_cast<int (*)(int*, int*)>(symbol)(&major, &minor) != 0 ||
      ::dladdr(symbol, &file) == 0)
    return "";
  const auto bytes = std::filesystem::file_size(file.dli_fname, error);
  return error ? "" : fmt::format("NVRTC {}.{} of {} bytes", major, minor, bytes);
#endif
}

void Library::Target::add_handle() {
  cudnnHandle_t handle = nullptr;
  check(cudnnCreate(&handle), "starting");
  handles.emplace_back(handle);
}

std::vector<std::shared_ptr<const Plan>> Library::Target::make_all(
    const Convolution& c, const std::vector<Choice>& choices) {
  const size_t lanes = std::clamp<size_t>(std::thread::hardware_concurrency(), 1,
                                          std::max<size_t>(1, choices.size()));
  while (!device && handles.size() < lanes) add_handle();
  std::vector<std::shared_ptr<const Plan>> plans(choices.size());
  const auto make_share = [&](size_t lane) {
    if (!device) cuda::check(cudaSetDevice(gpu));
    std::string why;
    for (size_t i = lane; i < choices.size(); i += lanes)
      plans[i] = make(c, choices[i], why, device ? nullptr : handles[lane].get());
  };
  std::vector<std::future<void>> helpers;
  for (size_t lane = 1; lane < lanes; ++lane)
    helpers.push_back(std::async(std::launch::async, make_share, lane));
  make_share(0);
  for (std::future<void>& helper : helpers) helper.get();
  return plans;
}

std::shared_ptr<const Plan> Library::Target::make(const Convolution& c, const Choice& choice,
                                                  std::string& why, cudnnHandle_t with) const {
  try {
    return try_make(c, choice, why, with);
  } catch (const Error& e) {  // a knob, say, that no descriptor takes
    why = e.what();
    return nullptr;
  }
}

std::shared_ptr<const Plan> Library::Target::try_make(const Convolution& c, const Choice& choice,
                                                      std::string& why, cudnnHandle_t with) const {
  auto parts = std::make_unique<Plan::Parts>(Plan::Parts{.handle = with,
                                                         .channels = c.y.c,
                                                         .graph = make_graph(c, with),
                                                         .choice = choice,
                                                         .notes = {}});
  const auto refused = [&](cudnnStatus_t status) {
    if (status == CUDNN_STATUS_SUCCESS) return false;
    why = fmt::format("{}: {}", cudnnGetErrorString(status), last_error());
    return true;
  };

  Descriptor engine(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  engine.set(CUDNN_ATTR_ENGINE_OPERATION_GRAPH, parts->graph.graph)
      .set(CUDNN_ATTR_ENGINE_GLOBAL_INDEX, choice.engine);
  if (device) engine.set(CUDNN_ATTR_ENGINE_DEVICEPROP, *device);
  if (refused(engine.try_finalize())) return nullptr;
  for (const auto note : notes_of(engine)) parts->notes.emplace_back(name_of(note));
  if (!is_allowed(c, engine)) {
    why = fmt::format("its engine is {}", fmt::join(parts->notes, ", "));
    return nullptr;
  }

  std::vector<Descriptor> knobs;
  for (const auto& [type, value] : choice.knobs) {
    Descriptor& knob = knobs.emplace_back(CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR);
    knob.set(CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, static_cast<cudnnBackendKnobType_t>(type))
        .set(CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, value);
    if (refused(knob.try_finalize())) return nullptr;
  }
  Descriptor configuration(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
  configuration.set(CUDNN_ATTR_ENGINECFG_ENGINE, engine);
  if (!knobs.empty()) configuration.set(CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, knobs);
  if (refused(configuration.try_finalize())) return nullptr;

  const bool compiles = compiles_at_run_time(engine);
  bool loaded = true;
  const int64_t wanted =
      compiles ? configuration.get<int64_t>(CUDNN_ATTR_ENGINECFG_WORKSPACE_SIZE) : 0;
  if (auto plan = compiles ? kept(c, choice, wanted, with) : std::nullopt) {
    parts->plan = std::move(*plan);
  } else {
    parts->plan = new_plan(with);
    parts->plan.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configuration);
    const cudnnStatus_t status = parts->plan.try_finalize();
    // A kernel that was compiled here cannot be loaded without its GPU; the plan is as good as
    // made.
    loaded = !device || status != CUDNN_STATUS_EXECUTION_FAILED_CUDA_DRIVER || !compiles;
    if (loaded && refused(status)) return nullptr;
    parts->compiled = loaded && compiles;
  }
  const int64_t workspace =
      loaded ? parts->plan.get<int64_t>(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE) : wanted;
  if (workspace > kMostWorkspaceBytes) {
    why = fmt::format("it wants {} MiB of workspace, more than {}", workspace >> 20,
                      kMostWorkspaceBytes >> 20);
    return nullptr;
  }
  if (c.sums && workspace == 0) {
    why = "it keeps no sums of its parts, so it adds them up in any order";
    return nullptr;
  }
  parts->workspace_bytes = static_cast<size_t>(workspace);
  return std::make_shared<Plan>(std::move(parts));
}

Descriptor Library::Target::new_plan(cudnnHandle_t with) const {
  Descriptor plan(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
  if (device)
    plan.set(CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, *device);
  else
    plan.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, with);
  return plan;
}

std::optional<Descriptor> Library::Target::kept(const Convolution& c, const Choice& choice,
                                                int64_t workspace, cudnnHandle_t with) const {
  if (!kernels.read) return std::nullopt;
  const std::string name = kernel_name(c, choice), kernel = name.empty() ? "" : kernels.read(name);
  if (kernel.empty()) return std::nullopt;
  try {
    Descriptor plan = new_plan(with);
    plan.set(CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION,
             std::vector<char>(kernel.begin(), kernel.end()));
    if (plan.try_finalize() == CUDNN_STATUS_SUCCESS &&
        plan.get<int64_t>(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE) == workspace)
      return plan;
  } catch (const Error&) {  // it does not take the text
  }
  log::debug("{}: the kernel that was kept of {} does not serve; compiled again", version(), name);
  return std::nullopt;
}

void Library::keep_kernels(const KernelStore& store) {
  target_->kernels = store;
}

std::vector<Choice> Library::choices(const Convolution& c) const {
  const Graph graph = make_graph(c, target_->handle());
  std::vector<Choice> all;
  for (const auto mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_B, CUDNN_HEUR_MODE_FALLBACK}) {
    Descriptor heuristics(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    heuristics.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph.graph)
        .set(CUDNN_ATTR_ENGINEHEUR_MODE, mode);
    if (target_->device) heuristics.set(CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, *target_->device);
    if (heuristics.try_finalize() != CUDNN_STATUS_SUCCESS) continue;  // it has none in this mode
    for (const Descriptor& configuration :
         heuristics.get(CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR,
                        heuristics.count(CUDNN_ATTR_ENGINEHEUR_RESULTS))) {
      const std::vector<Descriptor> engine =
          configuration.get(CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_BACKEND_ENGINE_DESCRIPTOR, 1);
      if (engine.empty() || !is_allowed(c, engine[0])) continue;
      Choice choice = choice_of(configuration, engine[0]);
      if (std::ranges::find(all, choice) == all.end()) all.push_back(std::move(choice));
    }
  }
  return all;
}

std::shared_ptr<const Plan> Library::make(const Convolution& c, const Choice& choice) const {
  std::string why;
  std::shared_ptr<const Plan> plan = target_->make(c, choice, why);
  if (!plan)
    fail(ExitCode::kBadJob, "{} refuses engine {} for {}: {}", version(), to_text(choice),
         to_text(c), why);
  return plan;
}

std::shared_ptr<const Plan> Library::first(const Convolution& c) const {
  std::string why;
  for (const Choice& choice : choices(c))
    if (auto plan = target_->make(c, choice, why)) return plan;
  return nullptr;
}

std::shared_ptr<const Plan> Library::fastest(const Convolution& c, double rival_seconds) const {
  constexpr size_t kMost = 8;  // not counted what is tried because of the best of them
  std::shared_ptr<const Plan> best;
  double best_seconds = std::numeric_limits<double>::infinity();
  std::vector<Choice> tried;
  size_t measured = 0;
  // Whether one of these is faster than all before.
  const auto try_all = [&](std::vector<Choice> choices) {
    std::erase_if(choices, [&](const Choice& choice) { return contains(tried, choice); });
    tried.insert(tried.end(), choices.begin(), choices.end());
    bool faster = false;
    for (const auto& plan : target_->make_all(c, choices)) {
      if (!plan) continue;
      ++measured;
      const double seconds = measure_(c, *plan);
      if (!(seconds < best_seconds)) continue;
      best = plan;
      best_seconds = seconds;
      faster = true;
    }
    return faster;
  };
  for (std::vector<Choice> all = choices(c); !all.empty() && measured < kMost;)
    try_all(take_promising(all, kMost - measured));
  if (c.pass == Pass::kBackwardWeights)
    while (best && try_all(in_other_pieces(best->choice()))) continue;
  return best_seconds < rival_seconds ? best : nullptr;
}

Library::Found Library::choose(const Convolution& c, const Rival* rival) const {
  std::shared_ptr<const Plan> plan;
  if (measure_)
    plan = fastest(c, rival ? rival->seconds() : std::numeric_limits<double>::infinity());
  else if (!rival || !rival->preferred)
    plan = first(c);
  if (plan) return {plan, plan->choice()};
  return {nullptr, {.engine = rival ? Choice::kElsewhere : Choice::kNone, .knobs = {}}};
}

const Library::Found& Library::find_or_choose(const Convolution& c, const Rival* rival) {
  const std::string name = to_text(c);
  const Choice* prescribed = decisions_->prescribed(name);
  const auto found = plans_.find(name);
  const auto serves = [&](const Found& f) {
    return (!prescribed || *prescribed == f.choice) &&
           (rival || f.choice.engine != Choice::kElsewhere);
  };
  if (found != plans_.end() && serves(found->second)) return found->second;

  Found made;
  if (prescribed) {
    made.choice = *prescribed;
    std::string why = "nothing else computes it any more";
    if (made.choice.engine >= 0) made.plan = target_->make(c, made.choice, why);
    if (!made.plan && made.choice.engine != Choice::kNone &&
        !(made.choice.engine == Choice::kElsewhere && rival)) {
      decisions_->refuse(name, version(), why);
      prescribed = nullptr;
    }
  }
  if (!prescribed) made = choose(c, rival);
  decisions_->decide(name, made.choice);
  if (target_->kernels.write && made.plan) {
    const std::string kernel = made.plan->kernel(), kept_as = kernel_name(c, made.choice);
    if (!kernel.empty() && !kept_as.empty()) target_->kernels.write(kept_as, kernel);
  }
  return plans_[name] = made;
}

std::shared_ptr<const Plan> Library::find(const Convolution& c) {
  return find_or_choose(c, nullptr).plan;
}

std::optional<std::shared_ptr<const Plan>> Library::find_beside(const Rival& rival,
                                                                const Convolution& c) {
  const Found& found = find_or_choose(c, &rival);
  if (found.choice.engine == Choice::kElsewhere) return std::nullopt;
  return found.plan;
}

std::shared_ptr<const Plan> Library::plan(const std::string& node, const Convolution& c) {
  std::shared_ptr<const Plan> plan = find(c);
  if (!plan)
    fail(ExitCode::kBadJob,
         "\"{}\": {} has no deterministic engine that sums in fp32 for {}; use another precision "
         "or cuDNN, or --device cpu",
         node, version(), to_text(c));
  return plan;
}

}  // namespace convoy::cudnn
