#include "trainer/engine/freezing.h"

#include <algorithm>

#include "ops/core/error.h"
#include "trainer/base/text.h"

namespace convoy::trainer {
namespace {

std::vector<std::string> names_of(const ops::ParameterLayout& layout) {
  std::vector<const ops::ParameterLayout::Parameter*> in_order;
  for (const auto& p : layout.parameters) in_order.push_back(&p);
  std::ranges::sort(in_order, {}, [](const auto* p) { return p->order; });
  std::vector<std::string> names;
  for (const auto* p : in_order) names.push_back(p->name);
  return names;
}

std::string block_of(const std::string& name) {
  const size_t first = name.find('.');
  const size_t second = name.find('.', first + 1);  // "fc.weight" has no second
  if (second == std::string::npos) return name.substr(0, first);
  const std::string_view next = std::string_view(name).substr(first + 1, second - first - 1);
  const bool is_number = next.find_first_not_of("0123456789") == std::string_view::npos;
  return is_number || name.starts_with("features.") ? name.substr(0, second)
                                                    : name.substr(0, first);
}

// Collects what is wrong, and turns patterns into names.
class Patterns {
 public:
  explicit Patterns(std::vector<std::string> names) : names_(std::move(names)) {}

  const std::vector<std::string>& names() const { return names_; }
  std::vector<std::string> taken(const std::string& key, const std::string& pattern) {
    std::vector<std::string> out;
    std::ranges::copy_if(names_, std::back_inserter(out),
                         [&](const std::string& name) { return takes(pattern, name); });
    if (out.empty())
      add(fmt::format("{} \"{}\" takes no parameter; the nearest name is \"{}\"", key,
                      printable(pattern), nearest_name(pattern, names_)));
    return out;
  }
  void add(const std::string& what) { mistakes_.push_back(what); }
  void throw_if_any(const std::string& model) const {
    if (mistakes_.empty()) return;
    fail(ExitCode::kBadJob, "{} mistake{} about the parameters of {} (convoy model show {}):\n  {}",
         mistakes_.size(), mistakes_.size() == 1 ? "" : "s", printable(model), printable(model),
         fmt::join(mistakes_, "\n  "));
  }

 private:
  std::vector<std::string> names_, mistakes_;
};

std::set<std::string> frozen_at_first(const Job::Transfer& transfer, const ops::Graph& graph,
                                      Patterns& patterns) {
  std::set<std::string> frozen;
  for (const std::string& pattern : transfer.freeze)
    for (const std::string& name : patterns.taken("transfer.freeze", pattern)) frozen.insert(name);
  if (transfer.train_last_blocks == 0) return frozen;
  const std::vector<std::vector<std::string>> blocks = blocks_of(graph);
  if (transfer.train_last_blocks > blocks.size())
    patterns.add(fmt::format("transfer.train_last_blocks is {}, but there are {} blocks",
                             transfer.train_last_blocks, blocks.size()));
  for (size_t b = 0; b + transfer.train_last_blocks < blocks.size(); ++b)
    frozen.insert(blocks[b].begin(), blocks[b].end());
  return frozen;
}

// The smallest step that begins at or behind the epoch, as milestones are compared.
uint64_t step_of(double epoch, const RunLength& length) {
  const auto samples = static_cast<double>(length.dataset_size);
  auto step = static_cast<uint64_t>(epoch * samples / static_cast<double>(length.global_batch));
  step -= std::min<uint64_t>(step, 2);
  while (epoch_at(step, length) < epoch) ++step;
  return step;
}

}  // namespace

// Backs up to the last * only, so the cost is at most the product of the lengths.
bool fits(std::string_view pattern, std::string_view text) {
  size_t p = 0, t = 0, star = std::string_view::npos, resume = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resume = t;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t])) {
      ++p;
      ++t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++resume;
    } else {
      return false;
    }
  }
  return pattern.find_first_not_of('*', p) == std::string_view::npos;
}

bool takes(std::string_view pattern, std::string_view name) {
  for (size_t end = name.find('.');; end = name.find('.', end + 1)) {
    if (fits(pattern, name.substr(0, end))) return true;
    if (end == std::string_view::npos) return false;
  }
}

const std::set<std::string>& TrainingPlan::frozen_at(uint64_t step) const {
  size_t last = 0;
  while (last + 1 < phases.size() && phases[last + 1].step <= step) ++last;
  return phases[last].frozen;
}

std::vector<std::vector<std::string>> blocks_of(const ops::Graph& graph) {
  struct Block {
    std::string name;
    std::vector<std::string> parameters;
    bool has_weights = false;  // more than batch norms
  };
  std::vector<Block> blocks;
  const ops::ParameterLayout layout = ops::layout_of(graph);
  std::map<std::string, size_t> node_of;
  for (const auto& p : layout.parameters) node_of[p.name] = p.node;
  std::set<std::string> inferred;
  for (const ops::Node& node : ops::inference_graph(graph).nodes) inferred.insert(node.name);
  const auto find = [&](const std::string& name) {
    return std::ranges::find(blocks, name, &Block::name);
  };
  // Of an auxiliary classifier's parameter: the block that it reads, which is there already.
  const auto source_of = [&](size_t node) {
    while (graph.nodes[node].inputs[0] != ops::kImage) {
      node = static_cast<size_t>(graph.nodes[node].inputs[0]);
      const std::string block = block_of(graph.nodes[node].name + ".weight");
      if (inferred.contains(graph.nodes[node].name) && find(block) != blocks.end()) return block;
    }
    return block_of(graph.nodes[node].name + ".weight");
  };
  for (const std::string& name : names_of(layout)) {
    const size_t node = node_of[name];
    const std::string own =
        inferred.contains(graph.nodes[node].name) ? block_of(name) : source_of(node);
    auto block = find(own);
    if (block == blocks.end()) block = blocks.insert(blocks.end(), Block{own, {}, false});
    block->parameters.push_back(name);
    block->has_weights =
        block->has_weights || !std::holds_alternative<ops::BatchNorm>(graph.nodes[node].op);
  }
  std::vector<std::vector<std::string>> out;
  for (const Block& block : blocks)
    if (block.has_weights || out.empty())
      out.push_back(block.parameters);
    else
      out.back().insert(out.back().end(), block.parameters.begin(), block.parameters.end());
  return out;
}

TrainingPlan plan_training(const Job& job, const ops::Graph& graph, const RunLength& length) {
  const Job::Transfer& transfer = job.transfer;
  Patterns patterns(names_of(ops::layout_of(graph)));
  TrainingPlan plan;
  plan.phases.push_back({0, 0, frozen_at_first(transfer, graph, patterns)});
  if (plan.phases[0].frozen.size() == patterns.names().size())
    patterns.add("everything is frozen: nothing would be trained");

  std::vector<Job::Transfer::Unfreeze> unfreeze = transfer.unfreeze;
  std::ranges::stable_sort(unfreeze, {}, &Job::Transfer::Unfreeze::epoch);
  for (const Job::Transfer::Unfreeze& each : unfreeze) {
    FrozenFrom next = {step_of(each.epoch, length), each.epoch, plan.phases.back().frozen};
    const std::vector<std::string> taken = patterns.taken("transfer.unfreeze", each.pattern);
    for (const std::string& name : taken) next.frozen.erase(name);
    if (!taken.empty() && next.frozen.size() == plan.phases.back().frozen.size())
      patterns.add(
          fmt::format("transfer.unfreeze \"{}\" at epoch {}: all that it takes is trained "
                      "already",
                      printable(each.pattern), each.epoch));
    if (next.step == plan.phases.back().step && next.step > 0)
      plan.phases.back() = next;
    else
      plan.phases.push_back(next);
  }

  for (const Job::Optimizer::Group& group : job.optimizer.group)
    for (const std::string& name : patterns.taken("optimizer.group", group.pattern))
      plan.factors.try_emplace(
          name, ops::ParameterFactors{group.learning_rate_factor, group.weight_decay_factor});
  for (const std::string& pattern : transfer.start_anew)
    patterns.taken("transfer.start_anew", pattern);
  patterns.throw_if_any(graph.name);
  return plan;
}

std::string trained_share(const ops::ParameterLayout& layout, const std::set<std::string>& frozen) {
  size_t trained = 0;
  for (const auto& p : layout.parameters) trained += frozen.contains(p.name) ? 0 : p.floats();
  if (frozen.empty()) return fmt::format("{} parameters", layout.parameter_floats);
  return fmt::format("{} of {} parameters are trained", trained, layout.parameter_floats);
}

std::string nearest_name(const std::string& pattern, const std::vector<std::string>& names) {
  std::vector<std::string> all;
  for (const std::string& name : names)
    for (size_t end = name.find('.');; end = name.find('.', end + 1)) {
      const std::string part = name.substr(0, end);
      if (std::ranges::find(all, part) == all.end()) all.push_back(part);
      if (end == std::string::npos) break;
    }
  return nearest(pattern.substr(0, 100), all);
}

}  // namespace convoy::trainer
