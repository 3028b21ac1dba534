#include "trainer/weights/onnx_export.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <unordered_map>
#include <unordered_set>

#include "ops/core/error.h"
#include "proto/onnx.pb.h"
#include "trainer/base/version.h"

namespace convoy::trainer {
namespace {

using Attribute = onnx::AttributeProto;
using Ints = std::vector<int64_t>;

// Of the file format, by the oldest that has the opset (the specification's versioning table).
int64_t ir_version(int opset) {
  if (opset <= 14) return 7;
  if (opset <= 18) return 8;
  return opset <= 20 ? 9 : 10;
}

// What a node gives, as ONNX sees it.
struct Value {
  std::string name;
  Shape shape;        // n = 1
  bool flat = false;  // [N, C]; else [N, C, H, W]
};

// A node of ours on its way.
struct Site {
  size_t index;
  const std::string& name;
  std::vector<Value> x;
  Shape y;
};

// Where adaptive average pooling's windows lie along one side (ops/pool.h).
struct Windows {
  int64_t in;
  Ints begin, size;

  Windows(int64_t input, int64_t outputs) : in(input) {
    for (int64_t p = 0; p < outputs; ++p) {
      begin.push_back(p * in / outputs);
      size.push_back(((p + 1) * in + outputs - 1) / outputs - begin.back());
    }
  }
  bool identity() const { return static_cast<int64_t>(begin.size()) == in; }
  int64_t stride() const { return begin.size() > 1 ? begin[1] - begin[0] : size[0]; }
  bool uniform() const {
    for (size_t i = 0; i < begin.size(); ++i)
      if (size[i] != size[0] || begin[i] != static_cast<int64_t>(i) * stride()) return false;
    return stride() > 0;
  }
  // [outputs, inputs], or the other way round.
  std::vector<float> matrix(bool transposed) const {
    const size_t outputs = begin.size(), inputs = static_cast<size_t>(in);
    std::vector<float> m(outputs * inputs);
    for (size_t p = 0; p < outputs; ++p)
      for (int64_t k = 0; k < size[p]; ++k) {
        const auto i = static_cast<size_t>(begin[p] + k);
        m[transposed ? i * outputs + p : p * inputs + i] = 1.0f / static_cast<float>(size[p]);
      }
    return m;
  }
};

class Writer {
 public:
  Writer(const ops::Graph& graph, const TensorList& weights, const OnnxOptions& options)
      : graph_(graph), options_(options), shapes_(ops::infer_shapes(graph, 1)) {
    for (const NamedTensor& t : weights.tensors) weights_.emplace(t.name, &t);
  }

  std::string write() {
    reserve_names();
    find_folds();
    Value image = begin();
    for (size_t i = 0; i < graph_.nodes.size(); ++i) {
      const ops::Node& node = graph_.nodes[i];
      Site site{.index = i, .name = node.name, .x = {}, .y = shapes_[i]};
      for (const int input : node.inputs)
        site.x.push_back(input == ops::kImage ? image : values_[static_cast<size_t>(input)]);
      values_.push_back(std::visit([&](const auto& spec) { return write(spec, site); }, node.op));
    }
    end(values_.back());
    return serialised();
  }

 private:
  // ---- Names

  // Parameters keep theirs, so they come first; the weights must fit into one file.
  void reserve_names() {
    uint64_t bytes = 0;
    for (const auto& p : ops::layout_of(graph_).parameters) {
      names_.insert(p.name);
      bytes += uint64_t{4} * p.floats();
    }
    if (bytes > kMostOnnxBytes)
      fail(ExitCode::kBadData,
           "network \"{}\": its weights take {} bytes; one ONNX file holds at most {}",
           printable(graph_.name), bytes, kMostOnnxBytes);
    for (const char* name : {input_name(), output_name()}) names_.insert(name);
  }
  const char* input_name() const { return options_.pixels ? "pixels" : "input"; }
  const char* output_name() const { return options_.softmax ? "probabilities" : "logits"; }
  // The name, or the first of name_1, name_2, ... that is free.
  std::string fresh(const std::string& name) {
    std::string unique = name;
    for (int n = 1; !names_.insert(unique).second; ++n) unique = fmt::format("{}_{}", name, n);
    return unique;
  }

  // ---- Pieces of the file

  onnx::GraphProto& out() { return *model_.mutable_graph(); }

  onnx::NodeProto& emit(const char* type, std::vector<std::string> inputs, const Value& y) {
    onnx::NodeProto& node = *out().add_node();
    for (std::string& name : inputs) node.add_input(std::move(name));
    node.add_output(y.name);
    node.set_name(y.name);
    node.set_op_type(type);
    made_.push_back(y);
    return node;
  }
  static void set(onnx::NodeProto& node, const char* name, const Ints& values) {
    Attribute& a = *node.add_attribute();
    a.set_name(name);
    a.set_type(Attribute::INTS);
    for (const int64_t v : values) a.add_ints(v);
  }
  static void set(onnx::NodeProto& node, const char* name, int64_t value) {
    Attribute& a = *node.add_attribute();
    a.set_name(name);
    a.set_type(Attribute::INT);
    a.set_i(value);
  }
  static void set(onnx::NodeProto& node, const char* name, double value) {
    Attribute& a = *node.add_attribute();
    a.set_name(name);
    a.set_type(Attribute::FLOAT);
    a.set_f(static_cast<float>(value));
  }

  template <typename T>
  std::string constant(const std::string& name, const Ints& dims, std::span<const T> data) {
    onnx::TensorProto& t = *out().add_initializer();
    for (const int64_t d : dims) t.add_dims(d);
    t.set_data_type(std::is_same_v<T, float> ? onnx::TensorProto::FLOAT : onnx::TensorProto::INT64);
    t.set_name(name);
    t.set_raw_data(data.data(), data.size_bytes());
    return name;
  }
  std::string constant(const std::string& name, const Ints& values) {
    return constant<int64_t>(fresh(name), {static_cast<int64_t>(values.size())}, values);
  }

  void describe(onnx::ValueInfoProto& info, const Value& value) const {
    info.set_name(value.name);
    onnx::TypeProto::Tensor& type = *info.mutable_type()->mutable_tensor_type();
    type.set_elem_type(onnx::TensorProto::FLOAT);
    onnx::TensorShapeProto& shape = *type.mutable_shape();
    if (options_.batch > 0)
      shape.add_dim()->set_dim_value(options_.batch);
    else
      shape.add_dim()->set_dim_param("batch");
    shape.add_dim()->set_dim_value(value.shape.c);
    if (value.flat) return;
    shape.add_dim()->set_dim_value(value.shape.h);
    shape.add_dim()->set_dim_value(value.shape.w);
  }

  // ---- Weights

  std::vector<float> weight(const std::string& name, const Ints& shape) const {
    const auto found = weights_.find(name);
    if (found == weights_.end())
      fail(ExitCode::kBadData, "the weights have no tensor \"{}\"", printable(name));
    const NamedTensor& t = *found->second;
    if (t.type != StoredType::kF32 || t.shape != shape)
      fail(ExitCode::kBadData, "tensor \"{}\" is {} [{}], the network wants F32 [{}]",
           printable(name), name_of(t.type), fmt::join(t.shape, ", "), fmt::join(shape, ", "));
    std::vector<float> values(t.bytes.size() / sizeof(float));
    std::memcpy(values.data(), t.bytes.data(), t.bytes.size());
    return values;
  }
  // A tensor of a node, under its own name.
  std::string parameter(const std::string& name, const Ints& shape) {
    return constant<float>(name, shape, weight(name, shape));
  }

  // Which batch norm each convolution takes over: one that alone reads it.
  void find_folds() {
    const size_t count = graph_.nodes.size();
    folded_.assign(count, -1);
    if (!options_.fold) return;
    std::vector<int> readers(count, 0);
    readers.back() = 1;  // the output
    for (const ops::Node& node : graph_.nodes)
      for (const int input : node.inputs)
        if (input != ops::kImage) ++readers[static_cast<size_t>(input)];
    for (size_t i = 0; i < count; ++i) {
      const int input = graph_.nodes[i].inputs.empty() ? ops::kImage : graph_.nodes[i].inputs[0];
      if (!std::holds_alternative<ops::BatchNorm>(graph_.nodes[i].op) || input == ops::kImage)
        continue;
      const auto conv = static_cast<size_t>(input);
      if (std::holds_alternative<ops::Conv2d>(graph_.nodes[conv].op) && readers[conv] == 1)
        folded_[conv] = static_cast<int>(i);
    }
  }
  bool is_folded(size_t batch_norm) const {
    return std::ranges::find(folded_, static_cast<int>(batch_norm)) != folded_.end();
  }
  // w' = w s, bias' = beta + (bias - mean) s with s = gamma / sqrt(var + epsilon), as ops/conv2d.h.
  void fold(const std::string& conv, const ops::Node& batch_norm, std::vector<float>& w,
            std::vector<float>& bias) const {
    const auto channels = static_cast<int64_t>(bias.size());
    const auto of = [&](const char* what) { return weight(batch_norm.name + what, {channels}); };
    const std::vector<float> gamma = of(".weight"), beta = of(".bias"), mean = of(".running_mean"),
                             variance = of(".running_var");
    const size_t filter = w.size() / bias.size();
    const double epsilon = std::get<ops::BatchNorm>(batch_norm.op).epsilon;
    for (size_t k = 0; k < bias.size(); ++k) {
      const double scale = double{gamma[k]} / std::sqrt(double{variance[k]} + epsilon);
      bias[k] = static_cast<float>(double{beta[k]} + (double{bias[k]} - double{mean[k]}) * scale);
      bool finite = std::isfinite(bias[k]);
      for (float& value : std::span(w).subspan(k * filter, filter)) {
        value = static_cast<float>(double{value} * scale);
        finite &= std::isfinite(value);
      }
      if (!finite)
        fail(ExitCode::kBadData,
             "\"{}\": output channel {} with the batch norm \"{}\" folded in is not finite (scale "
             "{}); export another checkpoint, or without --fold",
             printable(conv), k, printable(batch_norm.name), scale);
    }
  }

  // ---- Ranks: a linear layer gives [N, C], everything else [N, C, H, W]

  std::string flat(const Value& x) {
    if (x.flat) return x.name;
    const Value y{fresh(x.name + "_flat"), {1, x.shape.c * x.shape.h * x.shape.w}, true};
    set(emit("Flatten", {x.name}, y), "axis", int64_t{1});
    return y.name;
  }
  std::string image(const Value& x) {
    if (!x.flat) return x.name;
    const Value y{fresh(x.name + "_image"), x.shape};
    // 0: as it is
    emit("Reshape", {x.name, constant(y.name + "_shape", {0, x.shape.c, 1, 1})}, y);
    return y.name;
  }
  // One operator over inputs of one rank: [N, C] where all have that.
  Value elementwise(const char* type, const Site& site, const char* axis = nullptr) {
    const bool all_flat = std::ranges::all_of(site.x, [](const Value& x) { return x.flat; });
    std::vector<std::string> inputs;
    for (const Value& x : site.x) inputs.push_back(all_flat ? x.name : image(x));
    Value y{fresh(site.name), site.y, all_flat};
    onnx::NodeProto& node = emit(type, std::move(inputs), y);
    if (axis) set(node, axis, int64_t{1});
    return y;
  }

  // ---- The operators of ops/catalogue.h

  Value write(const ops::Conv2d& s, const Site& site) {
    const Value& x = site.x[0];
    const Ints dims = {s.out_channels, x.shape.c / s.groups, s.kernel, s.kernel};
    const std::string weight_name = site.name + ".weight", bias_name = site.name + ".bias";
    std::vector<float> w = weight(weight_name, dims), bias;
    if (s.bias) bias = weight(bias_name, {s.out_channels});
    if (folded_[site.index] >= 0) {
      bias.resize(static_cast<size_t>(s.out_channels));
      fold(site.name, graph_.nodes[static_cast<size_t>(folded_[site.index])], w, bias);
      if (!s.bias && !names_.insert(bias_name).second)
        fail(ExitCode::kBadJob, "node name \"{}\": the folded bias needs it; export without --fold",
             printable(bias_name));
    }
    std::vector<std::string> inputs = {image(x), constant<float>(weight_name, dims, w)};
    if (!bias.empty()) inputs.push_back(constant<float>(bias_name, {s.out_channels}, bias));
    Value y{fresh(site.name), site.y};
    onnx::NodeProto& node = emit("Conv", std::move(inputs), y);
    set(node, "kernel_shape", {s.kernel, s.kernel});
    set(node, "strides", {s.stride, s.stride});
    set(node, "pads", Ints(4, s.padding));
    set(node, "group", s.groups);
    return y;
  }

  Value write(const ops::BatchNorm& s, const Site& site) {
    if (is_folded(site.index)) return site.x[0];
    std::vector<std::string> inputs = {site.x[0].name};
    for (const char* what : {".weight", ".bias", ".running_mean", ".running_var"})
      inputs.push_back(parameter(site.name + what, {site.y.c}));
    Value y{fresh(site.name), site.y, site.x[0].flat};
    set(emit("BatchNormalization", std::move(inputs), y), "epsilon", s.epsilon);
    return y;
  }

  Value write(const ops::Relu&, const Site& site) { return elementwise("Relu", site); }
  Value write(const ops::Add&, const Site& site) { return elementwise("Add", site); }
  Value write(const ops::Multiply&, const Site& site) { return elementwise("Mul", site); }
  // 1 - sigmoid(x) = sigmoid(-x)
  Value write(const ops::Sigmoid& s, const Site& site) {
    const Value& x = site.x[0];
    std::string argument = x.name;
    if (s.complement) {
      const Value negative{fresh(site.name + "_negative"), x.shape, x.flat};
      emit("Neg", {x.name}, negative);
      argument = negative.name;
    }
    Value y{fresh(site.name), site.y, x.flat};
    emit("Sigmoid", {argument}, y);
    return y;
  }
  Value write(const ops::Concat&, const Site& site) { return elementwise("Concat", site, "axis"); }
  Value write(const ops::Dropout&, const Site& site) { return site.x[0]; }

  // A window that hangs over the end is written as padding there, which every runtime reads alike;
  // ceil_mode it does not.
  Value write(const ops::MaxPool& s, const Site& site) {
    const Shape& x = site.x[0].shape;
    const auto end = [&](int64_t in, int64_t outputs) {
      return std::max(s.padding, (outputs - 1) * s.stride + s.kernel - in - s.padding);
    };
    return pool("MaxPool", site, {s.kernel, s.kernel}, {s.stride, s.stride},
                {s.padding, s.padding, end(x.h, site.y.h), end(x.w, site.y.w)});
  }
  Value write(const ops::AvgPool& s, const Site& site) {
    Value y =
        pool("AveragePool", site, {s.kernel, s.kernel}, {s.stride, s.stride}, Ints(4, s.padding));
    set(*out().mutable_node()->rbegin(), "count_include_pad", int64_t{s.count_include_pad});
    return y;
  }
  Value write(const ops::GlobalAvgPool&, const Site& site) {
    Value y{fresh(site.name), site.y};
    emit("GlobalAveragePool", {image(site.x[0])}, y);
    return y;
  }
  Value write(const ops::AdaptiveAvgPool& s, const Site& site) {
    const Value& x = site.x[0];
    const Windows rows(x.shape.h, s.h), columns(x.shape.w, s.w);
    if (rows.identity() && columns.identity()) return x;
    if (rows.uniform() && columns.uniform())
      return pool("AveragePool", site, {rows.size[0], columns.size[0]},
                  {rows.stride(), columns.stride()}, Ints(4, 0));
    // The mean over windows of several sizes is a linear map: rows x columns.
    const Value by_rows{fresh(site.name + "_by_rows"), {1, x.shape.c, s.h, x.shape.w}};
    Value y{fresh(site.name), site.y};
    emit("MatMul",
         {constant<float>(fresh(site.name + "_rows"), {s.h, x.shape.h}, rows.matrix(false)),
          image(x)},
         by_rows);
    emit("MatMul",
         {by_rows.name,
          constant<float>(fresh(site.name + "_columns"), {x.shape.w, s.w}, columns.matrix(true))},
         y);
    return y;
  }
  Value write(const ops::LocalResponseNorm& s, const Site& site) {
    if (s.size % 2 == 0)
      fail(ExitCode::kBadJob,
           "local response norm \"{}\": ONNX shifts windows of {} channels by one against torch's; "
           "only odd sizes can be exported",
           printable(site.name), s.size);
    Value y{fresh(site.name), site.y};
    onnx::NodeProto& node = emit("LRN", {image(site.x[0])}, y);
    set(node, "size", s.size);
    set(node, "alpha", s.alpha);
    set(node, "beta", s.beta);
    set(node, "bias", s.k);
    return y;
  }
  Value pool(const char* type, const Site& site, const Ints& kernel, const Ints& strides,
             const Ints& pads) {
    Value y{fresh(site.name), site.y};
    onnx::NodeProto& node = emit(type, {image(site.x[0])}, y);
    set(node, "kernel_shape", kernel);
    set(node, "strides", strides);
    set(node, "pads", pads);
    return y;
  }

  Value write(const ops::Linear& s, const Site& site) {
    const Shape& x = site.x[0].shape;
    std::vector<std::string> inputs = {
        flat(site.x[0]), parameter(site.name + ".weight", {s.out_features, x.c * x.h * x.w})};
    if (s.bias) inputs.push_back(parameter(site.name + ".bias", {s.out_features}));
    Value y{fresh(site.name), site.y, true};
    set(emit("Gemm", std::move(inputs), y), "transB", int64_t{1});
    return y;
  }

  Value write(const ops::Subsample& s, const Site& site) {
    Value y{image(site.x[0]), site.x[0].shape};
    if (s.stride > 1) {
      const Shape& x = y.shape;
      const Value slice{fresh(site.name + "_slice"), {1, x.c, site.y.h, site.y.w}};
      emit("Slice",
           {y.name, constant(slice.name + "_starts", {0, 0}),
            constant(slice.name + "_ends", {x.h, x.w}), constant(slice.name + "_axes", {2, 3}),
            constant(slice.name + "_steps", {s.stride, s.stride})},
           slice);
      y = slice;
    }
    const int64_t added = s.out_channels - y.shape.c, front = added / 2;
    if (added == 0) return y;
    const Value padded{fresh(site.name), site.y};
    emit("Pad", {y.name, constant(padded.name + "_pads", {0, front, 0, 0, 0, added - front, 0, 0})},
         padded);
    return padded;
  }

  // ---- Begin and end

  // The input, and what the graph does to pixels.
  Value begin() {
    model_.set_ir_version(ir_version(options_.opset));
    model_.set_producer_name("convoy");
    model_.set_producer_version(kVersion);
    onnx::OperatorSetIdProto& opset = *model_.add_opset_import();
    opset.set_domain("");
    opset.set_version(options_.opset);
    for (const auto& [key, value] : options_.metadata) {
      onnx::StringStringEntryProto& entry = *model_.add_metadata_props();
      entry.set_key(key);
      entry.set_value(value);
    }
    out().set_name(graph_.name.empty() ? "network" : graph_.name);
    const Value input{input_name(), graph_.image};
    describe(*out().add_input(), input);
    return options_.pixels ? normalised(input, *options_.pixels) : input;
  }

  Value normalised(const Value& pixels, const ops::ImageInput& p) {
    const Shape& image = graph_.image;
    const auto places = static_cast<size_t>(image.c * image.h * image.w);
    if (p.mean.size() != places || p.inv_std.size() != places)
      fail(ExitCode::kBadJob, "{} means for images of {} values", p.mean.size(), places);
    const Value centred{fresh("pixels_centred"), image}, y{fresh("image"), image};
    emit("Sub", {pixels.name, per_place("input.mean", p.mean)}, centred);
    emit("Mul", {centred.name, per_place("input.inv_std", p.inv_std)}, y);
    return y;
  }
  // [H, W, C] as [1, C, H, W], or [1, C, 1, 1] where all places are alike.
  std::string per_place(const char* name, const std::vector<float>& hwc) {
    const auto c = static_cast<size_t>(graph_.image.c);
    bool alike = true;
    for (size_t i = c; i < hwc.size(); ++i) alike &= hwc[i] == hwc[i - c];
    const size_t places = alike ? 1 : hwc.size() / c;
    std::vector<float> chw;
    for (size_t channel = 0; channel < c; ++channel)
      for (size_t place = 0; place < places; ++place) chw.push_back(hwc[place * c + channel]);
    const Ints dims = {1, graph_.image.c, alike ? 1 : graph_.image.h, alike ? 1 : graph_.image.w};
    return constant<float>(fresh(name), dims, chw);
  }

  void end(Value last) {
    if (last.shape.h == 1 && last.shape.w == 1 && !last.flat) last = {flat(last), last.shape, true};
    const Value output{output_name(), last.shape, last.flat};
    if (options_.softmax)
      set(emit("Softmax", {last.name}, output), "axis", int64_t{1});
    else if (made_.empty() || made_.back().name != last.name)
      emit("Identity", {last.name}, output);
    else
      rename_last(output);
    describe(*out().add_output(), output);
    for (const Value& value : made_)
      if (value.name != output.name) describe(*out().add_value_info(), value);
  }
  // The last node written gives the output itself.
  void rename_last(const Value& output) {
    onnx::NodeProto& node = *out().mutable_node()->rbegin();
    node.set_output(0, output.name);
    made_.back() = output;
  }

  std::string serialised() const {
    std::string bytes;
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    if (!model_.SerializeToCodedStream(&coded))
      fail(ExitCode::kBadData, "network \"{}\": its ONNX file would be larger than protobuf allows",
           printable(graph_.name));
    coded.Trim();
    return bytes;
  }

  const ops::Graph& graph_;
  const OnnxOptions& options_;
  const std::vector<Shape> shapes_;
  std::unordered_map<std::string_view, const NamedTensor*> weights_;
  std::unordered_set<std::string> names_;
  std::vector<int> folded_;    // per convolution: the batch norm in it; -1: none
  std::vector<Value> values_;  // per node
  std::vector<Value> made_;    // outputs of the nodes written so far
  onnx::ModelProto model_;
};

}  // namespace

std::string onnx_model(const ops::Graph& graph, const TensorList& weights,
                       const OnnxOptions& options) {
  if (options.opset < kOldestOpset || options.opset > kNewestOpset)
    fail(ExitCode::kUsage, "opset {}: {} to {} are known", options.opset, kOldestOpset,
         kNewestOpset);
  return Writer(graph, weights, options).write();
}

}  // namespace convoy::trainer
