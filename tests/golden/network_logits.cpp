// For the scripts of this folder that compare with other programs:
//   network_logits state MODEL CxHxW CLASSES FILE   a state of the formula in made_state.h,
//   safetensors network_logits run CHECKPOINT BATCH images|pixels X Y   logits, as float32 [BATCH,
//   classes] in Y,
//     of what it writes to X as float32 NCHW: images of the formula, or pixels in 0..255
#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <iostream>

#include "ops/core/error.h"
#include "tests/support/made_state.h"
#include "trainer/engine/setup.h"
#include "trainer/job/command_line.h"
#include "trainer/weights/model_state.h"

namespace convoy {
namespace {

using golden::MadeState;
using trainer::NamedTensor;
using trainer::TensorList;

void write_floats(const std::string& path, const std::vector<float>& values) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(values.data()),
             static_cast<std::streamsize>(values.size() * sizeof(float)));
  file.close();
  if (!file) fail(ExitCode::kIo, "{}: cannot write", path);
}

void write_state(const std::string& model, const std::string& image, int64_t classes,
                 const std::string& path) {
  const ops::Graph graph =
      trainer::make_model(model, {.image = trainer::parse_image(image), .classes = classes});
  const ops::ParameterLayout layout = ops::layout_of(graph);
  const MadeState state = golden::make_state(layout);
  const TensorList list = trainer::model_tensors(layout, state.parameters, state.running, 0);
  trainer::write_safetensors(path, list.tensors);
}

MadeState state_of(const TensorList& list, const ops::ParameterLayout& layout) {
  MadeState state{.parameters = std::vector<float>(layout.parameter_floats),
                  .running = std::vector<float>(layout.statistics_floats)};
  const auto copy = [&](const std::string& name, float* to) {
    const NamedTensor* t = list.find(name);
    if (!t) fail(ExitCode::kBadData, "no tensor \"{}\"", name);
    std::memcpy(to, t->bytes.data(), t->bytes.size());
  };
  for (const auto& p : layout.parameters) copy(p.name, state.parameters.data() + p.offset);
  for (const auto& s : layout.statistics) {
    float* mean = state.running.data() + s.offset;
    copy(s.name + ".running_mean", mean);
    copy(s.name + ".running_var", mean + s.channels);
  }
  return state;
}

std::vector<float> to_nchw(const std::vector<float>& nhwc, const Shape& s) {
  std::vector<float> out(nhwc.size());
  size_t at = 0;
  for (int64_t n = 0; n < s.n; ++n)
    for (int64_t c = 0; c < s.c; ++c)
      for (int64_t place = 0; place < s.h * s.w; ++place)
        out[at++] = nhwc[static_cast<size_t>((n * s.h * s.w + place) * s.c + c)];
  return out;
}

void run(const std::string& checkpoint, int64_t batch, bool pixels, const std::string& x_path,
         const std::string& y_path) {
  const trainer::LoadedCheckpoint loaded = trainer::load_newest(checkpoint);
  const trainer::Job job = trainer::parse_job(loaded.state.facts.job, loaded.folder, {}, "");
  const data::ImageShape image = {.height = trainer::eval_transform(job).size,
                                  .width = trainer::eval_transform(job).size,
                                  .channels = static_cast<int>(job.data.mean.size())};
  const Shape shape = {.n = batch, .c = image.channels, .h = image.height, .w = image.width};
  const ops::Graph graph = trainer::graph_of(job, image);
  const auto state = [&](const ops::ParameterLayout& layout) {
    return state_of(loaded.state.model, layout);
  };
  std::vector<float> x = golden::make_images(shape), y;
  if (pixels) {
    std::vector<uint8_t> bytes;
    for (float& value : x) {  // from [-2, 2)
      bytes.push_back(static_cast<uint8_t>(std::floor((value + 2) * 64)));
      value = bytes.back();
    }
    y = golden::logits_of(
        graph, state, bytes,
        trainer::image_input(job, trainer::stored_normalisation(loaded.state), image, batch));
  } else {
    y = golden::logits_of(graph, state, x, batch);
  }
  write_floats(x_path, to_nchw(x, shape));
  write_floats(y_path, y);
}

int main_of(const std::vector<std::string>& a) {
  if (a.size() == 5 && a[0] == "state")
    write_state(a[1], a[2], std::stoll(a[3]), a[4]);
  else if (a.size() == 6 && a[0] == "run" && (a[3] == "images" || a[3] == "pixels"))
    run(a[1], std::stoll(a[2]), a[3] == "pixels", a[4], a[5]);
  else
    fail(ExitCode::kUsage, "see the head of tests/golden/network_logits.cpp");
  return 0;
}

}  // namespace
}  // namespace convoy

int main(int argc, char** argv) {
  try {
    return convoy::main_of({argv + 1, argv + argc});
  } catch (const std::exception& e) {
    std::cerr << "network_logits: " << e.what() << "\n";
    return 1;
  }
}
