#include "tests/support/op_tester.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <mutex>
#include <numeric>
#include <utility>

namespace convoy::ops {
namespace {

// ---- The tolerances, all of them.

struct Tolerance {
  double l2;   // ||out - reference|| / ||reference||
  double max;  // max |out - reference| / max |reference|
};

// fp32: a sum of k products rounds by about sqrt(k) * 2^-24 of its terms; the longest sums here
// (k = 2,304) thus by 3e-6 at the very most, since the order in blocks makes it less. The maximum
// takes a few times that, for the one sum whose terms cancel.
// bf16: a number has 8 bits, so what is stored is rounded by at most 2^-8 of its size, and
// by 1.5e-3 to 2.3e-3 in the root mean square (2^-8 / sqrt(3) at the lower end of a power of two).
// A value that is stored on its way, as the sum of two gradients is, takes that twice. Sums are
// fp32, so they add nothing. What stays fp32 (parameter gradients, statistics, logits) is held to
// fp32's tolerance also in bf16. fp16 has three more bits.
Tolerance tolerance_of(DType type, int roundings) {
  if (type == DType::kFloat32) return {.l2 = 4e-6, .max = 1e-5};
  if (type == DType::kFloat16) return {.l2 = 3.2e-4 * roundings, .max = 0x1p-11 * roundings};
  return {.l2 = 2.5e-3 * roundings, .max = 0x1p-8 * roundings};
}

// Differences of forward over a step h of inputs of size 1. In double: error h^2 + 1e-16 / h. In
// fp32: the sums round by 1e-7 / h of their size, and curvature adds h^2. Steps are chosen where
// both are small.
constexpr double kReferenceStep = 1e-5, kReferenceTolerance = 1e-7;
constexpr double kDeviceStep = 2e-3, kDeviceTolerance = 1e-3;
// Spaced inputs are as large as 100, so their sums round more; nothing flips within this step.
constexpr double kSpacedStep = 2e-2;

// ---- Memory.

constexpr size_t kGuard = 256;
constexpr unsigned char kGuardByte = 0xA5;
constexpr unsigned char kUnwritten = 0xFF;  // as fp32 and bf16: NaN

// A buffer on the device between two guard zones, filled with kUnwritten at first.
class GuardedBuffer {
 public:
  GuardedBuffer(Device& device, size_t bytes)
      : device_(device), bytes_(bytes), memory_(device.allocate(bytes + 2 * kGuard)) {
    std::vector<unsigned char> all(bytes + 2 * kGuard, kGuardByte);
    std::fill_n(all.begin() + kGuard, bytes, kUnwritten);
    device_.upload(memory_.data.get(), all.data(), all.size());
  }
  GuardedBuffer(Device& device, const std::vector<float>& values, DType type)
      : GuardedBuffer(device, values.size() * size_of(type)) {
    write(values, type);
  }

  void write(const std::vector<float>& values, DType type) {
    written_ = encode(values, type);
    device_.upload(data(), written_.data(), bytes_);
  }
  void* data() const { return static_cast<unsigned char*>(memory_.data.get()) + kGuard; }
  std::vector<float> read(DType type) const { return decode(bytes(kGuard, bytes_), type); }
  void expect_guards(const char* what) const {
    const std::vector<unsigned char> before = bytes(0, kGuard),
                                     behind = bytes(kGuard + bytes_, kGuard);
    for (size_t i = 0; i < kGuard; ++i) {
      ASSERT_EQ(before[i], kGuardByte)
          << what << ": written " << kGuard - i << " bytes before its begin";
      ASSERT_EQ(behind[i], kGuardByte) << what << ": written " << i << " bytes behind its end";
    }
  }
  void expect_unchanged(const char* what) const {
    EXPECT_TRUE(bytes(kGuard, bytes_) == written_) << what << " was written";
  }

 private:
  std::vector<unsigned char> bytes(size_t begin, size_t count) const {
    std::vector<unsigned char> out(count);
    device_.download(out.data(), static_cast<unsigned char*>(memory_.data.get()) + begin, count);
    return out;
  }

  Device& device_;
  size_t bytes_;
  DeviceMemory memory_;
  std::vector<unsigned char> written_;
};

std::vector<float> uniform(size_t n, uint64_t seed, uint64_t stream, float mean = 0) {
  std::vector<float> v(n);
  for (size_t i = 0; i < n; ++i) v[i] = mean + random_value(seed, stream, i);
  return v;
}

std::vector<float> spaced(size_t n, uint64_t seed, uint64_t stream) {
  std::vector<float> v(n);
  for (size_t i = 0; i < n; ++i)
    v[i] = (static_cast<float>(i) + 0.5f - static_cast<float>(n / 2)) / 10;
  for (size_t i = n; i > 1; --i)  // Fisher and Yates
    std::swap(v[i - 1], v[uniform_below(random4(seed, Purpose::kSyntheticData, stream, i)[0],
                                        static_cast<uint32_t>(i))]);
  return v;
}

bool wants(const OpCase& c, size_t input) {
  return c.wants_dx.empty() || c.wants_dx[input];
}

OpConfig config_of(const OpCase& c, DType type) {
  OpConfig config = {.name = c.node,
                     .x = c.x,
                     .y = output_shape(c.spec, c.x),
                     .batch = c.x[0].n,
                     .type = type,
                     .y_type = c.fp32_output ? DType::kFloat32 : type,
                     .tf32 = c.tf32,
                     .training = c.training,
                     .wants_dx = {},
                     .wants_gradients = c.wants_gradients};
  for (Shape& x : config.x) x.n /= c.slices;
  config.y.n /= c.slices;
  for (size_t i = 0; i < c.x.size(); ++i) config.wants_dx.push_back(wants(c, i));
  return config;
}

// Of gradient k of an output of shape y.
Shape dy_shape(const OpSpec& spec, const Shape& y, int k) {
  return compact(y, k == 1 ? backward_needs(spec).dy1_stride : 1);
}

std::vector<double> in_double(const std::vector<float>& v) {
  return {v.begin(), v.end()};
}

std::vector<double> sum_of(const std::vector<std::vector<float>>& parts) {
  std::vector<double> sum(parts[0].size());
  for (const auto& part : parts)
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += static_cast<double>(part[i]);
  return sum;
}

double dot(const std::vector<double>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * static_cast<double>(b[i]);
  return sum;
}

double norm(const std::vector<double>& v) {
  return std::sqrt(std::inner_product(v.begin(), v.end(), v.begin(), 0.0));
}

reference::Node reference_inputs(const OpCase& c, DType type, const OpData& data) {
  reference::Node node;
  node.training = c.training;
  for (size_t i = 0; i < c.x.size(); ++i)
    node.x.push_back(reference::Array(c.x[i], in_double(data.x[i])));
  const auto specs = parameters(c.spec, c.x);
  for (size_t p = 0; p < specs.size(); ++p) {
    node.parameters.push_back(in_double(data.parameters[p]));
    for (double& v : node.parameters.back())
      if (specs[p].is_weight) v = static_cast<double>(round_to(type, static_cast<float>(v)));
  }
  node.running = in_double(data.running);
  if (const auto* conv = std::get_if<Conv2d>(&c.spec); conv && conv->batch_norm) {
    // Here it is the folded weights that are rounded.
    const size_t channels = data.running.size() / 2, filter = data.parameters[2].size() / channels;
    for (size_t i = 0; i < data.parameters[2].size(); ++i) {
      const size_t k = i / filter;
      const double scale =
          node.parameters[0][k] / std::sqrt(node.running[channels + k] + conv->batch_norm->epsilon);
      const auto folded = static_cast<float>(static_cast<double>(data.parameters[2][i]) * scale);
      node.parameters[2][i] = static_cast<double>(round_to(type, folded)) / scale;
    }
  }
  return node;
}

// Batch norm with a ReLU has a kink in the middle of its values: outputs that a step could take
// across it do not count.
void ignore_kinks(const OpCase& c, OpData& data) {
  const auto* spec = std::get_if<BatchNorm>(&c.spec);
  if (!spec || !spec->relu) return;
  BatchNorm smooth = *spec;
  smooth.relu = false;
  reference::Node node = reference_inputs(c, DType::kFloat32, data);
  reference::forward(smooth, node);
  for (size_t i = 0; i < node.y.v.size(); ++i)
    if (std::abs(node.y.v[i]) < 10 * kDeviceStep)
      for (auto& dy : data.dy) dy[i] = 0;
}

}  // namespace

std::vector<unsigned char> encode(const std::vector<float>& values, DType type) {
  std::vector<unsigned char> bytes(values.size() * size_of(type));
  for (size_t i = 0; i < values.size(); ++i) {
    const auto put = [&](auto v) { std::memcpy(bytes.data() + i * sizeof v, &v, sizeof v); };
    if (type == DType::kFloat32)
      put(values[i]);
    else if (type == DType::kBfloat16)
      put(to_bfloat16(values[i]));
    else
      put(to_float16(values[i]));
  }
  return bytes;
}

std::vector<float> decode(const std::vector<unsigned char>& bytes, DType type) {
  std::vector<float> values(bytes.size() / size_of(type));
  for (size_t i = 0; i < values.size(); ++i) {
    const auto get = [&](auto v) {
      std::memcpy(&v, bytes.data() + i * sizeof v, sizeof v);
      return v;
    };
    if (type == DType::kFloat32)
      values[i] = get(0.0f);
    else if (type == DType::kBfloat16)
      values[i] = to_float(get(Bfloat16{}));
    else
      values[i] = to_float(get(Float16{}));
  }
  return values;
}

float round_to(DType type, float v) {
  if (type == DType::kFloat32) return v;
  return type == DType::kBfloat16 ? to_float(to_bfloat16(v)) : to_float(to_float16(v));
}

DeviceMemory upload(Device& device, const std::vector<float>& values, DType type, size_t behind) {
  std::vector<unsigned char> bytes = encode(values, type);
  bytes.resize(bytes.size() + behind, 0xff);
  DeviceMemory memory = device.allocate(bytes.size());
  device.upload(memory.data.get(), bytes.data(), bytes.size());
  return memory;
}

std::vector<float> download(Device& device, const DeviceMemory& memory, DType type) {
  std::vector<unsigned char> bytes(memory.bytes);
  device.download(bytes.data(), memory.data.get(), bytes.size());
  return decode(bytes, type);
}

float random_value(uint64_t seed, uint64_t stream, uint64_t i) {
  return 2 * uniform_float(random4(seed, Purpose::kSyntheticData, stream, i)[0]) - 1;
}

std::vector<uint32_t> bits_of(const std::vector<float>& v) {
  std::vector<uint32_t> bits(v.size());
  if (!v.empty()) std::memcpy(bits.data(), v.data(), v.size() * sizeof(float));
  return bits;
}

std::vector<float> spread(const std::vector<float>& stored, const Shape& whole, int64_t stride) {
  std::vector<float> out(static_cast<size_t>(whole.elements()), 0.0f);
  auto next = stored.begin();
  for (int64_t n = 0; n < whole.n; ++n)
    for (int64_t h = 0; h < whole.h; h += stride)
      for (int64_t w = 0; w < whole.w; w += stride, next += whole.c)
        std::copy_n(next, whole.c, out.begin() + ((n * whole.h + h) * whole.w + w) * whole.c);
  EXPECT_EQ(next, stored.end());
  return out;
}

std::vector<float> in_four_channels(const Shape& shape, const std::vector<float>& image) {
  std::vector<float> out(static_cast<size_t>(with_four_channels(shape).elements()));
  pad_to_four_channels(shape, image.data(), out.data(), sizeof(float));
  return out;
}

std::unique_ptr<Device> make_test_device(const std::string& name, int threads) {
  static std::mutex mutex;
  static std::map<std::string, std::string> kept;
  std::unique_ptr<Device> device = make_device(name, threads);
  device->keep_kernels({.read =
                            [](const std::string& kernel) {
                              const std::lock_guard lock(mutex);
                              const auto found = kept.find(kernel);
                              return found == kept.end() ? std::string() : found->second;
                            },
                        .write =
                            [](const std::string& kernel, const std::string& text) {
                              const std::lock_guard lock(mutex);
                              kept[kernel] = text;
                            }});
  return device;
}

std::vector<std::string> device_names() {
  std::vector<std::string> names;
  for (const char* name : {"cpu", "cuda"}) {
    try {
      make_device(name, 1);
    } catch (const Error&) {
      continue;
    }
    names.emplace_back(name);
  }
  return names;
}

std::vector<Target> targets() {
  std::vector<Target> all;
  for (const std::string& name : device_names()) {
    for (const DType type : {DType::kFloat32, DType::kBfloat16}) all.push_back({name, type});
    if (name == "cuda") all.push_back({name, DType::kFloat16});
  }
  return all;
}

void PrintTo(const Target& target, std::ostream* out) {
  *out << target.device << " in " << name_of(target.type);
}

std::string target_name(const ::testing::TestParamInfo<Target>& info) {
  return fmt::format("{}_{}", info.param.device, name_of(info.param.type));
}

void OpTest::SetUp() {
  if (!device().supports(type()))
    GTEST_SKIP() << "SKIPPED: " << GetParam().device << " (" << device().instruction_set()
                 << ") does not support " << name_of(type());
}

Device& OpTest::device(int threads) {
  device_ = make_test_device(GetParam().device, threads);
  return *device_;
}

std::string describe(const OpCase& c) {
  std::string text = kind_of(c.spec);
  if (const auto* s = std::get_if<Conv2d>(&c.spec))
    text += fmt::format(" k {} kernel {} stride {} padding {} groups {} bias {}", s->out_channels,
                        s->kernel, s->stride, s->padding, s->groups, s->bias);
  if (const auto* s = std::get_if<BatchNorm>(&c.spec); s && s->dy1_stride > 1)
    text += fmt::format(" compact {}", s->dy1_stride);
  if (const auto* s = std::get_if<MaxPool>(&c.spec))
    text += fmt::format(" kernel {} stride {} padding {} ceil {}", s->kernel, s->stride, s->padding,
                        s->ceil_mode);
  if (const auto* s = std::get_if<AvgPool>(&c.spec))
    text += fmt::format(" kernel {} stride {} padding {} count_include_pad {}", s->kernel,
                        s->stride, s->padding, s->count_include_pad);
  if (const auto* s = std::get_if<AdaptiveAvgPool>(&c.spec))
    text += fmt::format(" {} x {} windows", s->h, s->w);
  if (const auto* s = std::get_if<LocalResponseNorm>(&c.spec))
    text += fmt::format(" size {} alpha {} beta {} k {}", s->size, s->alpha, s->beta, s->k);
  if (const auto* s = std::get_if<Sigmoid>(&c.spec)) text += s->complement ? " complement" : "";
  for (const Shape& x : c.x) text += fmt::format(" {}", to_string(x));
  if (c.slices > 1) text += fmt::format(", {} slices", c.slices);
  if (c.image) text += ", of the image";
  if (!c.wants_gradients) text += ", frozen";
  if (c.dy_sources > 1) text += fmt::format(", {} gradients", c.dy_sources);
  return text + (c.training ? "" : ", inference");
}

OpData make_data(const OpCase& c, DType type, uint64_t seed) {
  OpData data;
  uint64_t stream = 0;
  for (const Shape& x : c.x) {
    const auto n = static_cast<size_t>(x.elements());
    data.x.push_back(c.draw == Draw::kUniform ? uniform(n, seed, stream++, c.mean)
                                              : spaced(n, seed, stream++));
  }
  const Shape y = output_shape(c.spec, c.x);
  for (int i = 0; i < c.dy_sources; ++i)
    data.dy.push_back(
        uniform(static_cast<size_t>(dy_shape(c.spec, y, i).elements()), seed, stream++));
  for (auto* tensors : {&data.x, &data.dy})
    for (auto& tensor : *tensors)
      for (float& v : tensor) v = round_to(type, v);
  for (const ParameterSpec& p : parameters(c.spec, c.x))
    data.parameters.push_back(uniform(static_cast<size_t>(p.elements()), seed, stream++));
  data.running = uniform(static_cast<size_t>(2 * y.c), seed, stream++);
  for (size_t k = data.running.size() / 2; k < data.running.size(); ++k)
    data.running[k] = 1.25f + 0.75f * data.running[k];  // variances in 0.5 .. 2
  return data;
}

namespace {

// [2, C] of x [rows, C] and of its squares.
std::vector<double> sums_of(const std::vector<float>& x, size_t c) {
  std::vector<double> sums(2 * c, 0.0);
  for (size_t i = 0; i < x.size(); ++i) {
    const double v = x[i];
    sums[i % c] += v;
    sums[c + i % c] += v * v;
  }
  return sums;
}

// Sums of y, as fp32 adds them in pieces.
void expect_sums(const std::vector<float>& sums, const std::vector<float>& y) {
  std::vector<float> magnitudes = y;
  for (float& v : magnitudes) v = std::abs(v);
  const size_t channels = sums.size() / 2;
  const std::vector<double> expected = sums_of(y, channels), most = sums_of(magnitudes, channels);
  for (size_t k = 0; k < sums.size(); ++k)
    EXPECT_NEAR(sums[k], expected[k], 1e-6 * most[k])
        << (k < channels ? "sum" : "squares") << " of channel " << k % channels;
}

}  // namespace

OpResult run(Device& device, DType type, const OpCase& c, const OpData& data) {
  OpConfig config = config_of(c, type);
  std::vector<Shape> stored = config.x;
  std::vector<std::vector<float>> inputs = data.x;
  const auto* conv = std::get_if<Conv2d>(&c.spec);
  if (c.image && conv && device.wants_four_channels(*conv, config.x[0], type)) {
    config.four_channels = true;
    stored[0] = with_four_channels(config.x[0]);
    inputs[0] = in_four_channels(c.x[0], data.x[0]);
    config.wants_sums = c.training && c.slices == 1;
  }
  const BackwardNeeds needs = backward_needs(c.spec);
  const std::unique_ptr<Op> op = device.make(c.spec, config);
  EXPECT_LE(op->saved_bytes(), saved_bytes(c.spec, config.y));
  const auto slices = static_cast<size_t>(c.slices);

  std::vector<GuardedBuffer> x, dy, dx, parameters, gradients;
  for (const auto& values : inputs) x.emplace_back(device, values, type);
  for (const auto& values : data.dy) dy.emplace_back(device, values, type);
  for (const auto& values : data.parameters) {
    parameters.emplace_back(device, values.size() * sizeof(float));
    gradients.emplace_back(device, values.size() * sizeof(float));
  }
  const GuardedBuffer running(device, data.running, DType::kFloat32);
  const auto* merged = std::get_if<BatchNorm>(&c.spec);
  const bool has_shortcut = merged && merged->shortcut;
  const size_t statistics_floats = data.running.size();
  const GuardedBuffer statistics(device,
                                 (has_shortcut ? 2 : 1) * statistics_floats * sizeof(float));
  const GuardedBuffer y(device,
                        slices * static_cast<size_t>(config.y.elements()) * size_of(config.y_type));
  const GuardedBuffer saved(device, slices * op->saved_bytes());
  const GuardedBuffer scratch(device, op->scratch_bytes());
  const size_t sums_floats = op->gives_sums() ? 2 * static_cast<size_t>(config.y.c) : 0;
  const GuardedBuffer sums(device, sums_floats * sizeof(float));
  std::vector<GuardedBuffer> given;  // of each input
  for (size_t i = 0; i < c.given.size(); ++i) {
    const std::vector<double> of_input = sums_of(data.x[i], static_cast<size_t>(config.y.c));
    given.emplace_back(device, std::vector<float>(of_input.begin(), of_input.end()),
                       DType::kFloat32);
  }
  for (const Shape& shape : c.x)
    dx.emplace_back(
        device, static_cast<size_t>(compact(shape, needs.dx_stride).elements()) * size_of(type));

  const int over = y_in_place(c.spec);
  std::vector<NodeMemory> memory(slices);
  for (size_t s = 0; s < slices; ++s) {
    NodeMemory& m = memory[s];
    const auto part = [&](const GuardedBuffer& buffer, const Shape& shape, DType t) -> void* {
      return static_cast<char*>(buffer.data()) +
             s * static_cast<size_t>(shape.elements()) * size_of(t);
    };
    m.slice = {
        .begin = static_cast<int64_t>(s) * config.y.n, .first = s == 0, .last = s + 1 == slices};
    m.y = part(over >= 0 ? x[static_cast<size_t>(over)] : y, config.y, config.y_type);
    for (const auto& b : dy)
      m.dy.push_back(part(b, dy_shape(c.spec, config.y, static_cast<int>(m.dy.size())), type));
    for (size_t i = 0; i < c.x.size(); ++i) {
      const bool in_place = static_cast<int>(i) == needs.dx_in_place;
      m.x.push_back(part(x[i], stored[i], type));
      m.dx.push_back(!wants(c, i) ? nullptr
                     : in_place   ? m.dy[0]
                                  : part(dx[i], compact(config.x[i], needs.dx_stride), type));
    }
    for (const auto& b : parameters) m.parameters.push_back(static_cast<const float*>(b.data()));
    for (const auto& b : gradients)
      m.gradients.push_back(c.wants_gradients ? static_cast<float*>(b.data()) : nullptr);
    m.running = static_cast<const float*>(running.data());
    m.statistics = static_cast<float*>(statistics.data());
    if (has_shortcut) m.shortcut_statistics = m.statistics + statistics_floats;
    if (op->gives_sums()) m.sums = static_cast<float*>(sums.data());
    const auto sums_given = [&](size_t i) {
      return i < given.size() && c.given[i] ? static_cast<float*>(given[i].data()) : nullptr;
    };
    if (!given.empty()) m.sums = sums_given(0);
    m.shortcut_sums = sums_given(1);
    m.saved = static_cast<char*>(saved.data()) + s * op->saved_bytes();
    m.scratch = scratch.data();
  }

  // What prepare() packs, the next one replaces: the first finds other numbers (no NaN, which a
  // folded convolution refuses).
  for (size_t p = 0; p < parameters.size(); ++p)
    parameters[p].write(std::vector<float>(data.parameters[p].size(), 1000.0f), DType::kFloat32);
  op->prepare(memory[0]);
  device.prepared();
  for (size_t p = 0; p < parameters.size(); ++p)
    parameters[p].write(data.parameters[p], DType::kFloat32);
  op->prepare(memory[0]);
  device.prepared();
  const bool is_gathered = gathers(c.spec, c.training);
  for (const NodeMemory& m : memory)
    if (is_gathered) op->gather_forward(m);
  for (const NodeMemory& m : memory) op->forward(m, c.step);
  OpResult result;
  result.y = (over >= 0 ? x[static_cast<size_t>(over)] : y).read(config.y_type);
  if (op->gives_sums()) expect_sums(sums.read(DType::kFloat32), result.y);
  // What backward does not read may be gone by then.
  const bool reads_inputs = c.wants_gradients || !needs.for_parameters;
  for (size_t i = 0; i < x.size() && c.training; ++i)
    if (!reads_inputs || (needs.inputs >> i & 1u) == 0)
      x[i].write(
          std::vector<float>(c.slices * static_cast<size_t>(stored[i].elements()), std::nanf("")),
          type);
  for (const NodeMemory& m : memory)
    if (is_gathered) op->gather_backward(m);
  for (const NodeMemory& m : memory)
    if (c.training) op->backward(m, c.step);

  for (size_t i = 0; i < c.x.size() && c.training; ++i) {
    const bool in_place = static_cast<int>(i) == needs.dx_in_place;
    result.dx.push_back(!wants(c, i) ? std::vector<float>{}
                        : in_place   ? dy[0].read(type)
                                     : dx[i].read(type));
  }
  if (c.training && c.wants_gradients)
    for (const auto& b : gradients) result.gradients.push_back(b.read(DType::kFloat32));
  if (is_gathered) result.statistics = statistics.read(DType::kFloat32);

  sums.expect_guards("sums");
  for (const auto* buffers : {&x, &dy, &dx, &parameters, &gradients})
    for (const auto& b : *buffers) b.expect_guards("input, gradient or parameter");
  y.expect_guards("y");
  saved.expect_guards("saved");
  scratch.expect_guards("scratch");
  statistics.expect_guards("statistics");
  for (size_t i = 0; i < x.size(); ++i)
    if (static_cast<int>(i) != over) x[i].expect_unchanged("x");
  for (const auto& b : parameters) b.expect_unchanged("a parameter");
  const bool first_is_written = needs.writes_dy || needs.dx_in_place >= 0;
  for (size_t i = first_is_written ? 1 : 0; i < dy.size(); ++i) dy[i].expect_unchanged("dy");
  return result;
}

reference::Node run_reference(const OpCase& c, DType type, const OpData& data, const OpResult& op) {
  reference::Node node = reference_inputs(c, type, data);
  reference::forward(c.spec, node);
  if (!c.training) return node;
  const std::vector<double> y = std::exchange(node.y.v, in_double(op.y));
  node.dy = reference::Array(node.y.shape, sum_of(data.dy));
  reference::backward(c.spec, node);
  node.y.v = y;
  return node;
}

void expect_close(const std::string& what, const std::vector<float>& out,
                  const std::vector<double>& reference, DType type, int roundings) {
  const Tolerance tolerance = tolerance_of(type, roundings);
  ASSERT_EQ(out.size(), reference.size()) << what;
  double error2 = 0, norm2 = 0, max_error = 0, largest = 0;
  double rounding2 = 0;  // of the reference itself, stored in the type
  size_t worst = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    ASSERT_FALSE(std::isnan(out[i])) << what << "[" << i << "] of " << out.size()
                                     << " is NaN or was not written; expected " << reference[i];
    const double error = std::abs(static_cast<double>(out[i]) - reference[i]);
    error2 += error * error;
    const double rounding =
        static_cast<double>(round_to(type, static_cast<float>(reference[i]))) - reference[i];
    rounding2 += rounding * rounding;
    norm2 += reference[i] * reference[i];
    largest = std::max(largest, std::abs(reference[i]));
    if (error > max_error) {
      max_error = error;
      worst = i;
    }
  }
  // Where one element outweighs the others, storing the truth may cost more than the mean says.
  EXPECT_LE(std::sqrt(error2), std::max(tolerance.l2 * std::sqrt(norm2), std::sqrt(rounding2)))
      << what << ": relative L2 error " << std::sqrt(error2 / norm2) << ", worst [" << worst
      << "] of " << out.size() << ": " << out[worst] << ", expected " << reference[worst];
  EXPECT_LE(max_error, tolerance.max * largest)
      << what << "[" << worst << "] of " << out.size() << ": " << out[worst] << ", expected "
      << reference[worst] << ", largest " << largest;
}

void check_op(Device& device, DType type, const OpCase& c) {
  const int64_t batch = c.x[0].n;
  if (c.slices == 1 && batch > 1) {
    OpCase by_sample = c;
    by_sample.slices = batch;
    check_as_it_is(device, type, by_sample);
  }
  check_as_it_is(device, type, c);
}

void check_as_it_is(Device& device, DType type, const OpCase& c) {
  SCOPED_TRACE(fmt::format("{} on {} in {}", describe(c), device.name(), name_of(type)));
  const OpData data = make_data(c, type);
  const OpResult op = run(device, type, c, data);
  const reference::Node expected = run_reference(c, type, data, op);
  expect_close("y", op.y, expected.y.v, c.fp32_output ? DType::kFloat32 : type);
  for (size_t i = 0; i < op.dx.size(); ++i)
    if (wants(c, i))
      expect_close(fmt::format("dx {}", i), op.dx[i], expected.dx[i].v, type, c.dy_sources);
  for (size_t p = 0; p < op.gradients.size(); ++p)
    expect_close(fmt::format("gradient {}", p), op.gradients[p], expected.gradients[p],
                 DType::kFloat32);
  if (!op.statistics.empty())
    expect_close("statistics", op.statistics, expected.statistics, DType::kFloat32);
}

namespace {

// d/dt of sum(y * r) along each element of `values` (a part of node), against `gradient`.
void check_reference_elements(const OpSpec& spec, reference::Node& node,
                              std::vector<double>& values, const std::vector<double>& gradient,
                              const std::vector<double>& r, const std::string& what) {
  const auto loss = [&] {
    reference::forward(spec, node);
    return std::inner_product(r.begin(), r.end(), node.y.v.begin(), 0.0);
  };
  const double scale = norm(gradient) + norm(r) / std::sqrt(static_cast<double>(r.size()));
  const size_t stride = values.size() / 40 + 1;
  for (size_t i = 0; i < values.size(); i += stride) {
    const double before = values[i];
    values[i] = before + kReferenceStep;
    const double above = loss();
    values[i] = before - kReferenceStep;
    const double below = loss();
    values[i] = before;
    EXPECT_NEAR(gradient[i], (above - below) / (2 * kReferenceStep), kReferenceTolerance * scale)
        << "reference, " << what << " element " << i;
  }
}

}  // namespace

void check_gradients(Device& device, const OpCase& c) {
  SCOPED_TRACE(describe(c) + " on " + device.name());
  const DType type = DType::kFloat32;
  OpData data = make_data(c, type);
  ignore_kinks(c, data);
  const OpResult op = run(device, type, c, data);
  const std::vector<double> r = sum_of(data.dy);

  reference::Node node = run_reference(c, type, data, op);
  const reference::Node expected = node;
  for (size_t i = 0; i < node.x.size(); ++i)
    check_reference_elements(c.spec, node, node.x[i].v, expected.dx[i].v, r,
                             fmt::format("input {}", i));
  for (size_t p = 0; p < node.parameters.size() && c.wants_gradients; ++p)
    check_reference_elements(c.spec, node, node.parameters[p], expected.gradients[p], r,
                             fmt::format("parameter {}", p));

  const double h = c.draw == Draw::kSpaced ? kSpacedStep : kDeviceStep;
  const auto check_direction = [&](std::vector<float>& values, const std::vector<float>& gradient,
                                   uint64_t stream, const std::string& what) {
    const std::vector<float> before = values;
    const std::vector<float> direction = uniform(values.size(), 2, stream);
    // The step that was really taken, after rounding.
    std::vector<float> above(values.size()), below(values.size());
    double along = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      above[i] = before[i] + static_cast<float>(h) * direction[i];
      below[i] = before[i] - static_cast<float>(h) * direction[i];
      along += (static_cast<double>(above[i]) - static_cast<double>(below[i])) *
               static_cast<double>(gradient[i]);
    }
    values = above;
    const double loss_above = dot(r, run(device, type, c, data).y);
    values = below;
    const double loss_below = dot(r, run(device, type, c, data).y);
    values = before;
    EXPECT_NEAR(along / (2 * h), (loss_above - loss_below) / (2 * h),
                kDeviceTolerance * norm(in_double(gradient)))
        << "device, " << what;
  };
  for (uint64_t trial = 0; trial < 3; ++trial) {
    for (size_t i = 0; i < data.x.size(); ++i)
      if (wants(c, i))
        check_direction(data.x[i], op.dx[i], 10 * trial + i, fmt::format("input {}", i));
    for (size_t p = 0; p < data.parameters.size() && c.wants_gradients; ++p)
      check_direction(data.parameters[p], op.gradients[p], 10 * trial + 5 + p,
                      fmt::format("parameter {}", p));
  }
}

void check_threads(const std::string& device, DType type, const OpCase& c) {
  SCOPED_TRACE(fmt::format("{} on {} in {}", describe(c), device, name_of(type)));
  const OpData data = make_data(c, type);
  const OpResult one = run(*make_device(device, 1), type, c, data);
  for (const float v : one.y) ASSERT_FALSE(std::isnan(v));
  for (const int threads : {2, 3, 4})
    EXPECT_TRUE(run(*make_device(device, threads), type, c, data) == one) << threads << " threads";
}

}  // namespace convoy::ops
