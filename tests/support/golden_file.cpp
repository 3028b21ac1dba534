#include "tests/support/golden_file.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "ops/core/error.h"
#include "ops/core/random.h"

namespace convoy::golden {
namespace {

using Json = nlohmann::json;

// The counter `a` of each draw, as in make_golden.py. A parameter's is its position.
constexpr uint64_t kInputs = 1'000'000;  // + step
constexpr uint64_t kLabels = 2'000'000;  // + step
constexpr uint64_t kSigns = 3'000'000;   // seed 0: the same for every file
constexpr uint64_t kSamples = 4'000'000;
constexpr uint64_t kRunning = 5'000'000;  // + position

// Calls element(i, word) for i in [0, count): word i % 4 of counter b = i / 4.
template <typename Element>
void for_each_word(uint64_t seed, uint64_t a, int64_t count, const Element& element) {
  Random4 words{};
  for (int64_t i = 0; i < count; ++i) {
    if (i % 4 == 0) words = random4(seed, Purpose::kInitialise, a, static_cast<uint64_t>(i / 4));
    element(i, words[static_cast<size_t>(i % 4)]);
  }
}

int64_t elements(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (int64_t extent : shape) count *= extent;
  return count;
}

Summary read_summary(const Json& json) {
  Summary s;
  json.at("name").get_to(s.name);
  json.at("shape").get_to(s.shape);
  json.at("norm").get_to(s.norm);
  json.at("sum").get_to(s.sum);
  json.at("projections").get_to(s.projections);
  json.at("samples").get_to(s.samples);
  json.at("error_norm").get_to(s.error_norm);
  json.at("error_sum").get_to(s.error_sum);
  json.at("error_max").get_to(s.error_max);
  return s;
}

std::vector<Summary> read_summaries(const Json& json) {
  std::vector<Summary> all;
  for (const Json& entry : json) all.push_back(read_summary(entry));
  return all;
}

std::vector<Parameter> read_parameters(const Json& json) {
  std::vector<Parameter> all;
  for (const Json& entry : json)
    all.push_back({entry.at("name"), entry.at("shape"), entry.at("low"), entry.at("width"),
                   entry.at("nudges")});
  return all;
}

File from_json(const Json& json) {
  File file;
  json.at("model").get_to(file.model);
  json.at("seed").get_to(file.seed);
  json.at("classes").get_to(file.classes);
  json.at("input_shape").get_to(file.input_shape);
  json.at("sgd").at("learning_rate").get_to(file.sgd.learning_rate);
  json.at("sgd").at("momentum").get_to(file.sgd.momentum);
  json.at("sgd").at("weight_decay").get_to(file.sgd.weight_decay);
  json.at("losses").get_to(file.losses);
  json.at("error_losses").get_to(file.error_losses);
  json.at("error_logits").get_to(file.error_logits);
  for (const Json& row : json.at("logits"))
    for (const Json& value : row) file.logits.push_back(value.get<double>());
  file.parameters = read_parameters(json.at("parameters"));
  if (json.contains("frozen")) {
    json.at("frozen").get_to(file.frozen);
    file.running = read_parameters(json.at("running"));
    for (const Json& entry : json.at("factors"))
      file.factors.push_back(
          {entry.at("prefix"), entry.at("learning_rate"), entry.at("weight_decay")});
  }
  for (const Json& entry : json.at("generated"))
    file.generated.push_back({entry.at("sha256"), read_summary(entry)});
  file.gradients = read_summaries(json.at("gradients"));
  file.parameters_after = read_summaries(json.at("parameters_after"));
  file.running_after = read_summaries(json.at("running_after"));
  return file;
}

// Collects the mismatches of one tensor. A NaN is always one.
class Judge {
 public:
  Judge(std::string name, std::vector<std::string>& mismatches)
      : name_(std::move(name)), mismatches_(mismatches) {}

  void within(const std::string& what, double got, double expected, double tolerance) {
    if (!(std::abs(got - expected) <= tolerance))
      say(fmt::format("{} is {:.9g}, PyTorch's {:.9g}; the difference {:.2e} exceeds {:.2e}", what,
                      got, expected, std::abs(got - expected), tolerance));
  }
  void say(const std::string& text) { mismatches_.push_back(fmt::format("{}: {}", name_, text)); }

 private:
  std::string name_;
  std::vector<std::string>& mismatches_;
};

void compare_tensor(const Summary& expected, std::span<const float> got, Judge& judge) {
  const int64_t count = elements(expected.shape);
  if (static_cast<int64_t>(got.size()) != count) {
    judge.say(fmt::format("{} elements, PyTorch's {} [{}]", got.size(), count,
                          fmt::join(expected.shape, ", ")));
    return;
  }
  double squares = 0, sum = 0;
  for (float value : got) {
    squares += static_cast<double>(value) * value;
    sum += value;
  }
  const double tolerance = kSlack * expected.error_norm + kFloor * expected.norm;
  judge.within("L2 norm", std::sqrt(squares), expected.norm, tolerance);

  const std::array<double, 4> sums = projections(got);
  double error = 0;
  for (size_t p = 0; p < sums.size(); ++p) error += std::pow(sums[p] - expected.projections[p], 2);
  judge.within("L2 norm of the difference", std::sqrt(error / 4), 0, tolerance);

  // Rounding errors of one sign add up in the plain sum: PyTorch's own says how much.
  judge.within("sum", sum, expected.sum, kSlack * expected.error_sum + tolerance);

  // An element of average size has the floor of its tensor's root mean square.
  const double element_tolerance =
      kSlack * expected.error_max + kFloor * expected.norm / std::sqrt(static_cast<double>(count));
  const auto positions = sample_positions(count, static_cast<int64_t>(expected.samples.size()));
  for (size_t k = 0; k < positions.size(); ++k) {
    const double value = expected.samples[k];
    judge.within(fmt::format("element {}", positions[k]), got[static_cast<size_t>(positions[k])],
                 value, element_tolerance + kFloor * std::abs(value));
  }
}

}  // namespace

File read(const std::string& path) {
  std::ifstream stream(path);
  if (!stream) fail(ExitCode::kIo, "{}: {}", printable(path), errno_text());
  try {
    File file = from_json(Json::parse(stream));
    file.path = path;
    return file;
  } catch (const Json::exception& error) {
    fail(ExitCode::kBadData, "{}: not a golden file ({}); make it anew with make_golden.py",
         printable(path), printable(error.what()));
  }
}

namespace {

std::vector<float> make(const File& file, const Parameter& p, uint64_t counter) {
  std::vector<float> values(static_cast<size_t>(elements(p.shape)));
  for_each_word(file.seed, counter, elements(p.shape), [&](int64_t i, uint32_t word) {
    values[static_cast<size_t>(i)] = p.low + p.width * uniform_float(word);
  });
  for (size_t i = 0; i < p.nudges.size(); ++i)
    values.at(i) += static_cast<float>(p.nudges[i] - '0') * 0x1p-6f;
  return values;
}

}  // namespace

std::vector<float> make_parameter(const File& file, size_t index) {
  return make(file, file.parameters.at(index), index);
}

std::vector<float> make_running(const File& file, size_t index) {
  return make(file, file.running.at(index), kRunning + index);
}

std::vector<float> make_input(const File& file, int64_t step) {
  const auto [n, c, h, w] = file.input_shape;
  const int64_t pixels = h * w, sample = c * pixels;
  std::vector<float> nhwc(static_cast<size_t>(n * sample));
  for_each_word(file.seed, kInputs + static_cast<uint64_t>(step), n * sample,
                [&, channels = c](int64_t i, uint32_t word) {  // i counts in NCHW order
                  const int64_t channel = i % sample / pixels, pixel = i % pixels;
                  const int64_t to = i / sample * sample + pixel * channels + channel;
                  nhwc[static_cast<size_t>(to)] = -2.0f + 4.0f * uniform_float(word);
                });
  return nhwc;
}

std::vector<int32_t> make_labels(const File& file, int64_t step) {
  std::vector<int32_t> labels(static_cast<size_t>(file.input_shape[0]));
  for_each_word(file.seed, kLabels + static_cast<uint64_t>(step), file.input_shape[0],
                [&](int64_t i, uint32_t word) {
                  labels[static_cast<size_t>(i)] = static_cast<int32_t>(
                      uniform_below(word, static_cast<uint32_t>(file.classes)));
                });
  return labels;
}

// Element i's sign in sum p is bit i % 32 of word p of counter i / 32 (set: minus).
std::array<double, 4> projections(std::span<const float> x) {
  std::array<double, 4> sums{};
  Random4 signs{};
  for (size_t i = 0; i < x.size(); ++i) {
    if (i % 32 == 0) signs = random4(0, Purpose::kInitialise, kSigns, i / 32);
    for (size_t p = 0; p < 4; ++p) sums[p] += (signs[p] >> (i % 32)) & 1 ? -x[i] : x[i];
  }
  return sums;
}

std::vector<int64_t> sample_positions(int64_t count, int64_t samples) {
  std::vector<int64_t> positions(static_cast<size_t>(samples));
  for_each_word(0, kSamples, samples, [&](int64_t k, uint32_t word) {
    positions[static_cast<size_t>(k)] =
        count <= samples ? k : uniform_below(word, static_cast<uint32_t>(count));
  });
  return positions;
}

std::vector<std::string> compare_tensors(const std::vector<Summary>& expected, const Tensors& got) {
  std::vector<std::string> mismatches;
  std::set<std::string> known;
  for (const Summary& summary : expected) {
    known.insert(summary.name);
    Judge judge(summary.name, mismatches);
    if (const auto found = got.find(summary.name); found != got.end())
      compare_tensor(summary, found->second, judge);
    else
      judge.say("missing");
  }
  for (const auto& [name, values] : got)
    if (!known.contains(name)) Judge(name, mismatches).say("PyTorch has no tensor of this name");
  return mismatches;
}

std::vector<std::string> compare_logits(const File& file, std::span<const float> got) {
  std::vector<std::string> mismatches;
  Judge judge("logits", mismatches);
  if (got.size() != file.logits.size()) {
    judge.say(fmt::format("{} values, PyTorch's {}", got.size(), file.logits.size()));
    return mismatches;
  }
  for (size_t i = 0; i < got.size(); ++i) {
    const size_t classes = static_cast<size_t>(file.classes);
    judge.within(fmt::format("sample {} class {}", i / classes, i % classes), got[i],
                 file.logits[i], kSlack * file.error_logits + kFloor * std::abs(file.logits[i]));
  }
  return mismatches;
}

std::vector<std::string> compare_losses(const File& file, std::span<const double> losses) {
  std::vector<std::string> mismatches;
  Judge judge("loss", mismatches);
  if (losses.empty() || losses.size() > file.losses.size())
    judge.say(fmt::format("{} steps, PyTorch's {}", losses.size(), file.losses.size()));
  for (size_t s = 0; s < std::min(losses.size(), file.losses.size()); ++s)
    judge.within(fmt::format("step {}", s), losses[s], file.losses[s],
                 kSlack * file.error_losses[s] + kFloor * std::abs(file.losses[s]));
  return mismatches;
}

}  // namespace convoy::golden
