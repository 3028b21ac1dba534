#include "trainer/evaluation/predictions.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "ops/core/error.h"

namespace convoy::trainer {
namespace {

using nlohmann::ordered_json;

std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string out(1, '"');
  for (const char c : text) out.append(c == '"' ? 2 : 1, c);
  out.push_back('"');
  return out;
}

// Names that are not UTF-8 must not end an evaluation.
std::string dump(const ordered_json& object) {
  return object.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

}  // namespace

bool Prediction::among(size_t k) const {
  const auto end = top.begin() + static_cast<int64_t>(std::min(k, top.size()));
  return std::any_of(top.begin(), end, [&](const Guess& g) { return g.label == label; });
}

Prediction predict(uint64_t image, int32_t label, std::span<const double> probabilities, size_t k) {
  Prediction out{.image = image, .label = label};
  std::vector<int32_t> order(probabilities.size());
  std::iota(order.begin(), order.end(), 0);
  k = std::min(k, order.size());
  const auto p = [&](int32_t c) { return probabilities[static_cast<size_t>(c)]; };
  std::partial_sort(order.begin(), order.begin() + static_cast<int64_t>(k), order.end(),
                    [&](int32_t a, int32_t b) { return p(a) > p(b) || (p(a) == p(b) && a < b); });
  for (size_t i = 0; i < k; ++i) out.top.push_back({order[i], p(order[i])});
  if (label >= 0) out.loss = -std::log(p(label));
  return out;
}

void Confusion::add(const Prediction& p) {
  const auto t = static_cast<size_t>(p.label);
  ++images_.at(t);
  ++counts_[{t, static_cast<size_t>(p.top[0].label)}];
}

uint64_t Confusion::at(size_t t, size_t p) const {
  const auto found = counts_.find({t, p});
  return found == counts_.end() ? 0 : found->second;
}

size_t Confusion::mistaken_for(size_t t) const {
  size_t most = t;
  uint64_t count = 0;
  for (auto at = counts_.lower_bound({t, 0}); at != counts_.end() && at->first.first == t; ++at) {
    if (at->first.second == t || at->second <= count) continue;
    most = at->first.second;
    count = at->second;
  }
  return most;
}

void Calibration::add(const Prediction& p) {
  const double probability = p.top[0].probability;
  // Bin m is (m / bins, (m + 1) / bins].
  const auto bin = static_cast<size_t>(std::max(0.0, std::ceil(probability * kBins) - 1));
  Bin& b = bins_[std::min(bin, kBins - 1)];
  ++b.images;
  b.correct += p.right() ? 1 : 0;
  b.probability += probability;
}

double Calibration::error() const {
  double sum = 0;
  uint64_t images = 0;
  for (const Bin& b : bins_) {
    sum += std::abs(static_cast<double>(b.correct) - b.probability);
    images += b.images;
  }
  return images > 0 ? sum / static_cast<double>(images) : 0;
}

std::string to_csv(const Confusion& confusion, const std::vector<std::string>& names) {
  std::string text = "true \\ predicted";
  for (size_t p = 0; p < confusion.classes(); ++p)
    text += fmt::format(",{}", csv_field(name_of(static_cast<int32_t>(p), names)));
  text += "\n";
  for (size_t t = 0; t < confusion.classes(); ++t) {
    text += csv_field(name_of(static_cast<int32_t>(t), names));
    for (size_t p = 0; p < confusion.classes(); ++p) text += fmt::format(",{}", confusion.at(t, p));
    text += "\n";
  }
  return text;
}

std::string to_json(const Confusion& confusion, const std::vector<std::string>& names) {
  ordered_json out = {{"classes", ordered_json::array()}, {"matrix", ordered_json::array()}};
  for (size_t t = 0; t < confusion.classes(); ++t) {
    out["classes"].push_back(name_of(static_cast<int32_t>(t), names));
    ordered_json row = ordered_json::array();
    for (size_t p = 0; p < confusion.classes(); ++p) row.push_back(confusion.at(t, p));
    out["matrix"].push_back(std::move(row));
  }
  return dump(out) + "\n";
}

std::string to_json(const std::vector<Guess>& top, const std::vector<std::string>& names) {
  ordered_json out = ordered_json::array();
  for (const Guess& g : top)
    out.push_back(
        {{"class", g.label}, {"name", name_of(g.label, names)}, {"probability", g.probability}});
  return dump(out);
}

std::string name_of(int32_t label, const std::vector<std::string>& names) {
  const auto i = static_cast<size_t>(label);
  return i < names.size() ? names[i] : fmt::format("class {}", label);
}

void WorstMistakes::add(const Prediction& p) {
  if (p.right() || count_ == 0) return;
  const auto worse = [](const Prediction& a, const Prediction& b) {
    const double x = a.top[0].probability, y = b.top[0].probability;
    return x > y || (x == y && a.image < b.image);
  };
  if (list_.size() == count_ && !worse(p, list_.back())) return;
  list_.insert(std::upper_bound(list_.begin(), list_.end(), p, worse), p);
  if (list_.size() > count_) list_.pop_back();
}

}  // namespace convoy::trainer
