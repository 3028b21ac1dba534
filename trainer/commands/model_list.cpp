// convoy model list: all models by family, with what they cost.
#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>

#include "trainer/commands/commands.h"
#include "trainer/models/models.h"

namespace convoy::trainer {
namespace {

namespace po = boost::program_options;

// 25557032 -> "25.56 M".
std::string rounded(int64_t count) {
  const auto value = static_cast<double>(count);
  if (value < 1e6) return fmt::format("{:.2f} k", value / 1e3);
  return value < 1e9 ? fmt::format("{:.2f} M", value / 1e6) : fmt::format("{:.2f} G", value / 1e9);
}

void print_list() {
  size_t width = 0;
  for (const ModelEntry& m : model_table()) width = std::max(width, m.name.size());
  const auto line = [&](std::string_view name, std::string_view input, std::string_view parameters,
                        std::string_view macs, std::string_view summary) {
    std::cout << fmt::format("  {:<{}}  {:>9}  {:>10}  {:>9}  {}\n", name, width, input, parameters,
                             macs, summary);
  };
  line("model", "input", "parameters", "MACs", "what it is");
  std::string family;
  for (const ModelEntry& m : model_table()) {
    if (m.family != family) std::cout << "\n" << m.family << "\n";
    family = m.family;
    const ModelCounts counts = count(make_model(m.name, {}));
    line(m.name, fmt::format("{}x{}x{}", m.image.c, m.image.h, m.image.w),
         rounded(counts.parameters), rounded(counts.macs), m.summary);
  }
  std::cout
      << "\nOf one image, as inference runs it: GoogLeNet's auxiliary classifiers come on top in "
         "training.\nMACs: multiply-accumulates of convolutions and linear layers. `convoy model "
         "show NAME` has the layers.\n";
}

void print_json() {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const ModelEntry& m : model_table()) {
    const ModelCounts counts = count(make_model(m.name, {}));
    list.push_back({{"model", m.name},
                    {"family", m.family},
                    {"summary", m.summary},
                    {"input", {m.image.c, m.image.h, m.image.w}},
                    {"classes", m.classes},
                    {"parameters", counts.parameters},
                    {"training_parameters", counts.training_parameters},
                    {"macs", counts.macs},
                    {"dropout", m.dropout}});
  }
  std::cout << nlohmann::ordered_json{{"models", list}}.dump(2) << std::endl;
}

}  // namespace

int model_list(const Arguments& arguments) {
  bool json = false;
  po::options_description flags("Options");
  flags.add_options()("json", po::bool_switch(&json), "one JSON object on standard output");
  if (!parse_options(arguments, flags, "model list [OPTIONS]", "")) return 0;
  if (json)
    print_json();
  else
    print_list();
  return 0;
}

}  // namespace convoy::trainer
