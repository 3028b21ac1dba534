#include "trainer/job/graph_text.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "ops/core/error.h"
#include "proto/graph.pb.h"
#include "trainer/base/file.h"
#include "trainer/base/text.h"

namespace convoy::trainer {
namespace {

constexpr const char* kImageName = "input";

// Of a convolution or a linear layer: how it starts, where that is not the usual.
void write_start(auto& to, const auto& spec) {
  if (spec.weight_std != 0) to.set_weight_std(spec.weight_std);
  if (spec.bias_init) to.set_bias_init(*spec.bias_init);
}
std::optional<double> bias_init_of(const auto& from) {
  return from.has_bias_init() ? std::optional(from.bias_init()) : std::nullopt;
}

// Fields of one op, both ways. To add an op: one overload of each, one case in op_of.
void write(proto::NodeProto& n, const ops::Conv2d& s) {
  auto& p = *n.mutable_conv2d();
  p.set_out_channels(static_cast<uint32_t>(s.out_channels));
  p.set_kernel(static_cast<uint32_t>(s.kernel));
  p.set_stride(static_cast<uint32_t>(s.stride));
  p.set_padding(static_cast<uint32_t>(s.padding));
  p.set_groups(static_cast<uint32_t>(s.groups));
  p.set_bias(s.bias);
  write_start(p, s);
}
void write(proto::NodeProto& n, const ops::BatchNorm& s) {
  auto& p = *n.mutable_batch_norm();
  p.set_epsilon(s.epsilon);
  p.set_momentum(s.momentum);
  p.set_zero_init(s.zero_init);
}
void write(proto::NodeProto& n, const ops::Relu&) {
  n.mutable_relu();
}
void write(proto::NodeProto& n, const ops::Add&) {
  n.mutable_add();
}
void write(proto::NodeProto& n, const ops::MaxPool& s) {
  auto& p = *n.mutable_max_pool();
  p.set_kernel(static_cast<uint32_t>(s.kernel));
  p.set_stride(static_cast<uint32_t>(s.stride));
  p.set_padding(static_cast<uint32_t>(s.padding));
  p.set_ceil_mode(s.ceil_mode);
}
void write(proto::NodeProto& n, const ops::AvgPool& s) {
  auto& p = *n.mutable_avg_pool();
  p.set_kernel(static_cast<uint32_t>(s.kernel));
  p.set_stride(static_cast<uint32_t>(s.stride));
  p.set_padding(static_cast<uint32_t>(s.padding));
  p.set_count_include_pad(s.count_include_pad);
}
void write(proto::NodeProto& n, const ops::GlobalAvgPool&) {
  n.mutable_global_avg_pool();
}
void write(proto::NodeProto& n, const ops::Linear& s) {
  auto& p = *n.mutable_linear();
  p.set_out_features(static_cast<uint32_t>(s.out_features));
  p.set_bias(s.bias);
  write_start(p, s);
}
void write(proto::NodeProto& n, const ops::Dropout& s) {
  n.mutable_dropout()->set_rate(s.rate);
}
void write(proto::NodeProto& n, const ops::Concat&) {
  n.mutable_concat();
}
void write(proto::NodeProto& n, const ops::Subsample& s) {
  auto& p = *n.mutable_subsample();
  p.set_stride(static_cast<uint32_t>(s.stride));
  p.set_out_channels(static_cast<uint32_t>(s.out_channels));
}
void write(proto::NodeProto& n, const ops::LocalResponseNorm& s) {
  auto& p = *n.mutable_local_response_norm();
  p.set_size(static_cast<uint32_t>(s.size));
  p.set_alpha(s.alpha);
  p.set_beta(s.beta);
  p.set_k(s.k);
}
void write(proto::NodeProto& n, const ops::Sigmoid& s) {
  n.mutable_sigmoid()->set_complement(s.complement);
}
void write(proto::NodeProto& n, const ops::Multiply&) {
  n.mutable_multiply();
}
void write(proto::NodeProto& n, const ops::AdaptiveAvgPool& s) {
  auto& p = *n.mutable_adaptive_avg_pool();
  p.set_height(static_cast<uint32_t>(s.h));
  p.set_width(static_cast<uint32_t>(s.w));
}

// Nothing where the node has no op.
std::optional<ops::OpSpec> op_of(const proto::NodeProto& n) {
  switch (n.op_case()) {
    case proto::NodeProto::kConv2D: {
      const auto& p = n.conv2d();
      return ops::Conv2d{.out_channels = p.out_channels(),
                         .kernel = p.kernel(),
                         .stride = p.stride(),
                         .padding = p.padding(),
                         .groups = p.groups(),
                         .bias = p.bias(),
                         .weight_std = p.weight_std(),
                         .bias_init = bias_init_of(p)};
    }
    case proto::NodeProto::kBatchNorm: {
      const auto& p = n.batch_norm();
      return ops::BatchNorm{
          .epsilon = p.epsilon(), .momentum = p.momentum(), .zero_init = p.zero_init()};
    }
    case proto::NodeProto::kRelu:
      return ops::Relu{};
    case proto::NodeProto::kAdd:
      return ops::Add{};
    case proto::NodeProto::kMaxPool: {
      const auto& p = n.max_pool();
      return ops::MaxPool{.kernel = p.kernel(),
                          .stride = p.stride(),
                          .padding = p.padding(),
                          .ceil_mode = p.ceil_mode()};
    }
    case proto::NodeProto::kAvgPool: {
      const auto& p = n.avg_pool();
      return ops::AvgPool{.kernel = p.kernel(),
                          .stride = p.stride(),
                          .padding = p.padding(),
                          .count_include_pad = p.count_include_pad()};
    }
    case proto::NodeProto::kGlobalAvgPool:
      return ops::GlobalAvgPool{};
    case proto::NodeProto::kLinear: {
      const auto& p = n.linear();
      return ops::Linear{.out_features = p.out_features(),
                         .bias = p.bias(),
                         .weight_std = p.weight_std(),
                         .bias_init = bias_init_of(p)};
    }
    case proto::NodeProto::kDropout:
      return ops::Dropout{.rate = n.dropout().rate()};
    case proto::NodeProto::kConcat:
      return ops::Concat{};
    case proto::NodeProto::kSubsample:
      return ops::Subsample{.stride = n.subsample().stride(),
                            .out_channels = n.subsample().out_channels()};
    case proto::NodeProto::kLocalResponseNorm: {
      const auto& p = n.local_response_norm();
      return ops::LocalResponseNorm{
          .size = p.size(), .alpha = p.alpha(), .beta = p.beta(), .k = p.k()};
    }
    case proto::NodeProto::kSigmoid:
      return ops::Sigmoid{.complement = n.sigmoid().complement()};
    case proto::NodeProto::kMultiply:
      return ops::Multiply{};
    case proto::NodeProto::kAdaptiveAvgPool:
      return ops::AdaptiveAvgPool{.h = n.adaptive_avg_pool().height(),
                                  .w = n.adaptive_avg_pool().width()};
    case proto::NodeProto::OP_NOT_SET:
      break;
  }
  return std::nullopt;
}

// What protobuf says of a field that is not there, with the nearest that is.
std::string in_words(const std::string& message) {
  static constexpr std::string_view kBegin = "Message type \"", kHas = "\" has no field named \"";
  const size_t has = message.find(kHas), begin = kBegin.size();
  if (!message.starts_with(kBegin) || has == std::string::npos) return printable(message);
  const auto* type = google::protobuf::DescriptorPool::generated_pool()->FindMessageTypeByName(
      message.substr(begin, has - begin));
  std::vector<std::string> names;
  for (int i = 0; type && i < type->field_count(); ++i) names.push_back(type->field(i)->name());
  constexpr size_t kMost = 100;  // characters of a name
  std::string name = message.substr(has + kHas.size());
  name = name.substr(0, std::min(name.find('"'), kMost));
  const std::string near = nearest(name, names);
  return fmt::format("{}: unknown field{}", printable(name),
                     near.empty() ? "" : "; the nearest is " + near);
}

// Gathers mistakes, one a line, the first 50.
class Mistakes : public google::protobuf::io::ErrorCollector {
 public:
  explicit Mistakes(std::string source) : source_(std::move(source)) {}
  void AddError(int line, int column, const std::string& message) override {
    add(fmt::format("{}:{}:{}: {}", source_, line + 1, column + 1, in_words(message)));
  }
  void add(const std::string& line) {
    constexpr size_t kMostSaid = 50;
    if (++count_ <= kMostSaid) text_ += (text_.empty() ? "" : "\n") + line;
    if (count_ == kMostSaid + 1) text_ += "\n" + source_ + ": ... and more";
  }
  void throw_if_any() const {
    if (!text_.empty()) throw Error(ExitCode::kBadJob, text_);
  }

 private:
  std::string source_, text_;
  size_t count_ = 0;
};

}  // namespace

std::string to_text(const ops::Graph& graph) {
  proto::GraphProto out;
  out.set_name(graph.name);
  out.set_input_channels(static_cast<uint32_t>(graph.image.c));
  out.set_input_height(static_cast<uint32_t>(graph.image.h));
  out.set_input_width(static_cast<uint32_t>(graph.image.w));
  for (const ops::Node& node : graph.nodes) {
    proto::NodeProto& n = *out.add_node();
    n.set_name(node.name);
    for (const int input : node.inputs)
      n.add_input(input == ops::kImage ? kImageName : graph.nodes[static_cast<size_t>(input)].name);
    std::visit([&](const auto& spec) { write(n, spec); }, node.op);
  }
  for (const ops::Auxiliary& a : graph.auxiliary) {
    proto::AuxiliaryProto& p = *out.add_auxiliary();
    p.set_node(graph.nodes[static_cast<size_t>(a.node)].name);
    p.set_weight(a.weight);
  }
  std::string text;
  google::protobuf::TextFormat::PrintToString(out, &text);
  return text;
}

ops::Graph parse_graph(std::string_view text, const std::string& source) {
  Mistakes mistakes(printable(source));
  proto::GraphProto in;
  google::protobuf::TextFormat::Parser parser;
  parser.RecordErrorsTo(&mistakes);
  parser.SetRecursionLimit(16);
  parser.ParseFromString(std::string(text), &in);
  mistakes.throw_if_any();

  ops::Graph graph{
      .name = in.name(),
      .image = {.n = 1, .c = in.input_channels(), .h = in.input_height(), .w = in.input_width()},
      .nodes = {}};
  std::unordered_map<std::string, int> index = {{kImageName, ops::kImage}};
  for (const proto::NodeProto& n : in.node()) {
    const std::string where =
        fmt::format("{}: node \"{}\"", printable(source), printable(n.name()));
    std::vector<int> inputs;
    for (const std::string& name : n.input()) {
      const auto found = index.find(name);
      if (found == index.end())
        mistakes.add(fmt::format("{}: input \"{}\" is neither \"{}\" nor an earlier node", where,
                                 printable(name), kImageName));
      else
        inputs.push_back(found->second);
    }
    const std::optional<ops::OpSpec> op = op_of(n);
    if (!op) mistakes.add(where + ": no op; give one, e.g. conv2d { out_channels: 16 }");
    if (!index.emplace(n.name(), static_cast<int>(graph.nodes.size())).second)
      mistakes.add(where + ": the name is taken");
    graph.add(n.name(), op.value_or(ops::Relu{}), std::move(inputs));
  }
  for (const proto::AuxiliaryProto& a : in.auxiliary()) {
    const auto found = index.find(a.node());
    if (found == index.end() || found->second == ops::kImage)
      mistakes.add(fmt::format("{}: auxiliary classifier \"{}\" is no node", printable(source),
                               printable(a.node())));
    else
      graph.auxiliary.push_back({found->second, a.weight()});
  }
  mistakes.throw_if_any();
  return graph;
}

ops::Graph load_graph(const std::string& path) {
  std::string text;
  try {
    text = read_text(path, kMaxGraphBytes);
  } catch (const ReadError&) {
    throw;
  } catch (const Error& e) {
    fail(ExitCode::kBadJob, "{}", e.what());
  }
  ops::Graph graph = parse_graph(text, path);
  const std::string written = to_text(graph);
  const size_t bytes =
      written.size() + static_cast<size_t>(std::ranges::count_if(written, [](char c) {
        return c == '\n' || c == '"' || c == '\'' || c == '\\';
      }));
  if (bytes > kMaxGraphBytes)
    fail(ExitCode::kBadJob, "{}: has {} bytes as a job holds it; a network has at most {}",
         printable(path), bytes, kMaxGraphBytes);
  try {
    ops::infer_shapes(graph, 1);
  } catch (const Error& e) {
    fail(e.code(), "{}: {}", printable(path), e.what());
  }
  return graph;
}

}  // namespace convoy::trainer
