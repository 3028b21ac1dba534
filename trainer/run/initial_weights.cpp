#include "trainer/run/initial_weights.h"

#include <algorithm>
#include <filesystem>
#include <map>

#include "ops/core/digest.h"
#include "ops/core/error.h"
#include "ops/core/log.h"
#include "trainer/checkpoints/checkpoint.h"
#include "trainer/engine/freezing.h"
#include "trainer/weights/weight_mapping.h"

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

// "fc: 10 classes there, 5 here", where the file's head differs in nothing else; else empty.
std::string other_classes(const std::string& node, const MappedTensor& weight) {
  if (!weight.source) return "";
  const std::vector<int64_t>&there = weight.source->shape, &here = weight.shape;
  if (there.size() != here.size() || there[0] == here[0] ||
      !std::equal(there.begin() + 1, there.end(), here.begin() + 1))
    return "";
  return fmt::format("{}: {} classes there, {} here", node, there[0], here[0]);
}

// Of these nothing is taken, and nothing need be there: heads of another number of classes, and
// what `start_anew` says.
void leave_out(const ops::Graph& graph, const std::vector<std::string>& start_anew,
               WeightMapping& mapping, WeightsTaken& taken) {
  std::vector<std::string> new_heads;
  for (const int head : heads_of(graph)) {
    if (head < 0) continue;
    const std::string& node = graph.nodes[static_cast<size_t>(head)].name;
    const auto weight = std::ranges::find(mapping.tensors, node + ".weight", &MappedTensor::name);
    if (weight == mapping.tensors.end()) continue;
    const std::string text = other_classes(node, *weight);
    if (text.empty()) continue;
    taken.heads.push_back(text);
    new_heads.push_back(node);
  }
  std::vector<bool> anew;
  for (MappedTensor& t : mapping.tensors) {
    const bool is_new_head = std::ranges::any_of(
        new_heads, [&](const std::string& node) { return t.name.starts_with(node + "."); });
    const bool is_left_out = std::ranges::any_of(
        start_anew, [&](const std::string& pattern) { return takes(pattern, t.name); });
    if (is_left_out && !is_new_head) taken.anew.push_back(t.name);
    if (is_left_out || is_new_head) t.source = nullptr;
    anew.push_back(is_left_out || is_new_head);
  }
  std::erase_if(mapping.misfits,
                [&](const Misfit& m) { return m.kind != Misfit::Kind::kExtra && anew[m.wanted]; });
}

std::string line_of(const Misfit& misfit, const WeightMapping& mapping) {
  const NamedTensor* found = misfit.found;
  if (misfit.kind == Misfit::Kind::kExtra)
    return fmt::format("extra: {} {}", printable(found->name), shape_text(found->shape));
  const MappedTensor& wanted = mapping.tensors[misfit.wanted];
  if (!found)
    return fmt::format("missing: {} {}", printable(wanted.name), shape_text(wanted.shape));
  return fmt::format("of another shape: {} is {} {} there, the network wants {}",
                     printable(wanted.name), name_of(found->type), shape_text(found->shape),
                     shape_text(wanted.shape));
}

[[noreturn]] void refuse(const std::string& source, const std::string& model,
                         const WeightMapping& mapping) {
  const std::vector<Misfit>& misfits = mapping.misfits;
  std::string text;
  for (size_t i = 0; i < std::min(kMostSaid, misfits.size()); ++i)
    text += "\n  " + line_of(misfits[i], mapping);
  if (misfits.size() > kMostSaid)
    text += fmt::format("\n  ... and {} more", misfits.size() - kMostSaid);
  fail(ExitCode::kBadData,
       "{}: its tensors are not those of {} ({} differ); transfer.start_anew names what need not "
       "be there:{}",
       printable(source), printable(model), misfits.size(), text);
}

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
  WeightMapping mapping = map_weights(from, graph, {.foreign_names = false, .absent_heads = false});
  WeightsTaken taken{.prefix = mapping.prefix};
  leave_out(graph, start_anew, mapping, taken);
  if (!mapping.misfits.empty()) refuse(source, graph.name, mapping);
  put_weights(mapping, layout, parameters, running);
  taken.tensors = static_cast<size_t>(std::ranges::count_if(
      mapping.tensors, [](const MappedTensor& t) { return t.source != nullptr; }));
  return taken;
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
    std::error_code ignored;
    if (!std::filesystem::exists(transfer.init_from, ignored))
      fail(ExitCode::kIo,
           "transfer.init_from: {}: there is no such file or folder; train it first, or name "
           "another "
           "(--set transfer.init_from=PATH)",
           printable(transfer.init_from));
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
