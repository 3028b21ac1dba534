#include "trainer/weights/model_state.h"

#include <algorithm>
#include <cstring>
#include <unordered_map>

#include "ops/core/error.h"
#include "ops/core/log.h"

namespace convoy::trainer {
namespace {

constexpr const char* kMomentum = "momentum.";
constexpr const char* kMeanImage = "input.mean_image";
constexpr const char* kLossScale = "loss_scale";  // [scale, steps since it changed]

NamedTensor fp32_tensor(std::string name, std::vector<int64_t> shape, std::span<const float> data) {
  return {.name = std::move(name),
          .type = StoredType::kF32,
          .shape = std::move(shape),
          .bytes = std::as_bytes(data)};
}

// Parameters in the order of the nodes.
std::vector<const ops::ParameterLayout::Parameter*> in_node_order(
    const ops::ParameterLayout& layout) {
  std::vector<const ops::ParameterLayout::Parameter*> out;
  for (const auto& p : layout.parameters) out.push_back(&p);
  std::sort(out.begin(), out.end(), [](auto* a, auto* b) { return a->order < b->order; });
  return out;
}

TensorList parameter_tensors(const ops::ParameterLayout& layout, std::span<const float> flat,
                             const std::string& prefix) {
  TensorList list;
  for (const auto* p : in_node_order(layout))
    list.tensors.push_back(
        fp32_tensor(prefix + p->name, p->spec.dims, flat.subspan(p->offset, p->floats())));
  return list;
}

// Copies named tensors into flat memory and checks that none is missing or left over.
class Reader {
 public:
  Reader(const TensorList& list, const char* what) : what_(what) {
    for (const NamedTensor& t : list.tensors) tensors_.emplace(t.name, &t);
  }

  void take(const std::string& name, const std::vector<int64_t>& shape, std::span<float> to) {
    const auto found = tensors_.find(name);
    if (found == tensors_.end())
      fail(ExitCode::kBadData, "the checkpoint's {} has no tensor \"{}\"; is it of another model?",
           what_, name);
    const NamedTensor& t = *found->second;
    if (t.type != StoredType::kF32 || t.shape != shape)
      fail(ExitCode::kBadData,
           "the checkpoint's {} tensor \"{}\" is {} [{}], the network wants F32 [{}]", what_, name,
           name_of(t.type), fmt::join(t.shape, ", "), fmt::join(shape, ", "));
    std::memcpy(to.data(), t.bytes.data(), t.bytes.size());
    tensors_.erase(found);
  }
  void skip(const std::string& name) { tensors_.erase(name); }
  void finish() const {
    if (!tensors_.empty())
      fail(ExitCode::kBadData,
           "the checkpoint's {} has {} tensor(s) that the network lacks, e.g. \"{}\"; is it of "
           "another model?",
           what_, tensors_.size(), printable(tensors_.begin()->first));
  }

 private:
  const char* what_;
  std::unordered_map<std::string, const NamedTensor*> tensors_;
};

void take_parameters(Reader& reader, const ops::ParameterLayout& layout, const std::string& prefix,
                     std::span<float> flat) {
  for (const auto& p : layout.parameters)
    reader.take(prefix + p.name, p.spec.dims, flat.subspan(p.offset, p.floats()));
}

}  // namespace

TensorList model_tensors(Engine& engine, uint64_t step) {
  const Engine::State state = engine.state();
  return model_tensors(engine.layout(), state.parameters, state.running, step);
}

TensorList model_tensors(const ops::ParameterLayout& layout, std::span<const float> flat,
                         std::span<const float> flat_running, uint64_t step) {
  TensorList parameters = parameter_tensors(layout, flat, "");
  TensorList list;
  list.storage = std::make_unique<std::byte[]>(sizeof(int64_t));
  const auto tracked = static_cast<int64_t>(step);
  std::memcpy(list.storage.get(), &tracked, sizeof tracked);

  // A batch norm's running state stands behind its parameters, as in torchvision.
  auto next = parameters.tensors.begin();
  for (const auto& s : layout.statistics) {
    const std::string last = s.name + ".bias";
    while (next != parameters.tensors.end()) {
      list.tensors.push_back(std::move(*next++));
      if (list.tensors.back().name == last) break;
    }
    const auto channels = static_cast<size_t>(s.channels);
    const auto running = flat_running.subspan(s.offset, 2 * channels);
    list.tensors.push_back(
        fp32_tensor(s.name + ".running_mean", {s.channels}, running.first(channels)));
    list.tensors.push_back(
        fp32_tensor(s.name + ".running_var", {s.channels}, running.last(channels)));
    list.tensors.push_back({.name = s.name + ".num_batches_tracked",
                            .type = StoredType::kI64,
                            .shape = {},
                            .bytes = {list.storage.get(), sizeof tracked}});
  }
  std::move(next, parameters.tensors.end(), std::back_inserter(list.tensors));
  return list;
}

TensorList optimizer_tensors(Engine& engine, const Normalisation& normalisation) {
  TensorList list = parameter_tensors(engine.layout(), engine.state().momentum, kMomentum);
  if (!normalisation.mean_image.empty())
    list.tensors.push_back(fp32_tensor(kMeanImage,
                                       {static_cast<int64_t>(normalisation.mean_image.size())},
                                       normalisation.mean_image));
  if (engine.scales_loss()) {
    list.storage = std::make_unique<std::byte[]>(2 * sizeof(float));
    const LossScale& s = engine.loss_scale();
    const float values[] = {static_cast<float>(s.scale), static_cast<float>(s.good_steps)};
    std::memcpy(list.storage.get(), values, sizeof values);
    list.tensors.push_back({.name = kLossScale,
                            .type = StoredType::kF32,
                            .shape = {2},
                            .bytes = {list.storage.get(), sizeof values}});
  }
  return list;
}

TensorList ema_tensors(Engine& engine) {
  if (!engine.has_ema()) return {};
  return parameter_tensors(engine.layout(), engine.state().ema, "");
}

void restore(Engine& engine, const CheckpointState& state, bool weights_only) {
  const Engine::State flat = engine.state();
  const ops::ParameterLayout& layout = engine.layout();
  Reader model(state.model, "model");
  take_parameters(model, layout, "", flat.parameters);
  for (const auto& s : layout.statistics) {
    const auto channels = static_cast<size_t>(s.channels);
    const auto running = flat.running.subspan(s.offset, 2 * channels);
    model.take(s.name + ".running_mean", {s.channels}, running.first(channels));
    model.take(s.name + ".running_var", {s.channels}, running.last(channels));
    model.skip(s.name + ".num_batches_tracked");
  }
  model.finish();
  if (engine.has_ema() && state.ema.tensors.empty()) {
    log::warning("the checkpoint has no moving average; it starts at the weights");
    std::ranges::copy(flat.parameters, flat.ema.begin());
  } else if (engine.has_ema()) {
    Reader average(state.ema, "moving average");
    take_parameters(average, layout, "", flat.ema);
    average.finish();
  }
  if (!weights_only) {
    Reader optimizer(state.optimizer, "optimizer");
    take_parameters(optimizer, layout, kMomentum, flat.momentum);
    optimizer.skip(kMeanImage);
    // A run that goes on in another precision has none, or needs none.
    if (engine.scales_loss() && state.optimizer.find(kLossScale)) {
      float values[2];  // both are small whole numbers
      optimizer.take(kLossScale, {2}, values);
      engine.loss_scale() = {.scale = static_cast<double>(values[0]),
                             .good_steps = static_cast<uint32_t>(values[1])};
    }
    optimizer.skip(kLossScale);
    optimizer.finish();
  }
  engine.put_state();
}

Normalisation stored_normalisation(const CheckpointState& state) {
  Normalisation out;
  if (const NamedTensor* t = state.optimizer.find(kMeanImage)) {
    out.mean_image.resize(t->bytes.size() / sizeof(float));
    std::memcpy(out.mean_image.data(), t->bytes.data(), out.mean_image.size() * sizeof(float));
  }
  return out;
}

}  // namespace convoy::trainer
