// The logits of our networks against torchvision's, with weights and images that both make by one
// formula. tests/golden/make_logits.py wrote logits.json. CONVOY_ALL_LOGITS=1: also the entries at
// the networks' usual 224 x 224 (gigabytes and minutes).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/support/made_state.h"
#include "trainer/models/models.h"

namespace convoy {
namespace {

using nlohmann::json;

struct Case {
  std::string model;
  Shape images;
  std::vector<std::vector<double>> logits;  // per image and class, computed in double
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.model << " " << to_string(c.images);
}

std::vector<Case> cases() {
  std::ifstream file(GOLDEN_DIR "/logits.json");
  const json all = json::parse(file);
  const bool everything = std::getenv("CONVOY_ALL_LOGITS") != nullptr;
  std::vector<Case> out;
  for (const json& entry : all.at("logits")) {
    const auto shape = entry.at("images").get<std::vector<int64_t>>();
    if (shape.at(2) >= 224 && !everything) continue;
    out.push_back({entry.at("model"),
                   {shape[0], shape[1], shape[2], shape[3]},
                   entry.at("logits").get<std::vector<std::vector<double>>>()});
  }
  return out;
}

class Logits : public testing::TestWithParam<Case> {};

TEST_P(Logits, EqualTorchvisions) {
  const Case& c = GetParam();
  const auto classes = static_cast<int64_t>(c.logits.at(0).size());
  trainer::ModelOptions options;
  options.image = {.n = 1, .c = c.images.c, .h = c.images.h, .w = c.images.w};
  options.classes = classes;
  const std::vector<float> ours =
      golden::logits_of(trainer::make_model(c.model, options), golden::make_state,
                        golden::make_images(c.images), c.images.n);
  ASSERT_EQ(ours.size(), c.logits.size() * static_cast<size_t>(classes));
  // 1e-4 where logits are of size 1, as issue 8 asks; these weights give larger ones, and fp32 is
  // relative.
  double largest = 1;
  for (const auto& row : c.logits)
    for (const double logit : row) largest = std::max(largest, std::abs(logit));
  for (size_t i = 0; i < ours.size(); ++i)
    EXPECT_NEAR(double{ours[i]},
                c.logits[i / static_cast<size_t>(classes)][i % static_cast<size_t>(classes)],
                1e-4 * largest)
        << "image " << i / static_cast<size_t>(classes) << " class "
        << i % static_cast<size_t>(classes);
}

INSTANTIATE_TEST_SUITE_P(Golden, Logits, testing::ValuesIn(cases()), [](const auto& each) {
  return each.param.model + "_" + std::to_string(each.param.images.h);
});

}  // namespace
}  // namespace convoy
