#include "trainer/weights/weight_mapping.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <unordered_map>

#include "ops/core/error.h"
#include "ops/core/tensor.h"
#include "trainer/base/text.h"

namespace convoy::trainer {
namespace {

constexpr const char* kTracked = ".num_batches_tracked";
constexpr uint64_t kSeed = 1;              // of what a file does not have
constexpr int64_t kMostClasses = 1 << 20;  // as data.classes
// The search for the nearest name is quadratic: of hostile files it is not made.
constexpr size_t kMostCandidates = 2000, kMostLooked = 50, kLongestName = 200;
// Every dot of a name may end a prefix; names of networks have few.
constexpr std::ptrdiff_t kMostDots = 16;

// DenseNet's layers were called "denselayer1.norm.1" before torchvision 0.2.
std::string of_today(std::string name) {
  if (name.find(".denselayer") == std::string::npos) return name;
  for (const std::string layer : {"norm", "relu", "conv"})
    for (const std::string number : {"1", "2"}) {
      const std::string old = fmt::format(".{}.{}.", layer, number);
      if (const size_t at = name.find(old); at != std::string::npos)
        name.replace(at, old.size(), fmt::format(".{}{}.", layer, number));
    }
  return name;
}

// What a network wants, in the model's order: a batch norm's running state behind its parameters.
std::vector<MappedTensor> wanted(const ops::ParameterLayout& layout) {
  std::vector<const ops::ParameterLayout::Parameter*> parameters;
  for (const auto& p : layout.parameters) parameters.push_back(&p);
  std::sort(parameters.begin(), parameters.end(),
            [](auto* a, auto* b) { return a->order < b->order; });
  std::map<std::string, int64_t, std::less<>> channels;  // behind "<batch norm>.bias"
  for (const auto& s : layout.statistics) channels[s.name + ".bias"] = s.channels;
  std::vector<MappedTensor> out;
  for (const auto* p : parameters) {
    out.push_back({p->name, p->spec.dims});
    const auto statistics = channels.find(p->name);
    if (statistics == channels.end()) continue;
    const std::string node = p->name.substr(0, p->name.rfind('.'));
    for (const char* what : {".running_mean", ".running_var"})
      out.push_back({node + what, {statistics->second}});
  }
  return out;
}

// The node that a tensor belongs to.
std::string node_of(const std::string& tensor) {
  return tensor.substr(0, tensor.rfind('.'));
}

// What stands in front of the network's names in the file: of all that does, what does most often,
// and in front of more than half of them. Long names and those of many dots have no say.
std::string common_prefix(const std::vector<std::string>& names,
                          const std::set<std::string, std::less<>>& ours) {
  std::map<std::string, size_t> votes;
  for (const std::string& name : names) {
    if (name.size() > kLongestName || std::ranges::count(name, '.') > kMostDots) continue;
    for (size_t at = 0; at != std::string::npos;) {
      if (ours.contains(std::string_view(name).substr(at))) ++votes[name.substr(0, at)];
      at = name.find('.', at);
      if (at != std::string::npos) ++at;
    }
  }
  std::string prefix;
  size_t most = std::max(votes[""], ours.size() / 2);
  for (const auto& [candidate, count] : votes)
    if (count > most) {
      prefix = candidate;
      most = count;
    }
  return prefix;
}

// "module." or "model.", where all names begin so.
std::string prefix_of_all(const std::vector<std::string>& names) {
  for (const std::string prefix : {"module.", "model."})
    if (!names.empty() && std::ranges::all_of(names, [&](const std::string& name) {
          return name.starts_with(prefix);
        }))
      return prefix;
  return "";
}

bool is_float(StoredType type) {
  return type == StoredType::kF32 || type == StoredType::kBf16 || type == StoredType::kF16;
}

class Mapper {
 public:
  Mapper(const TensorList& file, const ops::Graph& graph, const MappingOptions& options)
      : file_(file), graph_(graph), options_(options) {
    mapping_.tensors = wanted(ops::layout_of(graph));
    for (const MappedTensor& t : mapping_.tensors) ours_.insert(t.name);
    for (const NamedTensor& t : file.tensors)
      names_.push_back(options.foreign_names ? of_today(t.name) : t.name);
    mapping_.prefix = options.foreign_names ? common_prefix(names_, ours_) : prefix_of_all(names_);
  }

  WeightMapping run() {
    match();
    if (options_.absent_heads) find_absent_heads();
    for (size_t i = 0; i < mapping_.tensors.size(); ++i) check(i);
    for (const NamedTensor* t : extra_)
      mapping_.misfits.push_back({.kind = Misfit::Kind::kExtra, .found = t});
    return std::move(mapping_);
  }

 private:
  void match() {
    std::map<std::string, const NamedTensor*, std::less<>> found;
    for (size_t i = 0; i < names_.size(); ++i) {
      const NamedTensor& t = file_.tensors[i];
      std::string_view name = names_[i];
      const bool inside = name.starts_with(mapping_.prefix);
      if (inside) name.remove_prefix(mapping_.prefix.size());
      if (inside && name.ends_with(kTracked) &&
          (!options_.foreign_names ||
           ours_.contains(fmt::format("{}.running_mean", node_of(std::string(name))))))
        note_tracked(t);
      else if (!inside || !ours_.contains(name) || !found.emplace(name, &t).second)
        extra_.push_back(&t);
    }
    for (MappedTensor& t : mapping_.tensors)
      if (const auto at = found.find(t.name); at != found.end()) t.source = at->second;
  }

  void note_tracked(const NamedTensor& t) {
    int64_t value = 0;
    if (t.type != StoredType::kI64 || t.bytes.size() != sizeof value) return;
    std::memcpy(&value, t.bytes.data(), sizeof value);
    mapping_.batches_tracked = std::max(mapping_.batches_tracked, value);
  }

  // A head is what only an auxiliary classifier needs, by the first part of its names.
  void find_absent_heads() {
    std::set<std::string, std::less<>> needed;
    for (const ops::Node& node : ops::inference_graph(graph_).nodes) needed.insert(node.name);
    std::map<std::string, bool> heads;  // does the file have any of it
    const auto head = [](const std::string& name) { return name.substr(0, name.find('.')); };
    for (const MappedTensor& t : mapping_.tensors)
      if (!needed.contains(node_of(t.name))) heads[head(t.name)] |= t.source != nullptr;
    for (const auto& [name, present] : heads)
      if (!present) mapping_.absent_heads.push_back(name);
    for (const MappedTensor& t : mapping_.tensors) {
      const auto at = heads.find(head(t.name));
      if (at != heads.end() && !at->second && !needed.contains(node_of(t.name)))
        absent_.insert(t.name);
    }
  }

  void check(size_t i) {
    const MappedTensor& t = mapping_.tensors[i];
    const auto add = [&](Misfit::Kind kind) { mapping_.misfits.push_back({kind, i, t.source}); };
    if (!t.source) {
      if (!absent_.contains(t.name)) add(Misfit::Kind::kMissing);
    } else if (t.source->shape != t.shape) {
      add(Misfit::Kind::kShape);
    } else if (!is_float(t.source->type)) {
      add(Misfit::Kind::kType);
    }
  }

  const TensorList& file_;
  const ops::Graph& graph_;
  const MappingOptions options_;
  WeightMapping mapping_;
  std::set<std::string, std::less<>> ours_;
  std::vector<std::string> names_;  // of the file, as torchvision says them today
  std::vector<const NamedTensor*> extra_;
  std::set<std::string> absent_;  // tensors of heads that the file does not have
};

// "; the nearest there is ...": which of the other side's leftovers may be meant by the name.
template <typename Tensor>
std::string hint(const std::string& name, const std::vector<const Tensor*>& others) {
  if (others.size() > kMostCandidates || name.size() > kLongestName) return "";
  std::vector<std::string> names;
  for (const Tensor* t : others)
    if (t->name.size() <= kLongestName) names.push_back(t->name);
  const std::string near = nearest(name, names);
  if (near.empty()) return "";
  const auto at = std::ranges::find(others, near, &Tensor::name);
  return fmt::format("; the nearest there is \"{}\" {}", printable(near), shape_text((*at)->shape));
}

// As floats, exactly. `to` has the tensor's elements.
void to_floats(const NamedTensor& tensor, std::span<float> to) {
  if (tensor.type == StoredType::kF32) {
    std::memcpy(to.data(), tensor.bytes.data(), to.size_bytes());
    return;
  }
  for (size_t i = 0; i < to.size(); ++i) {
    uint16_t bits;
    std::memcpy(&bits, tensor.bytes.data() + i * sizeof bits, sizeof bits);
    to[i] = tensor.type == StoredType::kBf16 ? to_float(Bfloat16{bits}) : to_float(Float16{bits});
  }
}

// Lines of the values that no network can use.
void look_for_bad_values(const std::string& name, std::span<const float> values,
                         std::vector<std::string>& warnings) {
  const auto bad = std::ranges::count_if(values, [](float v) { return !std::isfinite(v); });
  if (bad > 0)
    warnings.push_back(fmt::format("\"{}\": {} of {} values are infinite or not a number",
                                   printable(name), bad, values.size()));
  if (name.ends_with(".running_var") && std::ranges::any_of(values, [](float v) { return v < 0; }))
    warnings.push_back(fmt::format("\"{}\": a variance is below 0", printable(name)));
}

}  // namespace

WeightMapping map_weights(const TensorList& file, const ops::Graph& graph,
                          const MappingOptions& options) {
  return Mapper(file, graph, options).run();
}

std::vector<std::string> problems_of(const WeightMapping& mapping) {
  using Kind = Misfit::Kind;
  std::vector<const MappedTensor*> missing;
  std::vector<const NamedTensor*> extra;
  for (const Misfit& m : mapping.misfits) {
    if (m.kind == Kind::kMissing) missing.push_back(&mapping.tensors[m.wanted]);
    if (m.kind == Kind::kExtra) extra.push_back(m.found);
  }
  std::vector<std::string> lines;
  for (const Misfit& m : mapping.misfits) {
    const bool looks = lines.size() < kMostLooked;
    if (m.kind == Kind::kExtra) {
      lines.push_back(fmt::format("\"{}\" {} has no place in the network{}",
                                  printable(m.found->name), shape_text(m.found->shape),
                                  looks ? hint(m.found->name, missing) : ""));
      continue;
    }
    const MappedTensor& t = mapping.tensors[m.wanted];
    if (m.kind == Kind::kMissing)
      lines.push_back(fmt::format("\"{}\" {} is missing{}", printable(t.name), shape_text(t.shape),
                                  looks ? hint(t.name, extra) : ""));
    else if (m.kind == Kind::kShape)
      lines.push_back(fmt::format("\"{}\" is {} in the file, {} in the network",
                                  printable(m.found->name), shape_text(m.found->shape),
                                  shape_text(t.shape)));
    else
      lines.push_back(fmt::format("\"{}\" is of type {}; weights are F32, BF16 or F16",
                                  printable(m.found->name), name_of(m.found->type)));
  }
  return lines;
}

int64_t classes_in(const TensorList& file, const ops::Graph& graph) {
  const ops::Graph inference = ops::inference_graph(graph);
  const ops::ParameterLayout layout = ops::layout_of(inference);
  if (layout.parameters.empty()) return 0;
  // In backward order: the classifier's weight is the first.
  const std::string& classifier = layout.parameters.front().name;
  for (const MappedTensor& t : map_weights(file, graph).tensors)
    if (t.name == classifier && t.source && t.source->shape.size() == t.shape.size())
      return t.source->shape[0] <= kMostClasses ? t.source->shape[0] : 0;
  return 0;
}

std::vector<std::string> put_weights(const WeightMapping& mapping,
                                     const ops::ParameterLayout& layout,
                                     std::span<float> parameters, std::span<float> running) {
  std::unordered_map<std::string, std::span<float>> places;
  for (const auto& p : layout.parameters) places[p.name] = parameters.subspan(p.offset, p.floats());
  for (const auto& s : layout.statistics) {
    const auto channels = static_cast<size_t>(s.channels);
    const auto both = running.subspan(s.offset, 2 * channels);
    places[s.name + ".running_mean"] = both.first(channels);
    places[s.name + ".running_var"] = both.last(channels);
  }
  std::vector<std::string> warnings;
  for (const MappedTensor& t : mapping.tensors) {
    if (!t.source) continue;
    const std::span<float> place = places.at(t.name);
    to_floats(*t.source, place);
    look_for_bad_values(t.name, place, warnings);
  }
  return warnings;
}

ImportedWeights take_weights(const WeightMapping& mapping, const ops::ParameterLayout& layout) {
  ImportedWeights out{.parameters = std::vector<float>(layout.parameter_floats),
                      .running = std::vector<float>(layout.statistics_floats),
                      .warnings = {}};
  ops::initialise(layout, kSeed, out.parameters.data());
  ops::initialise_statistics(layout, out.running.data());
  out.warnings = put_weights(mapping, layout, out.parameters, out.running);
  return out;
}

}  // namespace convoy::trainer
