#include "trainer/engine/engine.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include "comm/worker_map.h"
#include "ops/core/clock.h"
#include "ops/core/digest_term.h"
#include "ops/core/error.h"
#include "ops/core/trace.h"
#include "ops/freezing.h"
#include "ops/fully_convolutional.h"
#include "ops/fusion.h"

namespace convoy::trainer {
namespace {

// What travels behind the batch-norm statistics in bucket 0. As many floats as keep the gradients
// behind them where vectors want them.
enum Extra : size_t { kLoss, kCorrect, kStop, kSave, kLeftOut, kExtras = 8 };

// Of a parameter that is frozen.
constexpr int kNoBucket = -1;

// One worker has nothing to add to its gradients while it computes: they are one piece.
std::vector<comm::Range> cut_buckets(const ops::ParameterLayout& layout, size_t head_floats,
                                     const EngineConfig& config) {
  const auto least = config.workers == 1
                         ? layout.gradient_floats
                         : static_cast<size_t>(config.bucket_mib * 1024 * 1024 / sizeof(float));
  std::vector<comm::Range> buckets = {{0, head_floats}};
  size_t begin = 0;
  for (const auto& p : layout.parameters) {
    if (!p.trained) continue;
    const size_t end = p.gradient + p.floats();
    const bool last = end == layout.gradient_floats;
    if (end - begin < least && !last) continue;
    buckets.push_back({head_floats + begin, head_floats + end});
    begin = end;
  }
  return buckets;
}

bool all_finite(std::span<const float> floats) {
  return std::ranges::all_of(floats, [](float v) { return std::isfinite(v); });
}

// As floats, whatever the network computes in.
void download_logits(ops::Device& device, const TensorView& logits, std::vector<float>& out) {
  const auto count = static_cast<size_t>(logits.shape.elements());
  out.resize(count);
  if (logits.type == DType::kFloat32)
    return device.download(out.data(), logits.data, logits.bytes());
  std::vector<uint16_t> bits(count);
  device.download(bits.data(), logits.data, logits.bytes());
  for (size_t i = 0; i < count; ++i)
    out[i] =
        logits.type == DType::kBfloat16 ? to_float(Bfloat16{bits[i]}) : to_float(Float16{bits[i]});
}

float changed(const Fault& fault, float value) {
  if (fault.kind == FaultKind::kNan) return std::numeric_limits<float>::quiet_NaN();
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) ^ (1u << fault.bit));
}

}  // namespace

// What one lane owns; made by its thread.
struct Engine::Lane {
  std::unique_ptr<ops::Device> device;
  std::unique_ptr<ops::Network> network;     // training
  std::unique_ptr<ops::Network> evaluation;  // inference, made when first needed
  Shape evaluation_shape;
  float* flat = nullptr;  // [statistics, extras, gradients]; the reducer's
  Clock::time_point backward_end;
  std::unique_ptr<ops::Digester> digester;  // of `flat`
  // What compute_again() fills in place of `flat`.
  std::unique_ptr<ops::DeviceFloats> again;
  std::unique_ptr<ops::Digester> again_digester;
  std::vector<int> losses_not_finite;  // workers
};

int lanes_for(const std::string& device, int hosted, int cpus, int threads_per_worker) {
  if (device != "cpu") return 1;
  return std::clamp(cpus / std::max(1, threads_per_worker), 1, std::max(1, hosted));
}

Engine::Engine(comm::Communicator& communicator, const ops::Graph& graph,
               const EngineConfig& config)
    : config_(config), communicator_(communicator), graph_(graph), lanes_(config.lanes) {
  plan();
  lane_state_.resize(static_cast<size_t>(config_.lanes));
  lanes_.run([&](int lane) {
    auto state = std::make_unique<Lane>();
    state->device = ops::make_device(config_.device, config_.threads_per_worker, config_.gpu);
    lane_state_[static_cast<size_t>(lane)] = std::move(state);
  });
  ops::Device& device = *lane_state_[0]->device;
  if (device.queue() && config_.lanes > 1)
    fail(ExitCode::kFault, "{} lanes on one GPU: its workers run one after the other",
         config_.lanes);
  parameters_ = std::make_unique<ops::DeviceFloats>(device, layout_.parameter_floats);
  running_ = std::make_unique<ops::DeviceFloats>(device, layout_.statistics_floats);
  optimizer_ = make_optimizer();
  reset();
  agree_on_plans(communicator_, device, config_.plans, [this] {
    lanes_.run([this](int lane) {
      if (lane == 0) decide();
    });
  });
  build();
}

// For all networks of this engine, those to come too.
void Engine::decide() {
  ops::Device& device = *lane_state_[0]->device;
  if (config_.training) {
    ops::decide(device, graph_, training_config());
    for (const std::set<std::string>& frozen : config_.frozen_later)
      ops::decide(device, ops::freeze(graph_, frozen), training_config());
  }
  if (config_.evaluation)
    ops::decide(device, evaluation_graph(config_.evaluation->shape),
                evaluation_config(*config_.evaluation));
}

std::string Engine::plans() const {
  return lane_state_[0]->device->decisions();
}

// Floats of the gradients up to the end of each bucket.
std::vector<size_t> Engine::bucket_ends() const {
  std::vector<size_t> ends;
  for (const comm::Range& bucket : buckets_)
    if (bucket.end > head_floats_) ends.push_back(bucket.end - head_floats_);
  return ends;
}

ops::NetworkConfig Engine::training_config() const {
  return {.batch = config_.batch_per_worker,
          .type = config_.type,
          .tf32 = config_.tf32,
          .training = true,
          .merge = config_.merge,
          .input = config_.input,
          .label_smoothing = config_.label_smoothing,
          .profile = config_.profile,
          .record = config_.record,
          .aside = config_.aside,
          .stops = bucket_ends()};
}

ops::NetworkConfig Engine::evaluation_config(const ops::ImageInput& input) const {
  return {.batch = input.shape.n,
          .type = config_.type,
          .tf32 = config_.tf32,
          .training = false,
          .fold = config_.fold,
          .input = input,
          .label_smoothing = 0.0,
          .whole = &layout_,
          .profile = config_.profile,
          .record = config_.record};
}

ops::Graph Engine::evaluation_graph(const Shape& input) const {
  const bool own_size = input.h == graph_.image.h && input.w == graph_.image.w;
  return own_size ? graph_ : ops::fully_convolutional(graph_, input.h, input.w);
}

std::unique_ptr<ops::Optimizer> Engine::make_optimizer() {
  return lane_state_[0]->device->make_optimizer(
      config_.optimizer, layout_, [this](const std::function<void(int, int)>& body) {
        lanes_.run([&](int lane) { body(lane, lanes_.count()); });
      });
}

// What follows from the graph and from what is frozen. The last node is the first that goes
// backward, so the gradients of its parameters are the first.
void Engine::plan() {
  graph_ = ops::freeze(graph_, config_.frozen);
  fused_ = ops::fuse(graph_);
  layout_ = ops::layout_of(fused_);
  if (config_.training && layout_.gradient_floats == 0)
    fail(ExitCode::kBadJob, "every parameter of {} is frozen, so there is nothing to train",
         printable(graph_.name));
  for (auto& p : layout_.parameters)
    if (const auto own = config_.factors.find(p.name); own != config_.factors.end())
      p.factors = own->second;
  extras_begin_ = layout_.batch_floats;
  head_floats_ = extras_begin_ + kExtras;
  buckets_ = cut_buckets(layout_, head_floats_, config_);
  gradients_.assign(layout_.parameters.size(), nullptr);
  bucket_of_.clear();
  for (const auto& p : layout_.parameters) {
    const auto holds = [&](const comm::Range& b) { return head_floats_ + p.gradient < b.end; };
    const auto bucket = std::find_if(buckets_.begin() + 1, buckets_.end(), holds);
    bucket_of_.push_back(p.trained ? static_cast<int>(bucket - buckets_.begin()) : kNoBucket);
  }
}

// Collective: the reducer, and a network for each lane.
void Engine::build() {
  const bool trains = config_.training && comm::map_workers(config_.workers, communicator_.size())
                                                  .at(static_cast<size_t>(communicator_.rank()))
                                                  .size() > 0;
  reducer_ = comm::make_reducer(
      communicator_, config_.workers, buckets_,
      {.order = config_.reduction, .schedule = {}, .buffers = trains ? config_.lanes : 0},
      lane_state_[0]->device->queue());
  sent_for_.reset();
  if (!trains) return;
  lanes_.run([&](int lane) {
    Lane& state = *lane_state_[static_cast<size_t>(lane)];
    state.network = std::make_unique<ops::Network>(*state.device, graph_, training_config());
    auto* flat = state.flat = reducer_->memory(lane);
    state.network->bind({.parameters = parameters_->data(),
                         .running = running_->data(),
                         .gradients = flat + head_floats_,
                         .statistics = flat});
  });
}

void Engine::freeze(const std::set<std::string>& frozen) {
  if (frozen == config_.frozen) return;
  config_.frozen = frozen;
  const State now = state();
  const std::vector<float> momentum(now.momentum.begin(), now.momentum.end());
  const std::vector<float> ema(now.ema.begin(), now.ema.end());
  reducer_->begin_step();  // the last step's sums may still be on their way to others
  waited_before_ += reducer_->waited_seconds();
  lanes_.run([&](int lane) {
    Lane& state = *lane_state_[static_cast<size_t>(lane)];
    state.digester.reset();
    state.again_digester.reset();
    state.again.reset();
    state.network.reset();
  });
  state_digester_.reset();
  communicator_.barrier();
  reducer_.reset();
  optimizer_.reset();
  plan();
  optimizer_ = make_optimizer();
  const State fresh = state();
  std::ranges::copy(momentum, fresh.momentum.begin());
  std::ranges::copy(ema, fresh.ema.begin());
  put_state();
  build();
}

void Engine::reset() {
  const State start = state();
  ops::initialise(layout_, config_.seed, start.parameters.data());
  ops::initialise_statistics(layout_, start.running.data());
  std::ranges::fill(start.momentum, 0.0f);
  std::ranges::copy(start.parameters.first(start.ema.size()), start.ema.begin());
  put_state();
  loss_scale_ = {};
}

Engine::~Engine() {
  state_digester_.reset();
  reducer_.reset();
  optimizer_.reset();
  running_.reset();
  parameters_.reset();
  // Ops belong to the threads that made them.
  lanes_.run([&](int lane) { lane_state_[static_cast<size_t>(lane)].reset(); });
}

void Engine::prepare(std::unique_ptr<ops::Network> Lane::*network) {
  const TraceRange trace("weights packed");
  const auto start = Clock::now();
  for (size_t lane = 1; lane < lane_state_.size(); ++lane)
    if (const auto& follower = (*lane_state_[lane]).*network)
      follower->share_weights(*((*lane_state_[0]).*network));
  lanes_.run([&](int lane) { ((*lane_state_[0]).*network)->prepare(lane, lanes_.count()); });
  prepare_seconds_ += seconds_since(start);
}

// A lane that fails must not leave another waiting for a batch behind the one it holds.
void Engine::run_lanes(const Source& source, const std::function<void(int)>& body) {
  lanes_.run([&](int lane) {
    try {
      body(lane);
    } catch (...) {
      const std::exception_ptr error = std::current_exception();
      // A GPU may still read images whose owner goes when this is thrown.
      try {
        lane_state_[static_cast<size_t>(lane)]->device->inputs_read();
      } catch (const Error&) {  // nothing is worse than what is thrown already
      }
      source.stop(error);
      std::rethrow_exception(error);
    }
  });
}

// One worker up to its loss. flat: [statistics, extras, gradients].
void Engine::forward(Lane& lane, const ops::StepInfo& step, const Source& source, float* flat) {
  const auto worker = static_cast<uint64_t>(step.worker);
  const double samples =
      static_cast<double>(config_.workers) * static_cast<double>(config_.batch_per_worker);
  const TraceRange trace("forward");
  const Images images = source.acquire(worker);
  const Shape& image = config_.input.shape;
  const ops::BatchMix mix =
      ops::draw_batch_mix(config_.mixing, step.seed, step.step, step.worker, image.h, image.w);
  const bool sent = sent_for_ == step.step && static_cast<int>(worker) == hosted().begin;
  if (sent) sent_for_.reset();
  lane.network->forward(sent ? nullptr : images.pixels, step, mix);
  float* const loss = flat + extras_begin_ + kLoss;
  lane.network->loss(images.labels, 1.0 / samples, loss,
                     config_.scale_loss ? loss_scale_.scale : 1.0, mix.label_share);
  lane.device->inputs_read();
  source.release(worker);
  if (lane.device->shares_host_memory() && !std::isfinite(*loss))
    lane.losses_not_finite.push_back(static_cast<int>(worker));
}

// Its gradients, each bucket to the reducer as soon as it is ready.
void Engine::backward(Lane& lane, const ops::StepInfo& step, bool keep) {
  const TraceRange trace("backward");
  const auto worker = static_cast<int>(step.worker);
  const bool is_first = worker == hosted().begin;
  const auto contribute = [&](size_t bucket) {
    const comm::Range range = buckets_[bucket];
    if (is_first && gradient_fault_) {
      const size_t at = head_floats_ + gradient_fault_->index % layout_.gradient_floats;
      if (at >= range.begin && at < range.end) {
        float value;
        lane.device->download(&value, lane.flat + at, sizeof value);
        value = changed(*gradient_fault_, value);
        lane.device->upload(lane.flat + at, &value, sizeof value);
      }
    }
    // Before the reducer takes the memory as scratch.
    if (worker == digested_) {
      const auto [first, last] = contribution_of(bucket);
      lane.digester->run(first, last);
    }
    const TraceRange handing("bucket handed over");
    reducer_->contribute(worker, static_cast<int>(bucket), lane.flat + range.begin, keep);
  };
  contribute(0);
  size_t next = 1;
  lane.network->backward(step, [&](size_t ready) {
    for (; next < buckets_.size() && buckets_[next].end <= head_floats_ + ready; ++next)
      contribute(next);
  });
}

void Engine::train_lane(int lane, const ops::StepInfo& info, const Control& control,
                        const Source& source) {
  Lane& state = *lane_state_[static_cast<size_t>(lane)];
  state.losses_not_finite.clear();
  const comm::WorkerRange range = hosted();
  for (int worker = range.begin + lane; worker < range.end; worker += lanes_.count()) {
    ops::StepInfo step = info;
    step.worker = worker;
    forward(state, step, source, state.flat);
    // Flags once per rank; sums of them travel, and anything above zero is a yes.
    const bool first = worker == range.begin;
    const float flags[] = {first && control.stop ? 1.0f : 0.0f, first && control.save ? 1.0f : 0.0f,
                           first && control.left_out ? 1.0f : 0.0f};
    state.device->upload(state.flat + extras_begin_ + kStop, flags, sizeof flags);
    if (worker == digested_ && !state.digester)
      state.digester = state.device->make_digester(contribution_ranges(state.flat));
    backward(state, step, /*keep=*/worker + lanes_.count() >= range.end);
    state.backward_end = Clock::now();
  }
}

Engine::Result Engine::step(uint64_t step, double learning_rate, const Control& control,
                            const Source& source) {
  compute(step, control, source);
  const Result result = update(learning_rate, nullptr, &source);
  if (result.diverged)
    fail(ExitCode::kFault, "{}; {}", about_divergence(step, result), kDivergenceRemedy);
  return result;
}

void Engine::compute(uint64_t step, const Control& control, const Source& source, int digested) {
  const TraceRange trace(fmt::format("compute step {}", step).c_str());
  digested_ = digested;
  step_ = step;
  if (sent_for_ != step) sent_for_.reset();
  say_reduce(0);  // the last step's sums may still be on their way to others
  reducer_->begin_step();
  say_compute();
  if (hosted().size() > 0) prepare(&Lane::network);
  const ops::StepInfo info{.seed = config_.seed, .step = step, .worker = 0};
  run_lanes(source, [&](int lane) { train_lane(lane, info, control, source); });
  gradient_fault_.reset();
}

// A GPU copies them while it still works on this step.
void Engine::send_ahead(const Source& source) {
  Lane& lane = *lane_state_[0];
  if (!source.next || !lane.network || !lane.device->queue()) return;
  const uint8_t* pixels = source.next(static_cast<uint64_t>(hosted().begin));
  if (!pixels) return;
  const TraceRange trace("images sent ahead");
  lane.network->send(pixels);
  sent_for_ = step_ + 1;
}

Engine::Result Engine::update(double learning_rate, LayerStatistics* layers, const Source* source) {
  const TraceRange trace("sums and update");
  say_reduce(0);
  const std::span<const float> head = reducer_->wait(0);
  int last = 0;
  for (size_t p = 0; p < gradients_.size(); ++p) {
    const int bucket = bucket_of_[p];
    if (bucket == kNoBucket) continue;
    if (bucket != last) say_reduce(bucket);
    last = bucket;
    const size_t begin = buckets_[static_cast<size_t>(bucket)].begin;
    const TraceRange waiting("bucket's sum");
    gradients_[p] =
        reducer_->wait(bucket).data() + (head_floats_ + layout_.parameters[p].gradient - begin);
  }
  if (sum_fault_) spoil_sum(*std::exchange(sum_fault_, std::nullopt));
  Clock::time_point backward_end;
  for (const auto& lane : lane_state_) backward_end = std::max(backward_end, lane->backward_end);
  if (hosted().size() > 0) exposed_seconds_ += seconds_since(backward_end);
  // A GPU's queue only knows of the sums so far: the host waits for them at the end of the update.
  if (!lane_state_[0]->device->queue()) say_compute();
  if (layers) *layers = layer_statistics(head.data());
  const auto update_start = Clock::now();
  const TraceRange updating("update");
  optimizer_->update(parameters_->data(), gradients_, learning_rate,
                     head.data() + extras_begin_ + kLoss,
                     config_.scale_loss ? 1.0 / loss_scale_.scale : 1.0);
  // Every worker's mean and variance count alike.
  optimizer_->update_running(running_->data(), head.data(),
                             1.0f / static_cast<float>(config_.workers));

  if (source) send_ahead(*source);  // the download waits for that, too
  float extras[kExtras];
  lane_state_[0]->device->download(extras, head.data() + extras_begin_, sizeof extras);
  reducer_->confirm();
  say_compute();
  update_seconds_ += seconds_since(update_start);
  Result result;
  result.loss = static_cast<double>(extras[kLoss]);
  result.top1 =
      static_cast<double>(extras[kCorrect]) /
      (static_cast<double>(config_.workers) * static_cast<double>(config_.batch_per_worker));
  result.gradient_norm = optimizer_->result().gradient_norm;
  result.control = {.stop = extras[kStop] > 0, .save = extras[kSave] > 0};
  // A number of ranks, whatever a broken memory says.
  result.left_out = extras[kLeftOut] > 0 ? static_cast<int>(std::min(extras[kLeftOut], 1e6f)) : 0;
  result.updated = std::isfinite(result.loss) && std::isfinite(result.gradient_norm);
  result.diverged = config_.scale_loss ? !loss_scale_.note(result.updated) : !result.updated;
  return result;
}

LayerStatistics Engine::layer_statistics(const float* head) {
  LayerStatistics layers;
  const std::span<const float> parameters = parameters_->read();
  add_weights(layers, parameters);
  add_responses(layers, parameters, head);
  return layers;
}

void Engine::add_weights(LayerStatistics& layers, std::span<const float> parameters) {
  std::vector<size_t> weights;
  for (size_t p = 0; p < layout_.parameters.size(); ++p)
    if (layout_.parameters[p].spec.is_weight) weights.push_back(p);
  std::ranges::sort(weights, {}, [&](size_t p) { return layout_.parameters[p].order; });
  const size_t count = weights.size();
  for (std::vector<double>* out :
       {&layers.gradient_norm, &layers.gradient_rms, &layers.weight_norm, &layers.weight_rms})
    out->resize(count);
  for (const size_t p : weights) layers.weights.push_back(layout_.parameters[p].name);

  const double scale = config_.scale_loss ? loss_scale_.scale : 1.0;
  ops::Device& device = *lane_state_[0]->device;
  const auto measure = [&](size_t i, std::vector<float>& copy) {
    const ops::ParameterLayout::Parameter& p = layout_.parameters[weights[i]];
    const double root = std::sqrt(static_cast<double>(p.floats()));
    layers.weight_norm[i] = std::sqrt(sum_of_squares(parameters.subspan(p.offset, p.floats())));
    layers.weight_rms[i] = layers.weight_norm[i] / root;
    layers.gradient_norm[i] = layers.gradient_rms[i] = std::numeric_limits<double>::quiet_NaN();
    if (!p.trained) return;
    std::span<const float> gradient{gradients_[weights[i]], p.floats()};
    if (!device.shares_host_memory()) {
      copy.resize(p.floats());
      device.download(copy.data(), gradient.data(), gradient.size_bytes());
      gradient = copy;
    }
    layers.gradient_norm[i] = std::sqrt(sum_of_squares(gradient)) / scale;
    layers.gradient_rms[i] = layers.gradient_norm[i] / root;
  };
  if (device.shares_host_memory()) {
    lanes_.run([&](int lane) {
      std::vector<float> unused;
      for (auto i = static_cast<size_t>(lane); i < count; i += static_cast<size_t>(lanes_.count()))
        measure(i, unused);
    });
  } else {
    std::vector<float> copy;
    for (size_t i = 0; i < count; ++i) measure(i, copy);
  }
}

void Engine::add_responses(LayerStatistics& layers, std::span<const float> parameters,
                           const float* head) const {
  if (layout_.batch_floats == 0) return;
  std::vector<float> sums(layout_.batch_floats);
  lane_state_[0]->device->download(sums.data(), head, sums.size() * sizeof(float));
  const std::vector<Shape> shapes = ops::infer_shapes(fused_, config_.batch_per_worker);
  for (const ops::ParameterLayout::Statistics& s : layout_.statistics) {
    if (!s.gathered) continue;
    const auto channels = static_cast<size_t>(s.channels);
    std::span<const float> gamma, beta;
    for (const ops::ParameterLayout::Parameter& p : layout_.parameters)
      if (p.node == s.node)
        (p.spec.name == "weight" ? gamma : beta) = parameters.subspan(p.offset, p.floats());
    // The workers' mean of unbiased variances, made biased again.
    const auto rows = static_cast<double>(shapes[s.node].rows());
    std::vector<double> variance(channels);
    for (size_t c = 0; c < channels; ++c)
      variance[c] =
          static_cast<double>(sums[s.batch + channels + c]) / config_.workers * (rows - 1) / rows;
    layers.batch_norms.push_back(s.name);
    layers.response_std.push_back(response_std(
        gamma, beta, variance, std::get<ops::BatchNorm>(fused_.nodes[s.node].op).epsilon));
  }
}

std::vector<ops::DigestRange> Engine::contribution_ranges(const float* flat) const {
  std::vector<ops::DigestRange> ranges = {{flat, layout_.batch_floats},
                                          {flat + extras_begin_ + kLoss, kCorrect - kLoss + 1}};
  for (const auto& p : layout_.parameters)
    if (p.trained) ranges.push_back({flat + head_floats_ + p.gradient, p.floats()});
  return ranges;
}

std::pair<size_t, size_t> Engine::contribution_of(size_t bucket) const {
  constexpr size_t kHead = 2;  // statistics and loss, which are bucket 0
  if (bucket == 0) return {0, kHead};
  // Among the parameters that are trained.
  const auto before = std::ranges::count_if(
      bucket_of_, [&](int b) { return b != kNoBucket && b < static_cast<int>(bucket); });
  const auto inside = std::ranges::count(bucket_of_, static_cast<int>(bucket));
  return {kHead + static_cast<size_t>(before), kHead + static_cast<size_t>(before + inside)};
}

std::vector<std::string> Engine::contribution_names() const {
  std::vector<std::string> names = {"batch-norm statistics", "loss"};
  for (const auto& p : layout_.parameters)
    if (p.trained) names.push_back("gradient of " + p.name);
  return names;
}

std::vector<uint64_t> Engine::contribution() {
  const comm::WorkerRange range = hosted();
  if (digested_ < range.begin || digested_ >= range.end) return {};
  return lane_state_[static_cast<size_t>((digested_ - range.begin) % lanes_.count())]
      ->digester->result();
}

std::vector<uint64_t> Engine::compute_again(uint64_t step, int worker, int lane,
                                            const Source& source) {
  say_compute();
  std::vector<uint64_t> digests;
  run_lanes(source, [&](int each) {
    if (each != lane) return;
    Lane& state = *lane_state_[static_cast<size_t>(lane)];
    if (!state.again) {
      state.again = std::make_unique<ops::DeviceFloats>(*state.device,
                                                        head_floats_ + layout_.gradient_floats);
      state.again_digester = state.device->make_digester(contribution_ranges(state.again->data()));
    }
    float* const flat = state.again->data();
    const auto bind = [&](float* to) {
      state.network->bind({.parameters = parameters_->data(),
                           .running = running_->data(),
                           .gradients = to + head_floats_,
                           .statistics = to});
    };
    const ops::StepInfo info{.seed = config_.seed, .step = step, .worker = worker};
    bind(flat);
    forward(state, info, source, flat);
    state.network->backward(info, [](size_t) {});
    digests = state.again_digester->digests();
    bind(state.flat);
  });
  say_reduce(0);
  return digests;
}

std::vector<uint64_t> Engine::state_digests() {
  if (!state_digester_) {
    std::vector<ops::DigestRange> ranges;
    const auto add = [&](const ops::DeviceFloats& flat, size_t offset, size_t floats) {
      ranges.push_back({flat.data() + offset, floats});
    };
    for (const auto& p : layout_.parameters) add(*parameters_, p.offset, p.floats());
    for (const auto& s : layout_.statistics)
      for (const size_t half : {0, 1})
        add(*running_, s.offset + half * static_cast<size_t>(s.channels),
            static_cast<size_t>(s.channels));
    for (const auto& p : layout_.parameters) add(optimizer_->momentum(), p.offset, p.floats());
    if (has_ema())
      for (const auto& p : layout_.parameters) add(optimizer_->ema(), p.offset, p.floats());
    state_digester_ = lane_state_[0]->device->make_digester(
        ranges, [this](const std::function<void(int, int)>& body) {
          lanes_.run([&](int lane) { body(lane, lanes_.count()); });
        });
  }
  std::vector<uint64_t> digests = state_digester_->digests();
  if (scales_loss())
    digests.push_back(
        digest_join(std::bit_cast<uint64_t>(loss_scale_.scale), loss_scale_.good_steps));
  return digests;
}

std::vector<std::string> Engine::state_names() const {
  std::vector<std::string> names;
  for (const auto& p : layout_.parameters) names.push_back(p.name);
  for (const auto& s : layout_.statistics)
    for (const char* half : {".running_mean", ".running_var"}) names.push_back(s.name + half);
  for (const auto& p : layout_.parameters) names.push_back("momentum of " + p.name);
  if (has_ema())
    for (const auto& p : layout_.parameters) names.push_back("moving average of " + p.name);
  if (scales_loss()) names.emplace_back("the loss scale");
  return names;
}

std::string Engine::about_divergence(uint64_t step, const Result& result) {
  constexpr size_t kShown = 3;
  std::string names;
  size_t count = 0;
  std::vector<float> gradient;
  for (size_t p = 0; p < gradients_.size(); ++p) {
    if (!layout_.parameters[p].trained) continue;
    gradient.resize(layout_.parameters[p].floats());
    lane_state_[0]->device->download(gradient.data(), gradients_[p],
                                     gradient.size() * sizeof(float));
    if (!all_finite(gradient) && ++count <= kShown)
      names += (count == 1 ? "" : ", ") + layout_.parameters[p].name;
  }
  if (count > kShown) names += fmt::format(" and {} more", count - kShown);
  return fmt::format("step {}: the loss is {}, the gradient's norm {}{}{}", step, result.loss,
                     result.gradient_norm, config_.scale_loss ? " even with a loss scale of 1" : "",
                     count > 0 ? fmt::format(" (not finite: the gradient of {})", names) : "");
}

std::vector<int> Engine::losses_not_finite() const {
  std::vector<int> workers;
  for (const auto& lane : lane_state_)
    workers.insert(workers.end(), lane->losses_not_finite.begin(), lane->losses_not_finite.end());
  std::ranges::sort(workers);
  return workers;
}

std::shared_ptr<void> Engine::pin(void* memory, size_t bytes) const {
  return lane_state_[0]->device->pin(memory, bytes);
}

void Engine::apply(const Fault& fault) {
  if (fault.what == FaultTarget::kGradient || fault.what == FaultTarget::kSum) {
    (fault.what == FaultTarget::kSum ? sum_fault_ : gradient_fault_) = fault;
    return;
  }
  const State now = state();
  const std::span<float> flat = fault.what == FaultTarget::kWeights    ? now.parameters
                                : fault.what == FaultTarget::kMomentum ? now.momentum
                                : fault.what == FaultTarget::kRunning  ? now.running
                                                                       : now.ema;
  if (flat.empty()) return;
  float& value = flat[fault.index % flat.size()];
  value = changed(fault, value);
  put_state();
}

// In a copy: the sum itself may lie in memory that other ranks read.
void Engine::spoil_sum(const Fault& fault) {
  const size_t at = fault.index % layout_.gradient_floats;
  const auto holds = [&](const auto& each) {
    return each.trained && at >= each.gradient && at < each.gradient + each.floats();
  };
  const auto p = static_cast<size_t>(std::ranges::find_if(layout_.parameters, holds) -
                                     layout_.parameters.begin());
  ops::Device& device = *lane_state_[0]->device;
  std::vector<float> sum(layout_.parameters[p].floats());
  device.download(sum.data(), gradients_[p], sum.size() * sizeof(float));
  float& value = sum[at - layout_.parameters[p].gradient];
  value = changed(fault, value);
  wrong_sum_ = std::make_unique<ops::DeviceFloats>(device, sum.size());
  std::ranges::copy(sum, wrong_sum_->read().begin());
  wrong_sum_->write();
  gradients_[p] = wrong_sum_->data();
}

Engine::State Engine::state() {
  return {.parameters = parameters_->read(),
          .running = running_->read(),
          .momentum = optimizer_->momentum().read(),
          .ema = optimizer_->ema().read()};
}

void Engine::put_state() {
  for (ops::DeviceFloats* flat :
       {parameters_.get(), running_.get(), &optimizer_->momentum(), &optimizer_->ema()})
    flat->write();
}

std::vector<ops::LossResult> Engine::evaluate(uint64_t slices, const ops::ImageInput& input,
                                              Weights weights, const Source& source,
                                              const Logits& logits) {
  const float* flat = weights == Weights::kAverage ? optimizer_->ema().data() : parameters_->data();
  std::vector<ops::LossResult> results(slices);
  if (slices == 0) return results;
  const ops::Graph graph = evaluation_graph(input.shape);
  run_lanes(source, [&](int lane) {
    Lane& state = *lane_state_[static_cast<size_t>(lane)];
    if (!(state.evaluation_shape == input.shape)) state.evaluation.reset();
    if (static_cast<uint64_t>(lane) >= slices) return;
    if (!state.evaluation) {
      state.evaluation =
          std::make_unique<ops::Network>(*state.device, graph, evaluation_config(input));
      state.evaluation_shape = input.shape;
    }
    state.evaluation->bind({.parameters = flat,
                            .running = running_->data(),
                            .gradients = nullptr,
                            .statistics = nullptr});
  });
  prepare(&Lane::evaluation);
  run_lanes(source, [&](int lane) {
    Lane& state = *lane_state_[static_cast<size_t>(lane)];
    std::vector<float> scores;
    for (auto n = static_cast<uint64_t>(lane); n < slices;
         n += static_cast<uint64_t>(lanes_.count())) {
      const Images images = source.acquire(n);
      state.evaluation->forward(images.pixels, {});
      state.evaluation->loss(images.labels, 0.0);
      results[n] = state.evaluation->loss_result();
      if (logits) {
        download_logits(*state.device, state.evaluation->logits(), scores);
        logits(n, scores);
      }
      source.release(n);
    }
  });
  return results;
}

uint64_t Engine::evaluation_bytes(uint64_t slices, const Shape& input) const {
  if (config_.device != "cpu") return 0;
  const uint64_t arena = ops::planned_arena(evaluation_graph(input), input.n, config_.type, false,
                                            lane_state_[0]->device->slice_bytes())
                             .bytes;
  // ImageInput's mean and inv_std
  const auto numbers = static_cast<uint64_t>(2 * input.c * input.h * input.w);
  return (arena + numbers * sizeof(float)) *
         std::min(slices, static_cast<uint64_t>(lanes_.count()));
}

ops::NetworkTimes Engine::times() const {
  ops::NetworkTimes mean;
  double lanes = 0;
  for (const auto& state : lane_state_) {
    const auto& network = state->network ? state->network : state->evaluation;
    if (!network) continue;
    const ops::NetworkTimes& t = network->times();
    mean.calls.resize(t.calls.size(), {});
    mean.input += t.input;
    mean.loss += t.loss;
    for (size_t i = 0; i < t.calls.size(); ++i) {
      mean.calls[i].first = t.calls[i].first;
      mean.calls[i].second += t.calls[i].second;
    }
    ++lanes;
  }
  for (double* seconds : {&mean.input, &mean.loss}) *seconds /= lanes;
  for (auto& call : mean.calls) call.second /= lanes;
  return mean;
}

const ops::Graph& Engine::running_graph() const {
  const Lane& lane = *lane_state_[0];
  return (lane.network ? lane.network : lane.evaluation)->graph();
}

bool Engine::state_is_finite() {
  return all_finite(parameters_->read()) && all_finite(running_->read());
}

size_t Engine::memory_bytes() const {
  size_t bytes = reducer_->buffer_bytes();
  for (const ops::DeviceFloats* flat :
       {parameters_.get(), running_.get(), &optimizer_->momentum(), &optimizer_->ema()})
    bytes += flat->size() * sizeof(float);
  for (const auto& lane : lane_state_) {
    if (lane->network) bytes += lane->network->arena_bytes();
    if (lane->evaluation) bytes += lane->evaluation->arena_bytes();
    if (lane->again) bytes += lane->again->size() * sizeof(float);
  }
  return bytes;
}

}  // namespace convoy::trainer
