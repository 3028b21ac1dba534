#include "trainer/initial_weights.h"

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>

#include "ops/core/digest.h"
#include "ops/core/error.h"
#include "ops/core/log.h"
#include "trainer/checkpoint.h"
#include "trainer/freezing.h"
#include "trainer/weight_mapping.h"

namespace convoy::trainer {
namespace {

constexpr size_t kMostSaid = 50;

// The layer that gives these logits: nothing with parameters lies behind it. -1: none.
int head_of(const ops::Graph& graph, int node) {
  while (node != ops::kImage) {
    const ops::Node& at = graph.nodes[static_cast<size_t>(node)];
    if (std::holds_alternative<ops::Linear>(at.op) || std::holds_alternative<ops::Conv2d>(at.op))
      return node;
    if (at.inputs.size() != 1 || std::holds_alternative<ops::BatchNorm>(at.op)) return -1;
    node = at.inputs[0];
  }
  return -1;
}

// Auxiliary classifiers' before the last one.
std::vector<int> heads_of(const ops::Graph& graph) {
  std::vector<int> heads;
  for (const ops::Auxiliary& a : graph.auxiliary) heads.push_back(head_of(graph, a.node));
  heads.push_back(head_of(graph, static_cast<int>(graph.nodes.size()) - 1));
  return heads;
}

// What a network wants of a file, by name; and what it makes of what is there.
class Taker {
 public:
  Taker(const TensorList& from, const std::string& source,
        const std::vector<std::string>& start_anew)
      : source_(source), start_anew_(start_anew), prefix_(common_prefix(from)) {
    for (const NamedTensor& t : from.tensors)
      if (!t.name.ends_with(".num_batches_tracked"))
        tensors_.emplace(t.name.substr(prefix_.size()), &t);
  }

  // A head of `classes` classes starts anew where the file's has another number.
  void head(const std::string& node, const std::vector<int64_t>& weight) {
    const auto found = tensors_.find(node + ".weight");
    if (found == tensors_.end()) return;
    const std::vector<int64_t>& shape = found->second->shape;
    if (shape.size() != weight.size() || shape.empty() || shape[0] == weight[0] ||
        !std::equal(shape.begin() + 1, shape.end(), weight.begin() + 1))
      return;
    taken_.heads.push_back(fmt::format("{}: {} classes there, {} here", node, shape[0], weight[0]));
    new_heads_.push_back(node);
  }

  void want(const std::string& name, const std::vector<int64_t>& shape, std::span<float> to) {
    const auto found = tensors_.find(name);
    const bool is_new_head = std::ranges::any_of(
        new_heads_, [&](const std::string& node) { return name.starts_with(node + "."); });
    const bool is_left_out = std::ranges::any_of(
        start_anew_, [&](const std::string& pattern) { return takes(pattern, name); });
    if (is_new_head || is_left_out) {
      if (is_left_out && !is_new_head) taken_.anew.push_back(name);
      if (found != tensors_.end()) tensors_.erase(found);
      return;
    }
    if (found == tensors_.end()) {
      mistakes_.push_back(fmt::format("missing: {} {}", name, shape_text(shape)));
      return;
    }
    const NamedTensor& tensor = *found->second;
    tensors_.erase(found);
    if (tensor.shape != shape || !is_float(tensor.type))
      mistakes_.push_back(fmt::format("of another shape: {} is {} {} there, the network wants {}",
                                      name, name_of(tensor.type), shape_text(tensor.shape),
                                      shape_text(shape)));
    else
      copies_.emplace_back([&tensor, to] { to_floats(tensor, to); });
  }

  WeightsTaken finish(const std::string& model) {
    for (const auto& [name, tensor] : tensors_)
      mistakes_.push_back(fmt::format("extra: {} {}", printable(name), shape_text(tensor->shape)));
    if (!mistakes_.empty()) refuse(model);
    for (const auto& copy : copies_) copy();
    taken_.tensors = copies_.size();
    taken_.prefix = prefix_;
    return taken_;
  }

 private:
  static std::string common_prefix(const TensorList& from) {
    for (const std::string prefix : {"module.", "model."})
      if (!from.tensors.empty() && std::ranges::all_of(from.tensors, [&](const NamedTensor& t) {
            return t.name.starts_with(prefix);
          }))
        return prefix;
    return "";
  }

  [[noreturn]] void refuse(const std::string& model) const {
    std::string text;
    for (size_t i = 0; i < std::min(kMostSaid, mistakes_.size()); ++i)
      text += "\n  " + mistakes_[i];
    if (mistakes_.size() > kMostSaid)
      text += fmt::format("\n  ... and {} more", mistakes_.size() - kMostSaid);
    fail(ExitCode::kBadData,
         "{}: its tensors are not those of {} ({} differ); transfer.start_anew names what need not "
         "be there:{}",
         printable(source_), printable(model), mistakes_.size(), text);
  }

  const std::string& source_;
  const std::vector<std::string>& start_anew_;
  std::string prefix_;
  std::map<std::string, const NamedTensor*> tensors_;  // not yet asked for, without the prefix
  std::vector<std::string> new_heads_, mistakes_;
  std::vector<std::function<void()>> copies_;
  WeightsTaken taken_;
};

void log_taken(const Job& job, const WeightsTaken& taken) {
  log::info(
      "begins with {} tensors of {} (sha256 {}){}", taken.tensors,
      printable(job.transfer.init_from), job.transfer.init_sha256.substr(0, 16),
      taken.prefix.empty() ? "" : fmt::format(", all of whose names begin with {}", taken.prefix));
  for (const std::string& head : taken.heads) log::info("the head starts anew: {}", head);
  if (!taken.anew.empty())
    log::info("transfer.start_anew: {} start anew", fmt::join(taken.anew, ", "));
}

}  // namespace

std::string tensors_digest(const TensorList& list) {
  std::map<std::string_view, const NamedTensor*> by_name;
  for (const NamedTensor& t : list.tensors) by_name.emplace(t.name, &t);
  Sha256 sha;
  for (const auto& [name, t] : by_name)
    sha.update(fmt::format("{} {} {}\n", name, name_of(t->type), shape_text(t->shape)))
        .update(t->bytes.data(), t->bytes.size());
  return sha.hex();
}

TensorList read_weights(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_directory(path, error)) return read_safetensors(path);
  return std::move(load_newest(path).state.model);
}

WeightsTaken copy_weights(const TensorList& from, const std::string& source,
                          const ops::Graph& graph, const ops::ParameterLayout& layout,
                          const std::vector<std::string>& start_anew, std::span<float> parameters,
                          std::span<float> running) {
  Taker taker(from, source, start_anew);
  const auto in_order = [&] {
    std::vector<const ops::ParameterLayout::Parameter*> all;
    for (const auto& p : layout.parameters) all.push_back(&p);
    std::ranges::sort(all, {}, [](const auto* p) { return p->order; });
    return all;
  }();
  for (const int head : heads_of(graph)) {
    if (head < 0) continue;
    const std::string& node = graph.nodes[static_cast<size_t>(head)].name;
    for (const auto* p : in_order)
      if (p->name == node + ".weight") taker.head(node, p->spec.dims);
  }
  for (const auto* p : in_order)
    taker.want(p->name, p->spec.dims, parameters.subspan(p->offset, p->floats()));
  for (const auto& s : layout.statistics) {
    const auto channels = static_cast<size_t>(s.channels);
    taker.want(s.name + ".running_mean", {s.channels}, running.subspan(s.offset, channels));
    taker.want(s.name + ".running_var", {s.channels},
               running.subspan(s.offset + channels, channels));
  }
  return taker.finish(graph.name);
}

std::optional<TensorList> find_initial_weights(comm::Communicator& communicator,
                                               const Resume& resume, Job& job) {
  Job::Transfer& transfer = job.transfer;
  if (transfer.init_from.empty()) return std::nullopt;
  if (resume.found) {
    const std::string before = parse_job(resume.job, resume.folder, {}, "").transfer.init_sha256;
    if (before.empty())
      fail(ExitCode::kBadJob,
           "transfer.init_from: {} began without it; use another --out, or leave it out",
           printable(resume.folder));
    if (transfer.init_sha256.empty()) transfer.init_sha256 = before;
    return std::nullopt;
  }
  std::optional<TensorList> weights;
  std::string digest;
  if (communicator.rank() == 0) {
    weights = read_weights(transfer.init_from);
    digest = tensors_digest(*weights);
  }
  communicator.broadcast(digest, 0);
  if (!transfer.init_sha256.empty() && transfer.init_sha256 != digest)
    fail(ExitCode::kBadData, "{}: its tensors have the SHA-256 {}, transfer.init_sha256 says {}",
         printable(transfer.init_from), digest, transfer.init_sha256);
  transfer.init_sha256 = digest;
  return weights;
}

void start_from(comm::Communicator& communicator, Engine& engine, const ops::Graph& graph,
                const Job& job, const std::optional<TensorList>& weights) {
  const Engine::State state = engine.state();
  if (weights) {
    log_taken(job, copy_weights(*weights, job.transfer.init_from, graph, engine.layout(),
                                job.transfer.start_anew, state.parameters, state.running));
    std::ranges::copy(state.parameters.first(state.ema.size()), state.ema.begin());
    engine.put_state();
  }
  broadcast_state(communicator, engine);
}

}  // namespace convoy::trainer
