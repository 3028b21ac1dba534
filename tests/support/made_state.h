// Weights and inputs by a formula that tests/golden/made_state.py computes as well, to the same
// bits, so that files with what PyTorch makes of them hold no weights. They are sane ones:
// activations neither vanish nor explode in networks of any depth here.
//
// Element i of the tensor `name` is low + (high - low) * uniform_float(w), computed in double and
// rounded once, where w is word i % 4 of random4(0, kSyntheticData, FNV-1a of the name, i / 4).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "ops/graph.h"
#include "ops/image_input.h"

namespace convoy::golden {

struct MadeState {
  std::vector<float> parameters, running;  // as the layout says
};
MadeState make_state(const ops::ParameterLayout& layout);

// NHWC in memory, counted in NCHW's order; in [-2, 2).
std::vector<float> make_images(const Shape& shape);

// Logits [batch, classes] of the network as inference runs it, on the CPU in fp32. `images`: NHWC.
using StateOf = std::function<MadeState(const ops::ParameterLayout&)>;
std::vector<float> logits_of(const ops::Graph& graph, const StateOf& state,
                             const std::vector<float>& images, int64_t batch);
// The same of pixels; `input` is for one batch of them.
std::vector<float> logits_of(const ops::Graph& graph, const StateOf& state,
                             const std::vector<uint8_t>& pixels, const ops::ImageInput& input);

}  // namespace convoy::golden
